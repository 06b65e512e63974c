import { createHash } from 'node:crypto';
import type { TransferChunk, TransferPart } from '../../proto/gen/initless/v1/transfer.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { MAX_EXTENT } from '../memory/sparse.js';

/** Bytes of a chunk where files are divided for the sake of the copy alone. */
export const CHUNK = 1024 * 1024;
/** Most bytes in one message: at a low rate, a whole chunk would take longer than silence is borne. */
export const PIECE = 256 * 1024;

/** What names a part with this very content, on both sides: hexadecimal. */
export function idOf({ kind, name, size, chunks }: TransferPart): string {
  const hash = createHash('sha256').update(`${kind} ${size} ${chunks.length} ${name}\n`);
  for (const { offset, length, sha256 } of chunks) hash.update(`${offset} ${length} `).update(sha256);
  return hash.digest('hex');
}

/** SHA-256 of some bytes. */
export function sha256(bytes: Buffer): Buffer {
  return createHash('sha256').update(bytes).digest();
}

/** SHA-256 of a text, in hexadecimal. */
export function textDigest(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}

/** Bytes of data in a part. */
export function dataOf(part: TransferPart): number {
  return part.chunks.reduce((sum, { length }) => sum + length, 0);
}

/**
 * Makes sure that the description of a part is one: chunks in order, inside the part, neither empty nor too large.
 * Errors: COPY_FAILED.
 */
export function checkPart(part: TransferPart): void {
  const wrong = wrongChunk(part);
  if (wrong === undefined) return;
  throw new InitlessError('COPY_FAILED', `the description of ${part.name} is wrong at offset ${wrong.offset}`, {
    subject: part.name,
  });
}

function wrongChunk({ size, chunks }: TransferPart): TransferChunk | undefined {
  let next = 0;
  return chunks.find((chunk) => {
    const { offset, length, sha256 } = chunk;
    const right = offset >= next && length > 0 && length <= MAX_EXTENT && sha256.length === 32;
    next = offset + length;
    return !right || next > size;
  });
}
