import { type FileHandle, open, stat } from 'node:fs/promises';
import type { TransferChunk } from '../../proto/gen/initless/v1/transfer.js';
import { MAX_EXTENT, readAll, type SparseIndex } from '../memory/sparse.js';
import { CHUNK, PIECE, sha256 } from './parts.js';

/** A file without holes, in chunks. Errors: those of reading. */
export async function chunksOf(file: string, signal?: AbortSignal): Promise<{ size: number; chunks: TransferChunk[] }> {
  const { size } = await stat(file);
  const chunks: TransferChunk[] = [];
  const handle = await open(file, 'r');
  try {
    const buffer = Buffer.allocUnsafe(Math.min(CHUNK, size));
    for (let offset = 0; offset < size; offset += CHUNK) {
      signal?.throwIfAborted();
      const bytes = await readAll(handle, buffer.subarray(0, Math.min(CHUNK, size - offset)), offset, file);
      chunks.push({ offset, length: bytes.length, sha256: sha256(bytes) });
    }
  } finally {
    await handle.close();
  }
  return { size, chunks };
}

/** A memory file in chunks: its extents, with the digests that they were sealed with. */
export function chunksOfMemory({ size, extents }: SparseIndex): { size: number; chunks: TransferChunk[] } {
  const chunks = extents.map(({ offset, length, sha256 }) => ({ offset, length, sha256: Buffer.from(sha256, 'hex') }));
  return { size, chunks };
}

/** The bytes of chunks, in pieces. Errors: CHECKPOINT_DAMAGED for a file that is cut short, those of reading. */
export async function* piecesOf(file: string, chunks: readonly TransferChunk[]): AsyncGenerator<Buffer> {
  const handle = await open(file, 'r');
  try {
    for (const { offset, length } of chunks) {
      for (let at = 0; at < length; at += PIECE) {
        yield await readAll(handle, Buffer.allocUnsafe(Math.min(PIECE, length - at)), offset + at, file);
      }
    }
  } finally {
    await handle.close();
  }
}

/** The chunks that an open file does not hold yet, by their numbers. Errors: those of reading. */
export async function missingChunks(
  handle: FileHandle,
  chunks: readonly TransferChunk[],
  signal: AbortSignal,
): Promise<number[]> {
  const { size } = await handle.stat();
  const buffer = Buffer.allocUnsafe(chunks.length === 0 ? 0 : MAX_EXTENT);
  const missing: number[] = [];
  for (const [number, { offset, length, sha256: expected }] of chunks.entries()) {
    signal.throwIfAborted();
    const there = offset + length <= size;
    const right = there && sha256(await readAll(handle, buffer.subarray(0, length), offset, '')).equals(expected);
    if (!right) missing.push(number);
  }
  return missing;
}
