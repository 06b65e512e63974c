import { createHash, type Hash } from 'node:crypto';
import { type FileHandle, open, rm, stat } from 'node:fs/promises';
import { z } from 'zod';
import { damaged } from '../checkpoint/manifest.js';
import { dataWithin } from './holes.js';
import { PAGE } from './model.js';

/** A stretch of a sparse file that holds data. Everything outside all extents reads as zeros. */
export interface Extent {
  /** Bytes, multiples of 4096. */
  offset: number;
  length: number;
  /** Of its bytes, in hexadecimal. */
  sha256: string;
}

/** What a sparse file holds: enough to check, copy and send it without looking for its holes. */
export interface SparseIndex {
  /** Path below the folder that the index is about. */
  path: string;
  /** Bytes, holes included. */
  size: number;
  /** In order, without overlaps. */
  extents: Extent[];
}

/** Most bytes of an extent, which are also what is held in memory of a file at a time. */
export const MAX_EXTENT = 4 * 1024 * 1024;
/** Zeros are left out in pieces of this size; smaller ones would cost more in extents than they save on the disk. */
const ZERO_PIECE = 64 * 1024;
const ZEROS = Buffer.alloc(ZERO_PIECE);

/** Writes a sparse file from its beginning to its end. {@link finish} or {@link close} must be called. */
export class SparseWriter {
  readonly #handle: FileHandle;
  readonly #extents: Extent[] = [];
  #open: { offset: number; length: number; hash: Hash } | undefined;

  private constructor(handle: FileHandle) {
    this.#handle = handle;
  }

  /** Makes a file that only root may read. Errors: of open(2), EEXIST among them. */
  static async create(file: string): Promise<SparseWriter> {
    return new SparseWriter(await open(file, 'wx', 0o400));
  }

