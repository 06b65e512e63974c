import { type FileHandle, open } from 'node:fs/promises';
import { damaged } from '../checkpoint/manifest.js';
import { dataWithin } from './holes.js';
import { hex } from './image-file.js';
import { fileOf, gone, Pagemap, readMemory, readSizedMaps, type SizedMapping } from './kernel-view.js';
import { type Area, FLAG, PAGE, type PageRun, type ProcessMemory, STATUS } from './model.js';
import { readAll } from './sparse.js';
import { overlaps, type Stretch, uncovered } from './stretches.js';

/** Bytes that need not be as they were: the kernel writes them when a process is restored. */
export interface KernelBytes {
  /** The process's number in the dump. */
  pid: number;
  address: bigint;
  /** Bytes. */
  length: number;
}

/** A place where a restored process is not what was dumped. */
export interface Difference {
  /** The process's number in the dump. */
  pid: number;
  /** Of the first byte that differs. */
  address: bigint;
  /** The area that it lies in, as people read it. */
  area: string;
  /** What stands there, in hexadecimal, from the first differing byte on; or in words why nothing does. */
  expectedHead: string;
  foundHead: string;
}

/** What a comparison found. */
export interface Comparison {
  /** Pages of the dump that were compared, and pages that had to be, and were, looked at for zeros. */
  pages: number;
  zeroPages: number;
  /** Bytes of both. */
  bytes: number;
  ms: number;
  /** At most {@link MAX_DIFFERENCES}: the comparison ends there. */
  differences: Difference[];
  /** Areas that were left out, by reason. */
  excluded: { reason: string; areas: number }[];
}

/** Enough to see what they have in common. */
export const MAX_DIFFERENCES = 10;
/** Compared at once. */
const CHUNK = 1024 * 1024;
const ZEROS = Buffer.alloc(CHUNK);
/** Bytes of a difference that are shown. */
const HEAD = 16;

/** Areas whose content is not that of the dump's pages. The first that fits is given. */
const EXCLUDED: readonly (readonly [bits: number, reason: string])[] = [
  // Another machine, or the same after a start, has other code and data there.
  [STATUS.vdso | STATUS.vvar | STATUS.vsyscall | STATUS.uprobes, 'the running kernel provides it'],
  [STATUS.aioRing, 'the kernel makes it anew (aio)'],
  [STATUS.shadowStack, 'it is a shadow stack, which the kernel alone writes to'],
];

/** One process's comparison; what it finds goes into the result it was given. */
export class ProcessComparer {
  readonly #memory: ProcessMemory;
  /** In address order, without overlaps. */
  readonly #areas: readonly Area[];
  /** What the dump holds pages of. */
  readonly #held: readonly (PageRun & Stretch)[];
  readonly #host: number;
  readonly #ignored: readonly KernelBytes[];
  readonly #result: Comparison;
  readonly #signal: AbortSignal;
  readonly #expected = Buffer.allocUnsafe(CHUNK);
  readonly #found = Buffer.allocUnsafe(CHUNK);

  constructor(
    memory: ProcessMemory,
    host: number,
    ignored: readonly KernelBytes[],
    result: Comparison,
    signal: AbortSignal,
  ) {
    this.#memory = memory;
    this.#areas = memory.areas.filter((area) => !isGuard(area));
    this.#held = memory.runs.map((run) => ({ ...run, end: run.start + BigInt(run.pages * PAGE) }));
    this.#host = host;
    this.#ignored = ignored;
    this.#result = result;
    this.#signal = signal;
  }

  /** Errors: CHECKPOINT_DAMAGED, ENOENT or ESRCH where the process has ended, the signal's reason. */
  async compare(): Promise<void> {
    const handle = await open(`/proc/${this.#host}/mem`, 'r');
    try {
      await this.#runs(handle);
      await this.#gaps(handle);
    } finally {
      await handle.close();
    }
  }

