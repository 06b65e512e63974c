import { constants } from 'node:fs';
import { open, opendir, readFile, readlink, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { InitlessError } from '../../proto/rpc/errors.js';
import { DOCKERFILE_NAMES } from '../config/defaults.js';
import { createFilter, type Filter } from './ignore.js';
import { CONFIG_FILE, MAX_ENTRIES } from './limits.js';
import { PIECE_BYTES, packTree } from './pack.js';
import { badArchive, buildTree, type Entry, type Tree, tooLarge } from './tree.js';

/**
 * Reads a service's folder.
 *
 * @param origin what it is called in messages.
 * Errors: NOT_FOUND, and those of `buildTree`.
 */
export async function readFolder(folder: string, origin: string = folder): Promise<Tree> {
  const found = await stat(folder).catch(() => undefined);
  if (!found?.isDirectory()) {
    throw new InitlessError('NOT_FOUND', `there is no folder ${folder}`, {
      subject: origin,
      nextStep: 'name a folder with a Dockerfile and a config.yaml',
    });
  }
  const filter = await readIgnoreFile(origin, folder);
  const entries: Entry[] = [];
  const pending = [''];
  for (let below = pending.pop(); below !== undefined; below = pending.pop()) {
    for await (const item of await opendir(join(folder, below))) {
      const path = below === '' ? item.name : `${below}/${item.name}`;
      const kept = filter.keeps(path);
      if (kept) entries.push(await describe(origin, folder, path, item));
      // What is ignored is not even looked into, unless a rule may bring back something below it.
      if (item.isDirectory() && (kept || filter.bringsBack)) pending.push(path);
      if (entries.length > MAX_ENTRIES) throw tooLarge(origin, `more than ${MAX_ENTRIES} entries`);
    }
  }
  return await buildTree(origin, entries);
}

/**
 * A service's folder as the archive that ApplyService takes, in pieces of 64 KiB at most. Errors: those of
 * {@link readFolder}.
 */
export async function* packFolder(folder: string): AsyncGenerator<Buffer> {
  yield* packTree(await readFolder(folder));
}

async function readIgnoreFile(origin: string, folder: string): Promise<Filter> {
  const text = await readFile(join(folder, '.dockerignore'), 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return '';
    throw error;
  });
  return createFilter(origin, text, [CONFIG_FILE, ...DOCKERFILE_NAMES]);
}

async function describe(
  origin: string,
  folder: string,
  path: string,
  item: { isDirectory(): boolean; isSymbolicLink(): boolean; isFile(): boolean },
): Promise<Entry> {
  const full = join(folder, path);
  if (item.isDirectory()) return { kind: 'directory', path };
  if (item.isSymbolicLink()) return { kind: 'link', path, target: await readlink(full) };
  if (!item.isFile()) throw badArchive(origin, path, 'is a socket, a pipe or a device');
  const { size, mode } = await stat(full);
  return { kind: 'file', path, executable: (mode & 0o100) !== 0, size, read: () => readExactly(origin, full, size) };
}

/** The content of a file that must still be the one that was listed. */
async function* readExactly(origin: string, path: string, size: number): AsyncGenerator<Buffer> {
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    let left = size;
    const now = await file.stat();
    if (now.size !== size) throw changed(origin, path);
    while (left > 0) {
      const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(Math.min(PIECE_BYTES, left)));
      if (bytesRead === 0) throw changed(origin, path);
      left -= bytesRead;
      yield buffer.subarray(0, bytesRead);
    }
  } finally {
    await file.close();
  }
}

function changed(origin: string, path: string): InitlessError {
  return new InitlessError('BUSY', `${path} changed while it was read`, {
    subject: origin,
    nextStep: 'try again when the folder is at rest',
  });
}
