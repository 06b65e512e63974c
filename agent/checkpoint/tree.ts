import { createHash } from 'node:crypto';
import { createReadStream, type Dirent, lstatSync } from 'node:fs';
import { lstat, open, readdir, readlink } from 'node:fs/promises';
import path from 'node:path';
import { digestOf, readIndex, type SparseIndex, verifyMemoryFile } from '../memory/sparse.js';
import { readIfThere } from '../runtime/files.js';
import { type Entry, EXTENTS, MEMORY } from './manifest.js';

/**
 * Every entry below `dir`, sorted by path, files with their digests. The folder itself is left out. Memory files, which the
 * folder's index of them names, are digested by their extents: most of them is holes.
 * Errors: CHECKPOINT_DAMAGED for a memory file that is not what the index says, those of reading.
 */
export async function readTree(dir: string, signal?: AbortSignal): Promise<Entry[]> {
  const index = path.join(dir, EXTENTS);
  const text = await readIfThere(index);
  const memory = new Map(text === '' ? [] : readIndex(text, index).map((file) => [path.join(MEMORY, file.path), file]));
  const entries: Entry[] = [];
  for (const relative of await walk(dir, '')) {
    signal?.throwIfAborted();
    entries.push(await readEntry(dir, relative, memory.get(relative), signal));
  }
  return entries;
}

/** One entry as it is now. */
async function readEntry(
  dir: string,
  relative: string,
  memory: SparseIndex | undefined,
  signal?: AbortSignal,
): Promise<Entry> {
  const file = path.join(dir, relative);
  const stat = await lstat(file);
  const common = { path: relative, mode: stat.mode & 0o7777, uid: stat.uid, gid: stat.gid };
  if (stat.isDirectory()) return { ...common, type: 'directory' };
  if (stat.isSymbolicLink()) return { ...common, type: 'link', target: await readlink(file) };
  if (!stat.isFile()) return { ...common, type: 'special' };
  if (memory) {
    await verifyMemoryFile(file, memory, signal);
    const data = memory.extents.reduce((sum, { length }) => sum + length, 0);
    return { ...common, type: 'file', size: stat.size, data, digest: digestOf(memory) };
  }
  return { ...common, type: 'file', size: stat.size, digest: await digestOfFile(file) };
}

/** "sha256:..." of a file's content. */
async function digestOfFile(file: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(file, { highWaterMark: 1 << 20 })) hash.update(chunk as Buffer);
  return `sha256:${hash.digest('hex')}`;
}

/** Paths below `dir`, sorted, folders before what is in them. */
async function walk(dir: string, relative: string): Promise<string[]> {
  const found: string[] = [];
  const children: Dirent[] = await readdir(path.join(dir, relative), { withFileTypes: true });
  children.sort((a, b) => (a.name < b.name ? -1 : 1));
  for (const child of children) {
    const at = path.join(relative, child.name);
    found.push(at);
    if (child.isDirectory()) found.push(...(await walk(dir, at)));
  }
  return found;
}

/** The first difference between what a folder held and what it holds, as a phrase, or undefined when there is none. */
export function difference(was: readonly Entry[], is: readonly Entry[]): string | undefined {
  const now = new Map(is.map((entry) => [entry.path, entry]));
  for (const entry of was) {
    const found = now.get(entry.path);
    if (found === undefined) return `${entry.path} is missing`;
    now.delete(entry.path);
    if (found.type !== entry.type) return `${entry.path} was a ${entry.type} and is a ${found.type}`;
    if (found.size !== entry.size) return `${entry.path} had ${entry.size} bytes and has ${found.size}`;
    if (found.digest !== entry.digest) return `${entry.path} had the digest ${entry.digest} and has ${found.digest}`;
    if (found.target !== entry.target) return `${entry.path} led to ${entry.target} and leads to ${found.target}`;
    if (found.mode !== entry.mode || found.uid !== entry.uid || found.gid !== entry.gid) {
      return `${entry.path} has another mode or owner than it had`;
    }
  }
  const [extra] = now.keys();
  return extra === undefined ? undefined : `${extra} was added`;
}

/**
 * What changes whenever a file's content, mode or owner does, for all entries: sizes, inodes and change times, which
 * nothing short of setting the clock can forge. Cheap enough for every restore. A missing entry gives another text too.
 */
export function signature(dir: string, entries: readonly Entry[]): string {
  const parts: string[] = [];
  for (const entry of entries) {
    const stat = lstatSync(path.join(dir, entry.path), { bigint: true, throwIfNoEntry: false });
    parts.push(stat ? `${stat.ino}:${stat.size}:${stat.ctimeNs}:${stat.mode}` : 'missing');
  }
  return parts.join(' ');
}

/** Bytes of a folder's files; what is in folders of it does not count. */
export async function bytesIn(dir: string): Promise<number> {
  const sizes = await Promise.all((await readdir(dir)).map(async (name) => (await lstat(path.join(dir, name))).size));
  return sizes.reduce((sum, size) => sum + size, 0);
}

/** Makes a folder's files and folders durable, deepest first. */
export async function syncTree(dir: string, entries: readonly Entry[]): Promise<void> {
  const kinds = entries.filter((entry) => entry.type === 'file' || entry.type === 'directory').reverse();
  for (const entry of kinds) await sync(path.join(dir, entry.path));
  await sync(dir);
}

/** Makes one file or folder durable. */
export async function sync(file: string): Promise<void> {
  const handle = await open(file, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
