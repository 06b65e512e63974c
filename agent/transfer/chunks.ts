import { createHash } from 'node:crypto';

/** Bytes of a chunk. What was received is whole chunks, so that a copy goes on at a multiple of it. */
export const CHUNK = 1024 * 1024;

/** The sha256 of some bytes. */
export function sha256(data: Uint8Array): Buffer {
  return createHash('sha256').update(data).digest();
}

/**
 * Cuts a stream into chunks of {@link CHUNK} bytes, the last one shorter, and leaves the first `offset` bytes out.
 *
 * @param offset a multiple of the chunk's size.
 */
export async function* chunksOf(stream: AsyncIterable<Buffer>, offset: number): AsyncGenerator<Buffer> {
  let skip = offset;
  let pieces: Buffer[] = [];
  let size = 0;
  for await (const whole of stream) {
    const piece = whole.subarray(Math.min(skip, whole.length));
    skip -= whole.length - piece.length;
    for (let at = 0; at < piece.length; ) {
      const part = piece.subarray(at, at + CHUNK - size);
      pieces.push(part);
      size += part.length;
      at += part.length;
      if (size < CHUNK) continue;
      yield Buffer.concat(pieces);
      pieces = [];
      size = 0;
    }
  }
  if (size > 0) yield Buffer.concat(pieces);
}
