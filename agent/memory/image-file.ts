import { damaged } from '../checkpoint/manifest.js';

/** First number of every image file of CRIU. */
const COMMON_MAGIC = 0x54564319;
/** Second number of an image file: what it holds. */
const MAGIC = {
  mm: 0x57492820,
  pagemap: 0x56084025,
  files: 0x56303138,
  pstree: 0x50273030,
  core: 0x55053847,
  mounts: 0x55563928,
} as const;
const HEAD_BYTES = 8;
const LENGTH_BYTES = 4;

/** What an image file that is read here holds. */
export type ImageKind = keyof typeof MAGIC;

/** One message of an image file, undecoded. */
export interface ImageEntry {
  /** Where in its file its length stands. */
  offset: number;
  bytes: Uint8Array;
}

/** Reads and writes one kind of message, as generated from proto/criu. */
export interface Codec<T> {
  encode(message: T): { finish(): Uint8Array };
  decode(bytes: Uint8Array): T;
}

/**
 * Takes an image file apart: two numbers that say what it is, then each message after its length; all numbers are
 * unsigned, four bytes, least significant first. The entries are views of `bytes`.
 * @param file its name, for messages. Errors: CHECKPOINT_DAMAGED with file and offset.
 */
export function parseImage(bytes: Buffer, kind: ImageKind, file: string): ImageEntry[] {
  if (bytes.length < HEAD_BYTES) {
    throw damaged(`${file} is cut short: ${bytes.length} bytes, its head alone has ${HEAD_BYTES}`, file);
  }
  expectMagic(bytes, 0, COMMON_MAGIC, 'image file', file);
  expectMagic(bytes, LENGTH_BYTES, MAGIC[kind], `image of the kind ${kind}`, file);
  const entries: ImageEntry[] = [];
  for (let offset = HEAD_BYTES; offset < bytes.length; ) {
    const start = offset + LENGTH_BYTES;
    if (start > bytes.length) {
      throw damaged(
        `${file} is cut short at offset ${offset}: a length has 4 bytes, ${bytes.length - offset} are left`,
        file,
      );
    }
    const length = bytes.readUInt32LE(offset);
    if (length > bytes.length - start) {
      throw damaged(
        `${file} is cut short, or a length in it is wrong: the entry at offset ${offset} has ${length} bytes, ${bytes.length - start} are left`,
        file,
      );
    }
    entries.push({ offset, bytes: bytes.subarray(start, start + length) });
    offset = start + length;
  }
  return entries;
}

function expectMagic(bytes: Buffer, offset: number, wanted: number, what: string, file: string): void {
  const found = bytes.readUInt32LE(offset);
  if (found === wanted) return;
  throw damaged(`${file} is no ${what} of CRIU: at offset ${offset} stands ${hex(found)}, not ${hex(wanted)}`, file);
}

/** An image file of these messages. */
export function writeImage(kind: ImageKind, entries: readonly Uint8Array[]): Buffer {
  const size = entries.reduce((sum, entry) => sum + LENGTH_BYTES + entry.length, HEAD_BYTES);
  const image = Buffer.alloc(size);
  image.writeUInt32LE(COMMON_MAGIC, 0);
  image.writeUInt32LE(MAGIC[kind], LENGTH_BYTES);
  let offset = HEAD_BYTES;
  for (const entry of entries) {
    image.writeUInt32LE(entry.length, offset);
    image.set(entry, offset + LENGTH_BYTES);
    offset += LENGTH_BYTES + entry.length;
  }
  return image;
}

/**
 * The message of an entry. One that would not be written back whole (the decoder stops at some kinds of damage without a
 * word) is refused: what it lost would be missing after the restore. CRIU writes every number in its shortest form, so
 * that a whole one has its old length. Errors: CHECKPOINT_DAMAGED with file and offset.
 */
export function decodeEntry<T>(codec: Codec<T>, { offset, bytes }: ImageEntry, file: string): T {
  let message: T;
  let back: Uint8Array;
  try {
    message = codec.decode(bytes);
    back = codec.encode(message).finish();
  } catch (cause) {
    throw damaged(`${file}: the entry at offset ${offset} cannot be read: ${(cause as Error).message}`, file, cause);
  }
  if (back.length !== bytes.length) {
    throw damaged(`${file}: the entry at offset ${offset} cannot be read: it does not end where it should`, file);
  }
  return message;
}

/** A number as messages show addresses and bits. */
export function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}
