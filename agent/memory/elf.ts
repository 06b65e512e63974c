/**
 * Looks into programs and libraries (ELF, 64 bits, least significant byte first: what x86-64 and arm64 run). Only what is
 * asked for is read, in pieces of a bounded size; a damaged file gives less, never a wrong read.
 */

/** A file of which any part can be read. */
export interface ReadableFile {
  /** Bytes. */
  size: number;
  /** Reads up to `length` bytes; fewer at the end of the file. The bytes are good until the next call. */
  read(offset: number, length: number): Promise<Buffer>;
}

/** One section of a file. */
export interface Section {
  name: string;
  type: number;
  /** {@link SECTION_FLAG}. */
  flags: bigint;
  offset: number;
  size: number;
  /** Index of the section that it refers to; for symbols the one that holds their names. */
  link: number;
}

/** Types of sections that are looked at (elf(5)). */
export const SECTION = { data: 1, symbols: 2, dynamicSymbols: 11 } as const;
/** Flags of sections that are looked at. */
export const SECTION_FLAG = { loaded: 2n, code: 4n } as const;

const HEADER_BYTES = 64;
const SECTION_BYTES = 64;
const SYMBOL_BYTES = 24;
/** More than the largest programs have; what is beyond is not looked at. */
const MAX_SECTIONS = 10_000;
const MAX_NAMES_BYTES = 1024 * 1024;
const MAX_TABLE_BYTES = 256 * 1024 * 1024;
/** Different names that end alike; a linker writes each name once. */
const MAX_PLACES = 256;
/** Read at once when a file is gone through. */
const PIECE = 1024 * 1024;
const NO_BITS = 8;

/** Whether a file is such a program or library at all. */
export async function isElf(file: ReadableFile): Promise<boolean> {
  const head = await file.read(0, HEADER_BYTES);
  // Magic number, 64 bits, least significant byte first.
  return head.length === HEADER_BYTES && head.subarray(0, 6).equals(Buffer.from('\x7fELF\x02\x01', 'latin1'));
}

/** A file's sections; none where it has none, or where its table of them is damaged. */
export async function readSections(file: ReadableFile): Promise<Section[]> {
  const head = await file.read(0, HEADER_BYTES);
  if (head.length < HEADER_BYTES) return [];
  const table = Number(head.readBigUInt64LE(0x28));
  if (head.readUInt16LE(0x3a) !== SECTION_BYTES || table === 0) return [];
  let count = head.readUInt16LE(0x3c);
  let namesIndex = head.readUInt16LE(0x3e);
  if (count === 0 || namesIndex === 0xffff) {
    // Numbers too large for the header stand in the first section.
    const first = await whole(file, table, SECTION_BYTES);
    if (first === undefined) return [];
    if (count === 0) count = Number(first.readBigUInt64LE(0x20));
    if (namesIndex === 0xffff) namesIndex = first.readUInt32LE(0x28);
  }
  if (count > MAX_SECTIONS) return [];
  const entries = await whole(file, table, count * SECTION_BYTES);
  if (entries === undefined) return [];
  const raw = Array.from({ length: count }, (_, i) => {
    const at = i * SECTION_BYTES;
    return {
      nameAt: entries.readUInt32LE(at),
      type: entries.readUInt32LE(at + 0x04),
      flags: entries.readBigUInt64LE(at + 0x08),
      offset: Number(entries.readBigUInt64LE(at + 0x18)),
      size: Number(entries.readBigUInt64LE(at + 0x20)),
      link: entries.readUInt32LE(at + 0x28),
    };
  });
  const names = raw[namesIndex];
  if (names === undefined || names.size > MAX_NAMES_BYTES) return [];
  const text = await whole(file, names.offset, names.size);
  if (text === undefined) return [];
  return raw.map(({ nameAt, ...section }) => ({ name: textAt(text, nameAt), ...section }));
}

/**
 * Names of the symbols that a file defines and that end in one of `endings`; those that it only refers to do not count.
 * Both tables are looked at: that for linking at run time, and the full one where it was not stripped.
 */
export async function definedSymbols(
  file: ReadableFile,
  sections: readonly Section[],
  endings: readonly string[],
): Promise<string[]> {
  const found = new Set<string>();
  for (const type of [SECTION.dynamicSymbols, SECTION.symbols]) {
    const table = sections.find((section) => section.type === type);
    const names = sections[table?.link ?? -1];
    if (table === undefined || names === undefined || names.size > MAX_TABLE_BYTES) continue;
    const text = await whole(file, names.offset, names.size);
    if (text === undefined) continue;
    const places = endings.flatMap((ending) => placesOf(text, ending));
    if (places.length === 0) continue;
    for await (const piece of pieces(file, table, Math.floor(PIECE / SYMBOL_BYTES) * SYMBOL_BYTES)) {
      for (let at = 0; at + SYMBOL_BYTES <= piece.length; at += SYMBOL_BYTES) {
        const name = piece.readUInt32LE(at);
        // Section 0: defined elsewhere.
        if (piece.readUInt16LE(at + 6) === 0) continue;
        // Symbols may share the end of a name, and begin anywhere in it.
        if (places.some(({ first, last }) => name >= first && name <= last)) found.add(textAt(text, name));
      }
    }
  }
  return [...found];
}

/** Where a name may begin that ends, with its 0 byte, in `ending`. */
function placesOf(text: Buffer, ending: string): { first: number; last: number }[] {
  const places: { first: number; last: number }[] = [];
  const wanted = Buffer.from(`${ending}\0`, 'latin1');
  for (
    let last = text.indexOf(wanted);
    last >= 0 && places.length < MAX_PLACES;
    last = text.indexOf(wanted, last + 1)
  ) {
    places.push({ first: last === 0 ? 0 : text.lastIndexOf(0, last - 1) + 1, last });
  }
  return places;
}

/** Which of `texts` (of up to 64 characters, one byte each) stand in one of these parts of a file. */
export async function textsIn(
  file: ReadableFile,
  parts: readonly { offset: number; size: number }[],
  texts: readonly string[],
): Promise<string[]> {
  const wanted = new Map(texts.map((text) => [text, Buffer.from(text, 'latin1')]));
  const overlap = Math.max(0, ...texts.map((text) => text.length - 1));
  const found: string[] = [];
  for (const part of parts) {
    for await (const piece of pieces(file, part, PIECE, overlap)) {
      for (const [text, bytes] of wanted) {
        if (!piece.includes(bytes)) continue;
        found.push(text);
        wanted.delete(text);
      }
      if (wanted.size === 0) return found;
    }
  }
  return found;
}

/** A part of a file, piece by piece; each begins with the last `overlap` bytes of the one before. */
async function* pieces(
  file: ReadableFile,
  part: { offset: number; size: number; type?: number },
  length: number,
  overlap = 0,
): AsyncGenerator<Buffer> {
  if (part.type === NO_BITS) return;
  const end = Math.min(part.offset + part.size, file.size);
  for (let at = part.offset; at < end; at += length - overlap) {
    yield await file.read(at, Math.min(length, end - at));
    if (at + length >= end) return;
  }
}

/** Bytes of a file, or undefined where it ends before. They stay good. */
async function whole(file: ReadableFile, offset: number, length: number): Promise<Buffer | undefined> {
  if (offset + length > file.size) return undefined;
  const bytes = Buffer.from(await file.read(offset, length));
  return bytes.length === length ? bytes : undefined;
}

/** The text at a place, up to its 0 byte. "" where there is none. */
function textAt(text: Buffer, start: number): string {
  const end = text.indexOf(0, start);
  return start < text.length && end >= 0 ? text.toString('latin1', start, end) : '';
}
