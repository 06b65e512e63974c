import type { ReadableFile } from '../../agent/memory/elf.js';

/** Programs and libraries made up for tests: as much of an ELF file as is looked at. */

/** What a made-up file has. */
export interface FixtureElf {
  /** Symbols in the table for linking at run time. */
  dynamic?: { name: string; defined?: boolean }[];
  /** Symbols in the full table. */
  full?: { name: string; defined?: boolean }[];
  /** Its constants. */
  constants?: string;
  /** Its code. */
  code?: string;
  /** Names of further sections. */
  sections?: string[];
}

interface Part {
  name: string;
  type: number;
  flags: bigint;
  bytes: Buffer;
  link?: number;
}

const LOADED = 2n;
const CODE = 4n;

/** The bytes of a file. */
export function elf({ dynamic = [], full = [], constants = '', code = '', sections = [] }: FixtureElf): Buffer {
  const data = (name: string, text: string, flags: bigint): Part => ({
    name,
    type: 1,
    flags,
    bytes: Buffer.from(text, 'latin1'),
  });
  const parts: Part[] = [
    { name: '', type: 0, flags: 0n, bytes: Buffer.alloc(0) },
    data('.text', code, LOADED | CODE),
    data('.rodata', constants, LOADED),
    ...symbolTable('.dynsym', '.dynstr', 11, dynamic, 3),
    ...symbolTable('.symtab', '.strtab', 2, full, 5),
    ...sections.map((name) => data(name, 'x', LOADED)),
  ];
  parts.push({ name: '.shstrtab', type: 3, flags: 0n, bytes: Buffer.alloc(0) });
  const names = textTable(parts.map(({ name }) => name));
  (parts.at(-1) as Part).bytes = names.bytes;

  let offset = 64;
  const places = parts.map(({ bytes }) => {
    const place = offset;
    offset += bytes.length;
    return place;
  });
  const head = Buffer.alloc(64);
  head.write('\x7fELF\x02\x01\x01', 0, 'latin1');
  head.writeBigUInt64LE(BigInt(offset), 0x28);
  head.writeUInt16LE(64, 0x3a);
  head.writeUInt16LE(parts.length, 0x3c);
  head.writeUInt16LE(parts.length - 1, 0x3e);
  const table = parts.map(({ type, flags, bytes, link = 0 }, i) => {
    const entry = Buffer.alloc(64);
    entry.writeUInt32LE(names.offsets[i] as number, 0);
    entry.writeUInt32LE(type, 0x04);
    entry.writeBigUInt64LE(flags, 0x08);
    entry.writeBigUInt64LE(BigInt(places[i] as number), 0x18);
    entry.writeBigUInt64LE(BigInt(bytes.length), 0x20);
    entry.writeUInt32LE(link, 0x28);
    return entry;
  });
  return Buffer.concat([head, ...parts.map(({ bytes }) => bytes), ...table]);
}

function symbolTable(
  name: string,
  texts: string,
  type: number,
  symbols: readonly { name: string; defined?: boolean }[],
  index: number,
): Part[] {
  const { bytes, offsets } = textTable(symbols.map((symbol) => symbol.name));
  const entries = symbols.map(({ defined = true }, i) => {
    const entry = Buffer.alloc(24);
    entry.writeUInt32LE(offsets[i] as number, 0);
    entry.writeUInt16LE(defined ? 1 : 0, 6);
    return entry;
  });
  return [
    { name, type, flags: LOADED, bytes: Buffer.concat([Buffer.alloc(24), ...entries]), link: index + 1 },
    { name: texts, type: 3, flags: LOADED, bytes },
  ];
}

/** Texts after a 0 byte, each with one behind it; a text that another one ends in shares its bytes, as linkers do it. */
function textTable(texts: readonly string[]): { bytes: Buffer; offsets: number[] } {
  const bytes = Buffer.from(`\0${[...texts].map((text) => `${text}\0`).join('')}`, 'latin1');
  const longest = (text: string) => texts.find((other) => other !== text && other.endsWith(text)) ?? text;
  const offsets = texts.map((text) => {
    const host = longest(text);
    return bytes.indexOf(`\0${host}\0`, 0, 'latin1') + 1 + host.length - text.length;
  });
  return { bytes, offsets };
}

/** Bytes as a file. */
export function fileOf(bytes: Buffer): ReadableFile {
  return {
    size: bytes.length,
    read: async (offset, length) => Buffer.from(bytes.subarray(offset, offset + length)),
  };
}