  /** What the dump holds. */
  async #runs(handle: FileHandle): Promise<void> {
    const runs = this.#held;
    // A run may go on over the border of two areas.
    const pieces = [
      ...[...overlaps(runs, this.#areas)].map(({ start, end, a, b }) => ({ start, end, run: a, area: b })),
      ...[...uncovered(runs, this.#areas)].map(({ start, end, a }) => ({ start, end, run: a, area: undefined })),
    ];
    let file: { name: string; handle: FileHandle } | undefined;
    try {
      for (const { start, end, run, area } of pieces) {
        if (area && ofKernel(area) !== undefined) continue;
        if (file?.name !== run.file) {
          await file?.handle.close();
          file = undefined;
          file = { name: run.file, handle: await openDump(run.file) };
        }
        for (let at = start; at < end; at += BigInt(CHUNK)) {
          this.#signal.throwIfAborted();
          if (this.#full()) return;
          const length = Math.min(CHUNK, Number(end - at));
          const offset = run.offset + Number(at - run.start);
          const [expected, readable] = await Promise.all([
            readAll(file.handle, this.#expected.subarray(0, length), offset, run.file),
            readMemory(handle, this.#found.subarray(0, length), at),
          ]);
          this.#compare(area, at, expected, readable);
          this.#result.pages += length / PAGE;
        }
      }
    } finally {
      await file?.handle.close();
    }
  }

  /** Where the dump holds nothing of an area. */
  async #gaps(handle: FileHandle): Promise<void> {
    const compared = this.#areas.filter((area) => {
      const reason = ofKernel(area) ?? (isPrivate(area) ? undefined : 'it is shared, or no part of the dump');
      if (reason !== undefined) this.#exclude(reason);
      return reason === undefined;
    });
    const taken = [...this.#held, ...this.#memory.areas.filter(isGuard)].sort((a, b) => (a.start < b.start ? -1 : 1));
    const gaps = [...uncovered(compared, taken)];
    const mappings = await readSizedMaps(this.#host);
    if (mappings.length === 0) throw gone();
    for (const { start, a: gap } of uncovered(gaps, mappings)) {
      // A stack may have been given its lowest pages only when they were touched.
      if ((gap.a.flags & FLAG.growsDown) === 0) this.#differ(gap.a, start, 'memory', 'nothing is mapped there');
    }
    const byMapping = new Map<SizedMapping, Gap[]>();
    for (const { start, end, a: gap, b: mapping } of overlaps(gaps, mappings)) {
      const part = { start, end, area: gap.a };
      if ((part.area.status & STATUS.filePrivate) !== 0) this.#expectPlace(part, mapping);
      // Huge pages stay copied, and have a file of the kernel's own.
      else if ((part.area.flags & FLAG.hugePages) !== 0) continue;
      else if (byMapping.has(mapping)) byMapping.get(mapping)?.push(part);
      else byMapping.set(mapping, [part]);
    }
    await this.#zerosThere(handle, byMapping);
    await this.#zerosInFiles(handle, byMapping);
  }

  /** A page of a file's private mapping that the dump does not hold has to come from where it came from. */
  #expectPlace({ start, area }: Gap, mapping: SizedMapping): void {
    const wanted = Number(area.pgoff + (start - area.start));
    const place = mapping.offset + Number(start - mapping.start);
    if (mapping.inode !== 0n && place === wanted) return;
    const found = mapping.inode === 0n ? 'memory without a file' : `offset ${place} of ${mapping.path}`;
    this.#differ(area, start, `offset ${wanted} of a file`, found);
  }

  /** Pages that the process has where it should have none, or zeros. */
  async #zerosThere(handle: FileHandle, byMapping: ReadonlyMap<SizedMapping, Gap[]>): Promise<void> {
    const pagemap = await Pagemap.open(this.#host);
    try {
      for (const [mapping, parts] of byMapping) {
        // Nothing of it was ever written, so that all of it reads as zeros. Some reserve terabytes like that.
        if (mapping.inode === 0n && mapping.held === 0) continue;
        const range = { start: (parts[0] as Gap).start, end: (parts.at(-1) as Gap).end };
        const there: Stretch[] = [];
        for await (const stretch of pagemap.there(range, this.#signal)) there.push(stretch);
        for (const { start, end, b } of overlaps(there, parts)) await this.#zeros(handle, b.area, start, end);
      }
    } finally {
      await pagemap.close();
    }
  }

  /** Pages that the process does not have yet come from its memory file, in which only holes read as zeros. */
  async #zerosInFiles(handle: FileHandle, byMapping: ReadonlyMap<SizedMapping, Gap[]>): Promise<void> {
    const byFile = new Map<bigint, { mapping: SizedMapping; parts: (Gap & { shift: bigint })[] }>();
    for (const [mapping, parts] of byMapping) {
      if (mapping.inode === 0n) continue;
      const shift = BigInt(mapping.offset) - mapping.start;
      const file = byFile.get(mapping.inode) ?? { mapping, parts: [] };
      byFile.set(mapping.inode, file);
      for (const { start, end, area } of parts)
        file.parts.push({ start: start + shift, end: end + shift, area, shift });
    }
    for (const { mapping, parts } of byFile.values()) {
      parts.sort((a, b) => (a.start < b.start ? -1 : 1));
      const ranges = parts.map(({ start, end }) => [Number(start), Number(end)] as const);
      const data = await dataWithin(fileOf(this.#host, mapping), ranges, this.#signal);
      const pages = data.map(([from, to]) => ({ start: pageFloor(from), end: pageFloor(to + PAGE - 1) }));
      for (const { start, end, b } of overlaps(pages, parts)) {
        await this.#zeros(handle, b.area, start - b.shift, end - b.shift);
      }
    }
  }

  async #zeros(handle: FileHandle, area: Area, start: bigint, end: bigint): Promise<void> {
    for (let at = start; at < end; at += BigInt(CHUNK)) {
      this.#signal.throwIfAborted();
      if (this.#full()) return;
      const length = Math.min(CHUNK, Number(end - at));
      const readable = await readMemory(handle, this.#found.subarray(0, length), at);
      this.#compare(area, at, ZEROS.subarray(0, length), readable);
      this.#result.zeroPages += length / PAGE;
    }
  }

  /** Compares what was dumped with what `#found` holds, of which only the first `readable` bytes could be read. */
  #compare(area: Area | undefined, address: bigint, expected: Buffer, readable: number): void {
    const found = this.#found.subarray(0, expected.length);
    if (readable === expected.length && found.equals(expected)) return;
    for (let at = 0; at < expected.length && !this.#full(); at += PAGE) {
      const start = address + BigInt(at);
      if (at >= readable) {
        // Once is enough for the rest of a chunk.
        this.#differ(area, start, headOf(expected, at), 'it cannot be read');
        return;
      }
      const page = expected.subarray(at, at + PAGE);
      const restored = found.subarray(at, at + PAGE);
      if (restored.equals(page)) continue;
      for (const { address: from, length } of this.#ignored) {
        const first = Math.max(0, Number(from - start));
        const end = Math.min(PAGE, Number(from - start) + length);
        if (first < end) page.copy(restored, first, first, end);
      }
      const byte = page.findIndex((value, i) => value !== restored[i]);
      if (byte >= 0) this.#differ(area, start + BigInt(byte), headOf(page, byte), headOf(restored, byte));
    }
  }

  #full(): boolean {
    return this.#result.differences.length >= MAX_DIFFERENCES;
  }

  #differ(area: Area | undefined, address: bigint, expectedHead: string, foundHead: string): void {
    if (this.#full()) return;
    const { pid } = this.#memory;
    this.#result.differences.push({ pid, address, area: describe(area), expectedHead, foundHead });
  }

  #exclude(reason: string): void {
    const known = this.#result.excluded.find((one) => one.reason === reason);
    if (known) known.areas++;
    else this.#result.excluded.push({ reason, areas: 1 });
  }
}

/** A part of an area that the dump holds nothing of. */
interface Gap extends Stretch {
  area: Area;
}

function ofKernel({ status }: Area): string | undefined {
  return EXCLUDED.find(([bits]) => (status & bits) !== 0)?.[1];
}

function isPrivate({ status }: Area): boolean {
  return (status & STATUS.regular) !== 0 && (status & (STATUS.anonymousPrivate | STATUS.filePrivate)) !== 0;
}

/** Guard pages stand beside the areas that they lie in. */
function isGuard({ status }: Area): boolean {
  return (status & STATUS.guard) !== 0;
}

function describe(area: Area | undefined): string {
  if (area === undefined) return 'outside every area';
  const { start, end, status, prot } = area;
  const kinds = [
    [STATUS.heap, 'the heap'],
    [STATUS.filePrivate, 'a private mapping of a file'],
    [STATUS.anonymousPrivate, 'private memory'],
  ] as const;
  const kind = kinds.find(([bit]) => (status & bit) !== 0)?.[1] ?? 'memory';
  const may = ['r', 'w', 'x'].map((letter, bit) => (((prot >> bit) & 1) === 1 ? letter : '-')).join('');
  return `${kind} ${hex(start)}-${hex(end)} ${may}`;
}

function headOf(bytes: Buffer, at: number): string {
  return bytes.toString('hex', at, Math.min(bytes.length, at + HEAD));
}

/** Errors: CHECKPOINT_DAMAGED where there is no such file. */
async function openDump(file: string): Promise<FileHandle> {
  try {
    return await open(file, 'r');
  } catch (cause) {
    throw damaged(`${file} cannot be read: ${(cause as Error).message}`, file, cause);
  }
}

function pageFloor(offset: number): bigint {
  return BigInt(Math.floor(offset / PAGE) * PAGE);
}
