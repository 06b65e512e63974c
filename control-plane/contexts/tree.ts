import { posix } from 'node:path';
import { InitlessError } from '../../proto/rpc/errors.js';
import { DOCKERFILE_NAMES } from '../config/defaults.js';
import { createFilter } from './ignore.js';
import { CONFIG_FILE, MAX_BYTES, MAX_ENTRIES } from './limits.js';
import { faultOfPath, leadsOutside, showPath } from './paths.js';

/** One thing in a service's folder. Times, owners and all of the mode but the executable bit are not part of it. */
export type Entry =
  | { kind: 'directory'; path: string }
  | { kind: 'link'; path: string; target: string }
  | {
      kind: 'file';
      path: string;
      executable: boolean;
      /** Bytes. */
      size: number;
      /** The content, `size` bytes in all. Errors: BUSY when it changed since it was listed. */
      read: () => AsyncIterable<Buffer>;
    };

/** A service's folder: checked, without what `.dockerignore` leaves out, with every parent folder, sorted by path. */
export interface Tree {
  entries: readonly Entry[];
  /** Name of the build file at its top. */
  dockerfile: string;
  /** Text of its `config.yaml`. */
  configText: string;
}

/** What a folder's `config.yaml` may have in bytes. */
const MAX_CONFIG_BYTES = 256 * 1024;

/**
 * Makes a tree of what an archive or a folder holds.
 *
 * @param origin where it comes from, for messages.
 * Errors: BAD_ARCHIVE, TOO_LARGE, NO_DOCKERFILE, BAD_CONFIG (no `config.yaml`, a bad `.dockerignore`), BUSY.
 */
export async function buildTree(origin: string, found: readonly Entry[]): Promise<Tree> {
  checkLimits(origin, found);
  const byPath = new Map<string, Entry>();
  for (const entry of found) {
    const fault = faultOfPath(entry.path);
    if (fault !== undefined) throw badArchive(origin, entry.path, fault);
    const other = byPath.get(entry.path);
    if (other !== undefined && !(other.kind === 'directory' && entry.kind === 'directory')) {
      throw badArchive(origin, entry.path, 'is there twice');
    }
    byPath.set(entry.path, entry);
  }
  checkLinks(origin, byPath);
  addParents(origin, byPath);

  const dockerfile = DOCKERFILE_NAMES.find((name) => byPath.get(name)?.kind === 'file');
  const config = byPath.get(CONFIG_FILE);
  if (config?.kind !== 'file') {
    throw new InitlessError('BAD_CONFIG', `${origin} has no file ${CONFIG_FILE} at its top`, {
      subject: origin,
      nextStep: `write ${CONFIG_FILE} with at least service_name, service_port and host_port`,
    });
  }
  if (dockerfile === undefined) {
    throw new InitlessError('NO_DOCKERFILE', `${origin} has no file Dockerfile at its top`, {
      subject: origin,
      nextStep: 'add the Dockerfile that builds the image of the service',
    });
  }
  const ignored = byPath.get('.dockerignore');
  const keeps =
    ignored?.kind === 'file'
      ? createFilter(origin, await readText(origin, ignored), [CONFIG_FILE, ...DOCKERFILE_NAMES]).keeps
      : () => true;
  const kept = new Map([...byPath].filter(([path]) => keeps(path)));
  for (const path of [...kept.keys()]) {
    for (let up = posix.dirname(path); up !== '.'; up = posix.dirname(up)) kept.set(up, byPath.get(up)!);
  }
  return {
    entries: [...kept.values()].sort((a, b) => (a.path < b.path ? -1 : 1)),
    dockerfile,
    configText: await readText(origin, config),
  };
}

/** Errors: TOO_LARGE. Also of use while entries are still being listed, so that a bomb ends early. */
export function checkLimits(origin: string, entries: readonly Entry[]): void {
  const bytes = entries.reduce((sum, entry) => sum + (entry.kind === 'file' ? entry.size : 0), 0);
  if (entries.length <= MAX_ENTRIES && bytes <= MAX_BYTES) return;
  throw tooLarge(origin, entries.length > MAX_ENTRIES ? `more than ${MAX_ENTRIES} entries` : 'more than 1 GiB');
}

/** The error for a context with too much in it. */
export function tooLarge(origin: string, what: string): InitlessError {
  return new InitlessError('TOO_LARGE', `${origin} holds ${what}`, {
    subject: origin,
    nextStep: 'leave out what the build does not need: list it in .dockerignore',
  });
}

/** The error for an entry that a context cannot have. */
export function badArchive(origin: string, path: string, fault: string): InitlessError {
  return new InitlessError('BAD_ARCHIVE', `${origin}: ${showPath(path)} ${fault}`, {
    subject: origin,
    nextStep: 'remove it, or list it in .dockerignore; a folder may hold files, folders, and links that stay within it',
  });
}

function checkLinks(origin: string, entries: ReadonlyMap<string, Entry>): void {
  const links = new Map<string, string>();
  for (const entry of entries.values()) if (entry.kind === 'link') links.set(entry.path, entry.target);
  for (const [path, target] of links) {
    if (/\p{Cc}/u.test(target) || target.includes('\uFFFD') || target === '') {
      throw badArchive(origin, path, `is a link to ${showPath(target)}, which is not a path`);
    }
    if (leadsOutside(path, links)) throw badArchive(origin, path, `is a link that leads outside: ${showPath(target)}`);
  }
}

function addParents(origin: string, entries: Map<string, Entry>): void {
  for (const path of [...entries.keys()]) {
    for (let up = posix.dirname(path); up !== '.'; up = posix.dirname(up)) {
      const parent = entries.get(up);
      if (parent === undefined) entries.set(up, { kind: 'directory', path: up });
      else if (parent.kind !== 'directory') throw badArchive(origin, path, `lies below ${showPath(up)}, no folder`);
      else break;
    }
  }
  checkLimits(origin, [...entries.values()]);
}

async function readText(origin: string, file: Extract<Entry, { kind: 'file' }>): Promise<string> {
  if (file.size > MAX_CONFIG_BYTES) {
    throw badArchive(origin, file.path, `has ${file.size} bytes, ${MAX_CONFIG_BYTES} are the most`);
  }
  const pieces: Buffer[] = [];
  for await (const piece of file.read()) pieces.push(piece);
  return Buffer.concat(pieces).toString('utf8');
}
