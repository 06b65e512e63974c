import { posix } from 'node:path';
import { z } from 'zod';
import type { VolumeMount } from '../../proto/gen/initless/v1/types.js';

/** Volumes that one service may have. */
const MOST = 64;
const LIST = `a list of at most ${MOST} volumes, such as ["data:/var/lib/app", "/srv/models:/models:ro"]`;
const ENTRY = '"SOURCE:/path/inside", with ":ro" behind it or not, or a map with source, target and read_only';
const SOURCE =
  'an absolute path on the host, without "..", or the name of a volume: letters, digits, "_", "." and "-", 128 at most';
const TARGET =
  'an absolute path inside, without "..", spaces, colons and backslashes, other than "/", /proc, /sys, /dev, what is in these, and /etc/hosts, /etc/hostname and /etc/resolv.conf';
const MODE = '"ro" or "rw" behind the second colon';
const KEYS = ['source', 'target', 'read_only', 'type'];

/** Where the kernel's and our own mounts are in every instance. */
const TAKEN = /^\/(?:(?:proc|sys|dev)(?:\/.*)?|etc\/(?:hosts|hostname|resolv\.conf))?$/;
const NAME = /^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$/;

/** What is wrong with an entry: where in it, and what is expected there. */
class Wrong extends Error {
  readonly path: readonly string[];

  constructor(expected: string, ...path: string[]) {
    super(expected);
    this.path = path;
  }
}

/**
 * The key `volumes`: bind mounts in Docker's two forms, "SOURCE:/path/inside[:ro|rw]" and a map. Whether a path is there
 * is for the host to say: nobody else can see it.
 */
export const volumes = z
  .unknown()
  .transform((found, context): VolumeMount[] => {
    if (!Array.isArray(found) || found.length > MOST) {
      context.addIssue({ code: 'custom', message: LIST });
      return z.NEVER;
    }
    const targets = new Set<string>();
    return found.flatMap((entry: unknown, index): VolumeMount[] => {
      try {
        const volume = typeof entry === 'string' ? shortForm(entry) : longForm(entry);
        if (targets.has(volume.target)) throw new Wrong(`another path inside: ${volume.target} is that of another one`);
        targets.add(volume.target);
        return [volume];
      } catch (error) {
        if (!(error instanceof Wrong)) throw error;
        context.addIssue({ code: 'custom', path: [index, ...error.path], message: error.message });
        return [];
      }
    });
  })
  .optional();

function shortForm(text: string): VolumeMount {
  const [source = '', target, mode = 'rw', ...more] = text.split(':');
  if (target === undefined || more.length > 0) throw new Wrong(ENTRY);
  if (mode !== 'ro' && mode !== 'rw') throw new Wrong(MODE);
  return { source: checkSource(source), target: checkTarget(target), readOnly: mode === 'ro' };
}

function longForm(entry: unknown): VolumeMount {
  if (typeof entry !== 'object' || entry === null || Array.isArray(entry)) throw new Wrong(ENTRY);
  const map = entry as Record<string, unknown>;
  const unknown = Object.keys(map).find((key) => !KEYS.includes(key));
  if (unknown !== undefined) throw new Wrong(`one of ${KEYS.join(', ')}`, unknown);
  const { source, target, read_only: readOnly, type } = map;
  const checked = checkSource(source, 'source');
  // Docker wants the kind to be said; here the source says it.
  const kind = checked.startsWith('/') ? 'bind' : 'volume';
  if (type !== undefined && type !== kind) throw new Wrong(`"${kind}", as the source says, or nothing`, 'type');
  if (readOnly !== undefined && typeof readOnly !== 'boolean') throw new Wrong('true or false', 'read_only');
  return { source: checked, target: checkTarget(target, 'target'), readOnly: readOnly ?? false };
}

function checkSource(source: unknown, ...path: string[]): string {
  if (typeof source === 'string' && NAME.test(source)) return source;
  if (!isPath(source)) throw new Wrong(SOURCE, ...path);
  return tidy(source);
}

function checkTarget(target: unknown, ...path: string[]): string {
  if (!isPath(target) || /[\s\\]/.test(target) || TAKEN.test(tidy(target))) throw new Wrong(TARGET, ...path);
  return tidy(target);
}

function isPath(path: unknown): path is string {
  return (
    typeof path === 'string' && path.length <= 1024 && /^\/[^:\p{Cc}]*$/u.test(path) && !path.split('/').includes('..')
  );
}

/** Without doubled or closing slashes, so that one folder has one name. */
function tidy(path: string): string {
  return posix.normalize(path).replace(/(?<=.)\/$/, '');
}
