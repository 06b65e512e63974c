import { posix } from 'node:path';

/** Longest path, in bytes, that Linux takes. */
const MAX_PATH = 4_096;
/** Longest name of one file, in bytes, that Linux's file systems take. */
const MAX_NAME = 255;
/** Links followed while one path is resolved; what is longer is a loop to Linux too. */
const MAX_LINKS = 40;

/** Why a path cannot be one of an entry in a build context; undefined when it can. `path` is relative and normalised. */
export function faultOfPath(path: string): string | undefined {
  if (/\p{Cc}/u.test(path)) return 'has a control character in its name';
  if (path.includes('\uFFFD')) return 'has a name that is not valid UTF-8';
  if (path.startsWith('/')) return 'has an absolute path';
  if (Buffer.byteLength(path) > MAX_PATH) return `has a path of more than ${MAX_PATH} bytes`;
  for (const name of path.split('/')) {
    if (name === '..') return 'leads outside of the folder ("..")';
    if (Buffer.byteLength(name) > MAX_NAME) return `has a name of more than ${MAX_NAME} bytes`;
  }
  return undefined;
}

/** A path of an archive as the contexts have it: without "./" in front, "/" at the end, or empty steps; "" is the top. */
export function normalizePath(path: string): string {
  const absolute = path.startsWith('/') ? '/' : '';
  return (
    absolute +
    path
      .split('/')
      .filter((name) => name !== '' && name !== '.')
      .join('/')
  );
}

/** A path as it may be shown to a person: one line, no control characters, not longer than a line. */
export function showPath(path: string): string {
  const text = JSON.stringify(path);
  return text.length > 200 ? `${text.slice(0, 197)}..."` : text;
}

/**
 * Whether following the link at `path` can leave the folder, with all links within the folder followed as the kernel
 * would.
 *
 * @param links targets by the path of their link.
 */
export function leadsOutside(path: string, links: ReadonlyMap<string, string>): boolean {
  const at: string[] = posix.dirname(path) === '.' ? [] : posix.dirname(path).split('/');
  const rest = [links.get(path) ?? ''];
  let followed = 0;
  while (rest.length > 0) {
    const target = rest.pop()!;
    if (target.startsWith('/')) return true;
    const [first, ...others] = target.split('/');
    if (others.length > 0) rest.push(others.join('/'));
    if (first === '..') {
      if (at.pop() === undefined) return true;
    } else if (first !== '' && first !== '.') {
      at.push(first!);
      const next = links.get(at.join('/'));
      if (next !== undefined) {
        followed += 1;
        if (followed > MAX_LINKS) return false;
        at.pop();
        rest.push(next);
      }
    }
  }
  return false;
}
