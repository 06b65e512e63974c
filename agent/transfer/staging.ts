import { constants } from 'node:fs';
import { type FileHandle, mkdir, open, readdir, rm, stat, statfs } from 'node:fs/promises';
import path from 'node:path';
import type { TransferPart } from '../../proto/gen/initless/v1/transfer.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { writeAll } from '../memory/sparse.js';
import { missingChunks } from './chunks.js';
import { dataOf, idOf, sha256 } from './parts.js';
import { type Source, SourceFailure } from './source.js';

/** A part that was begun is kept for so long after its last byte, for a copy that goes on, milliseconds. */
const KEPT_MS = 6 * 3_600_000;
/** Most chunks in one call. */
const CHUNKS = 1_024;

/** Told of bytes as they come, and of those that were there already. */
export interface Tally {
  came: (bytes: number) => void;
  found: (bytes: number) => void;
}

/**
 * Parts on their way, in files that are named by what they will hold. What is on the disk is all there is to know of them: a
 * copy that goes on hashes it again.
 */
export class Staging {
  readonly #root: string;

  constructor(root: string) {
    this.#root = root;
  }

  /** Makes the folder of a revision's parts. */
  async open(service: string, revision: string): Promise<string> {
    const folder = path.join(this.#root, `${service}@${revision}`);
    await mkdir(folder, { recursive: true, mode: 0o700 });
    return folder;
  }

  /** Removes parts that nobody went on with. Those of folders in `busy` stay. */
  async sweep(busy: ReadonlySet<string>, now: number): Promise<void> {
    await mkdir(this.#root, { recursive: true, mode: 0o700 });
    for (const name of await readdir(this.#root)) {
      const folder = path.join(this.#root, name);
      if (busy.has(folder)) continue;
      const files = await readdir(folder);
      const times = await Promise.all([folder, ...files.map((file) => path.join(folder, file))].map(changedAt));
      if (now - Math.max(...times) > KEPT_MS) await rm(folder, { recursive: true, force: true });
    }
  }
}

async function changedAt(file: string): Promise<number> {
  return (await stat(file)).mtimeMs;
}

/** Makes sure that a disk has room for parts. Errors: DISK_FULL. */
export async function checkRoom(folder: string, parts: readonly TransferPart[]): Promise<void> {
  const { bavail, bsize } = await statfs(folder);
  const needed = parts.reduce((sum, part) => sum + dataOf(part), 0);
  if (needed <= bavail * bsize) return;
  throw new InitlessError('DISK_FULL', `a copy needs ${needed} bytes in ${folder}, and ${bavail * bsize} are free`, {
    subject: folder,
    nextStep: "free some space on the host, for instance with 'initless clean --dry-run' to see what is ours",
  });
}

/**
 * Brings a part into a folder, and gives its file. Chunks that are there already are not fetched; each is checked before it is
 * written. Errors: {@link SourceFailure}, DISK_FULL, the signal's reason.
 */
export async function stage(
  source: Source,
  part: TransferPart,
  folder: string,
  tally: Tally,
  signal: AbortSignal,
): Promise<string> {
  const file = path.join(folder, idOf(part));
  const handle = await open(file, constants.O_RDWR | constants.O_CREAT, 0o600);
  try {
    const missing = await missingChunks(handle, part.chunks, signal);
    const absent = new Set(missing);
    tally.found(part.chunks.reduce((sum, { length }, number) => sum + (absent.has(number) ? 0 : length), 0));
    for (const [first, count] of runsOf(missing)) {
      await fill(source, part, { first, count }, handle, tally, signal);
    }
    // Not made durable: what a crash takes is found to be missing and fetched again, and a sealed checkpoint is made durable.
    await handle.truncate(part.size);
  } finally {
    await handle.close();
  }
  return file;
}

async function fill(
  source: Source,
  part: TransferPart,
  { first, count }: { first: number; count: number },
  handle: FileHandle,
  tally: Tally,
  signal: AbortSignal,
): Promise<void> {
  let number = first;
  for await (const bytes of source.fetch(part, first, count, signal)) {
    const chunk = part.chunks[number++];
    if (chunk === undefined || !sha256(bytes).equals(chunk.sha256)) {
      throw new SourceFailure(`it sent other bytes than it had named for ${part.name}, chunk ${number - 1}`, true);
    }
    await writeAll(handle, bytes, chunk.offset);
    tally.came(bytes.length);
  }
}

/** Numbers in order, as stretches of those that follow each other. Pure. */
function runsOf(numbers: readonly number[]): [first: number, count: number][] {
  const runs: [number, number][] = [];
  for (const number of numbers) {
    const last = runs.at(-1);
    if (last && last[0] + last[1] === number && last[1] < CHUNKS) last[1]++;
    else runs.push([number, 1]);
  }
  return runs;
}