  /** Writes bytes behind everything written so far. Zeros that fill whole pieces become holes. */
  async write(offset: number, bytes: Buffer): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      const piece = Math.min(ZERO_PIECE - ((offset + at) % ZERO_PIECE), bytes.length - at);
      let end = at + piece;
      if (isHole(bytes.subarray(at, end))) {
        at = end;
        continue;
      }
      while (end < bytes.length && !isHole(bytes.subarray(end, end + ZERO_PIECE))) {
        end = Math.min(end + ZERO_PIECE, bytes.length);
      }
      await this.#data(offset + at, bytes.subarray(at, end));
      at = end;
    }
  }

  async #data(offset: number, bytes: Buffer): Promise<void> {
    await writeAll(this.#handle, bytes, offset);
    for (let at = 0; at < bytes.length; ) {
      const last = this.#open;
      const goesOn = last !== undefined && last.offset + last.length === offset + at && last.length < MAX_EXTENT;
      if (!goesOn) this.#close();
      this.#open ??= { offset: offset + at, length: 0, hash: createHash('sha256') };
      const part = bytes.subarray(at, at + MAX_EXTENT - this.#open.length);
      this.#open.hash.update(part);
      this.#open.length += part.length;
      at += part.length;
    }
  }

  #close(): void {
    if (this.#open === undefined) return;
    const { offset, length, hash } = this.#open;
    this.#extents.push({ offset, length, sha256: hash.digest('hex') });
    this.#open = undefined;
  }

  /** Gives the file its size, makes it durable and closes it. */
  async finish(size: number): Promise<Omit<SparseIndex, 'path'>> {
    this.#close();
    await this.#handle.truncate(size);
    await this.#handle.sync();
    await this.close();
    return { size, extents: this.#extents };
  }

  /** Closes the file as it is. May be called again. */
  async close(): Promise<void> {
    await this.#handle.close();
  }
}

/** Whether bytes fill a piece, with zeros. */
function isHole(bytes: Buffer): boolean {
  return bytes.length === ZERO_PIECE && bytes.equals(ZEROS);
}

/** The digest of a sparse file: over its size and, for each extent, where it lies and what it holds. */
export function digestOf(index: SparseIndex): string {
  const hash = createHash('sha256').update(`${index.size}\n`);
  for (const { offset, length, sha256 } of index.extents) hash.update(`${offset} ${length} ${sha256}\n`);
  return `sha256:${hash.digest('hex')}`;
}

/**
 * Makes sure that a sparse file is what its index says: its size, every extent's digest, and zeros everywhere else.
 * Errors: CHECKPOINT_DAMAGED with file and offset.
 */
export async function verifyMemoryFile(file: string, index: SparseIndex, signal?: AbortSignal): Promise<void> {
  const { size } = await stat(file).catch((cause: NodeJS.ErrnoException) => {
    throw damaged(`${file} cannot be read: ${cause.message}`, file, cause);
  });
  if (size !== index.size) throw damaged(`${file} had ${index.size} bytes and has ${size}`, file);
  for (const [start, end] of await dataWithin(file, gapsOf(index), signal)) {
    await expectZeros(file, start, end, signal);
  }
  for await (const _ of readExtents(file, index, signal));
}

/** The stretches of a sparse file between its extents. */
function gapsOf({ size, extents }: SparseIndex): [start: number, end: number][] {
  const gaps: [number, number][] = [];
  let next = 0;
  for (const { offset, length } of extents) {
    if (offset > next) gaps.push([next, offset]);
    next = offset + length;
  }
  if (next < size) gaps.push([next, size]);
  return gaps;
}

/** A file system may keep more than a hole's neighbours, as zeros; anything else was written later. */
async function expectZeros(file: string, start: number, end: number, signal?: AbortSignal): Promise<void> {
  const handle = await open(file, 'r');
  try {
    for (let offset = start; offset < end; offset += ZERO_PIECE) {
      signal?.throwIfAborted();
      const bytes = await readAll(handle, Buffer.allocUnsafe(Math.min(ZERO_PIECE, end - offset)), offset, file);
      const wrong = bytes.findIndex((byte) => byte !== 0);
      if (wrong !== -1) {
        throw damaged(`${file} was altered since it was sealed: it was empty at offset ${offset + wrong}`, file);
      }
    }
  } finally {
    await handle.close();
  }
}

/**
 * Copies a sparse file, data only, checking it on the way; the copy is durable and only root may read it. Nothing is left
 * of a copy that failed. Errors: CHECKPOINT_DAMAGED with file and offset, those of open(2), ENOSPC.
 */
export async function copyByExtents(from: string, to: string, index: SparseIndex, signal?: AbortSignal): Promise<void> {
  const handle = await open(to, 'wx', 0o400);
  try {
    for await (const { offset, bytes } of readExtents(from, index, signal)) await writeAll(handle, bytes, offset);
    await handle.truncate(index.size);
    await handle.sync();
  } catch (error) {
    await rm(to, { force: true });
    throw error;
  } finally {
    await handle.close();
  }
}

/**
 * A sparse file's data, extent by extent, each after its digest was found right. The bytes are good until the next one.
 * Errors: CHECKPOINT_DAMAGED with file and offset.
 */
export async function* readExtents(
  file: string,
  index: SparseIndex,
  signal?: AbortSignal,
): AsyncGenerator<{ offset: number; bytes: Buffer }> {
  const handle = await open(file, 'r');
  try {
    const buffer = Buffer.allocUnsafe(MAX_EXTENT);
    for (const { offset, length, sha256 } of index.extents) {
      signal?.throwIfAborted();
      const bytes = await readAll(handle, buffer.subarray(0, length), offset, file);
      if (createHash('sha256').update(bytes).digest('hex') !== sha256) {
        throw damaged(`${file} was altered since it was sealed: not its ${length} bytes at offset ${offset}`, file);
      }
      yield { offset, bytes };
    }
  } finally {
    await handle.close();
  }
}

/** Fills a buffer from a file. Errors: CHECKPOINT_DAMAGED where the file ends before. */
export async function readAll(handle: FileHandle, buffer: Buffer, offset: number, file: string): Promise<Buffer> {
  for (let filled = 0; filled < buffer.length; ) {
    const { bytesRead } = await handle.read(buffer, filled, buffer.length - filled, offset + filled);
    if (bytesRead === 0) throw damaged(`${file} is cut short: it ends at offset ${offset + filled}`, file);
    filled += bytesRead;
  }
  return buffer;
}

/** Writes a whole buffer. */
export async function writeAll(handle: FileHandle, bytes: Buffer, offset: number): Promise<void> {
  for (let written = 0; written < bytes.length; ) {
    written += (await handle.write(bytes, written, bytes.length - written, offset + written)).bytesWritten;
  }
}

const pages = z.number().int().nonnegative().multipleOf(PAGE);
const INDEX = z
  .array(
    z.strictObject({
      path: z.string().min(1),
      size: pages,
      extents: z.array(
        z.strictObject({
          offset: pages,
          length: pages.min(PAGE).max(MAX_EXTENT),
          sha256: z.string().regex(/^[0-9a-f]{64}$/),
        }),
      ),
    }),
  )
  .refine((files) => files.every(inOrder), 'extents overlap, or lie outside their file');

function inOrder({ size, extents }: SparseIndex): boolean {
  let next = 0;
  for (const { offset, length } of extents) {
    if (offset < next) return false;
    next = offset + length;
  }
  return next <= size;
}

/** The text of `extents.json`: what the sparse files of a folder hold. */
export function writeIndex(files: readonly SparseIndex[]): string {
  return `${JSON.stringify(files)}\n`;
}

/** Reads {@link writeIndex}'s text. Errors: CHECKPOINT_DAMAGED. */
export function readIndex(text: string, file: string): SparseIndex[] {
  try {
    return INDEX.parse(JSON.parse(text));
  } catch (cause) {
    throw damaged(`${file} is not the index of memory files: ${(cause as Error).message}`, file, cause);
  }
}
