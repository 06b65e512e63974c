import { open } from 'node:fs/promises';
import path from 'node:path';
import { definedSymbols, isElf, type ReadableFile, readSections, SECTION, SECTION_FLAG, textsIn } from './elf.js';
import { fileOf, type Mapping, readMaps, unlessGone } from './kernel-view.js';

/** What manages memory in a process: allocators, and language run times with one of their own. */
export type Allocator =
  | 'V8'
  | 'jemalloc'
  | 'tcmalloc'
  | 'mimalloc'
  | 'musl'
  | 'glibc'
  | 'Go'
  | 'HotSpot'
  | 'CPython'
  | 'Ruby'
  | 'PHP';

/** What a file must have to be recognised: one of these is enough. */
interface Mark {
  allocator: Allocator;
  /** Its name, without the folder. */
  file?: RegExp;
  /** A symbol that it defines: exactly that, or any that ends so. */
  symbol?: string;
  symbolEnd?: string;
  /** A section's name. */
  section?: string;
  /** What stands among its constants: for programs that have it built in and were stripped of symbols. */
  text?: string;
}

const MARKS: readonly Mark[] = [
  // v8::V8::Dispose(), of node, libnode, libv8 and whatever else exports it; a message of its heap for the others (Deno, Electron).
  { allocator: 'V8', symbol: '_ZN2v82V87DisposeEv', text: 'Ineffective mark-compacts near heap limit' },
  // Its interface has a prefix of the builder's choice: je_, _rjem_ ... All its messages begin alike.
  { allocator: 'jemalloc', file: /^libjemalloc\b/, symbolEnd: 'mallctl', text: '<jemalloc>: ' },
  { allocator: 'tcmalloc', file: /^libtcmalloc/, symbol: 'tc_malloc', text: 'tcmalloc: ' },
  { allocator: 'tcmalloc', symbol: 'TCMallocInternalMalloc' },
  { allocator: 'mimalloc', file: /^libmimalloc/, symbol: 'mi_malloc', text: 'mimalloc: error: ' },
  { allocator: 'musl', file: /^(ld-musl-|libc\.musl-)/, text: 'Error relocating %s: %s: symbol not found' },
  { allocator: 'glibc', symbol: 'gnu_get_libc_version', text: 'malloc_consolidate(): invalid chunk size' },
  { allocator: 'Go', section: '.go.buildinfo', text: '\xff Go buildinf:' },
  { allocator: 'Go', section: '.gopclntab' },
  // Other Java machines have a libjvm.so too, but not this table.
  { allocator: 'HotSpot', symbol: 'gHotSpotVMStructs' },
  { allocator: 'CPython', symbol: 'Py_Initialize' },
  { allocator: 'Ruby', symbol: 'ruby_init' },
  { allocator: 'PHP', symbol: 'php_module_startup' },
];

const ENDINGS = MARKS.flatMap(({ symbol, symbolEnd }) => symbol ?? symbolEnd ?? []);
const TEXTS = MARKS.flatMap(({ text }) => text ?? []);

/**
 * Of these it was tried that they are right when MADV_DONTNEED brings back old content: whole heaps compared with those of
 * a copied restore, before and after collecting garbage and releasing memory.
 */
const TRIED_WITHOUT_GUARD: readonly Allocator[] = ['glibc', 'Go', 'HotSpot', 'V8', 'CPython'];

/** What a service's processes have for managing memory. */
export interface Found {
  /** Each with a file that it was recognised in. */
  allocators: ReadonlyMap<Allocator, string>;
  /** Programs and libraries that could not be looked into, and why: what they have is not known. */
  unknown: readonly { file: string; reason: string }[];
}

/** Whether a service may have mapped memory, and how it has to be started for that. */
export interface Verdict {
  /** `with`: under the guard. `without`: it is right without, and does not run under it. `never-mapped`: copied or lazy. */
  guard: 'with' | 'without' | 'never-mapped';
  /** A sentence without its full stop, for people. */
  reason: string;
}

/**
 * Decides from what was found and from whether the service starts under the guard. One that does not, and has no V8 to
 * explain it, relies on something that is not known here, so that nothing promises that it is right without.
 */
export function verdict({ allocators, unknown }: Found, startsGuarded: boolean): Verdict {
  const where = (allocator: Allocator) => `${allocator} (${allocators.get(allocator)})`;
  const never = (reason: string): Verdict => ({ guard: 'never-mapped', reason });
  if (allocators.has('V8')) {
    const v8 = `${where('V8')} ends itself when the kernel refuses to discard memory (MADV_DONTNEED), which is what the guard does`;
    if (allocators.has('jemalloc')) return never(`${v8}, and ${where('jemalloc')} goes wrong without the guard`);
    const untried = [...allocators.keys()].find((allocator) => !TRIED_WITHOUT_GUARD.includes(allocator));
    if (untried) return never(`${v8}, and ${where(untried)} was never tried without it`);
    const [dark] = unknown;
    if (dark) return never(`${v8}, and what ${dark.file} needs is not known: ${dark.reason}`);
    return { guard: 'without', reason: `${v8}; it is right without` };
  }
  if (!startsGuarded) {
    return never('it does not start under the guard, and nothing that was recognised in it explains why');
  }
  if (allocators.has('jemalloc')) {
    return {
      guard: 'with',
      reason: `${where('jemalloc')} takes discarded memory for zeros, which the guard makes true`,
    };
  }
  const names = [...allocators.keys()];
  const what =
    names.length === 0 ? 'what manages its memory was not recognised' : `its memory is managed by ${list(names)}`;
  return { guard: 'with', reason: `${what}, and it starts under the guard` };
}

function list(names: readonly string[]): string {
  return names.length < 2 ? names.join('') : `${names.slice(0, -1).join(', ')} and ${names.at(-1)}`;
}

/** What one file was recognised as. */
interface Recognised {
  allocators: readonly Allocator[];
  /** Why there may be more in it. */
  unknown?: string;
}

/** Bound on what is searched of one file for texts, bytes. The largest programs known here have 200 MB of constants. */
const MAX_SEARCHED = 1024 * 1024 * 1024;

/** Looks for marks in a file. `name` is its name, with or without a folder. Pure but for reading `file`. */
export async function recognise(name: string, file: ReadableFile): Promise<Recognised> {
  if (!(await isElf(file))) return { allocators: [] };
  const sections = await readSections(file);
  const symbols = await definedSymbols(file, sections, ENDINGS);
  const known = MARKS.filter(
    (mark) =>
      mark.file?.test(path.basename(name)) ||
      symbols.some((symbol) => symbol === mark.symbol || (mark.symbolEnd && symbol.endsWith(mark.symbolEnd))) ||
      (mark.section !== undefined && sections.some((section) => section.name === mark.section)),
  ).map(({ allocator }) => allocator);
  // Without a table of sections (packed or damaged programs) the constants may be anywhere.
  const parts = sections.length === 0 ? [{ offset: 0, size: file.size }] : sections.filter(isConstant);
  const searched = parts.reduce((sum, { size }) => sum + size, 0);
  if (searched > MAX_SEARCHED) {
    return { allocators: unique(known), unknown: `it has ${searched} bytes of constants, more than are searched` };
  }
  const texts = await textsIn(file, parts, TEXTS);
  const read = MARKS.filter(({ text }) => text !== undefined && texts.includes(text)).map(({ allocator }) => allocator);
  return { allocators: unique([...known, ...read]) };
}

function isConstant({ name, type, flags }: { name: string; type: number; flags: bigint }): boolean {
  const wanted = SECTION_FLAG.loaded;
  return type === SECTION.data && (flags & (wanted | SECTION_FLAG.code)) === wanted && /^\.l?ro?data/.test(name);
}

function unique(allocators: readonly Allocator[]): Allocator[] {
  return [...new Set(allocators)];
}

/** A file that a process maps, opened. */
export interface OpenFile extends ReadableFile {
  /** The same for the same content: device, inode, size and time of the last change. */
  identity: string;
  close(): Promise<void>;
}

/** Where processes and their files are found. */
export interface ProcessFiles {
  /** Undefined where the process has ended. */
  maps(pid: number): Promise<readonly Mapping[] | undefined>;
  /** Undefined where it is no regular file. Errors: ENOENT where the mapping is not there any more. */
  open(pid: number, mapping: Mapping): Promise<OpenFile | undefined>;
}

/** The machine's own: the very files that are mapped, whatever is at their path now. */
const MACHINE: ProcessFiles = {
  maps: (pid) => unlessGone(readMaps(pid)),
  open: (pid, mapping) => openFile(fileOf(pid, mapping)),
};

/** Opens a regular file; undefined for anything else. Errors: of open(2). */
export async function openFile(file: string): Promise<OpenFile | undefined> {
  const handle = await open(file, 'r');
  try {
    const stat = await handle.stat({ bigint: true });
    if (!stat.isFile()) {
      await handle.close();
      return undefined;
    }
    let buffer = Buffer.alloc(0);
    return {
      size: Number(stat.size),
      identity: `${stat.dev} ${stat.ino} ${stat.size} ${stat.mtimeNs}`,
      read: async (offset, length) => {
        if (buffer.length < length) buffer = Buffer.allocUnsafe(length);
        const { bytesRead } = await handle.read(buffer, 0, length, offset);
        return buffer.subarray(0, bytesRead);
      },
      close: () => handle.close(),
    };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/** Files whose result is kept: some hundred bytes each. */
const MAX_KEPT = 2_000;

/** Finds out what manages memory in running processes. Remembers files that it has seen. */
export class AllocatorFinder {
  readonly #files: ProcessFiles;
  readonly #kept = new Map<string, Recognised>();

  constructor(files: ProcessFiles = MACHINE) {
    this.#files = files;
  }

  /** All that these processes together have. Errors: the signal's reason, those of reading /proc. */
  async find(pids: Iterable<number>, signal: AbortSignal): Promise<Found> {
    const allocators = new Map<Allocator, string>();
    const unknown = new Map<string, { file: string; reason: string }>();
    const seen = new Set<string>();
    for (const pid of pids) {
      for (const mapping of (await this.#files.maps(pid)) ?? []) {
        signal.throwIfAborted();
        const key = `${mapping.inode} ${mapping.path}`;
        if (!mayBeProgram(mapping) || seen.has(key)) continue;
        const recognised = await this.#look(pid, mapping);
        for (const allocator of recognised.allocators) {
          if (!allocators.has(allocator)) allocators.set(allocator, mapping.path);
        }
        if (recognised.unknown === undefined) {
          seen.add(key);
          unknown.delete(key);
        } else {
          // Another mapping of the same file may do: this one may have been cut in two in between.
          unknown.set(key, { file: mapping.path, reason: recognised.unknown });
        }
      }
    }
    return { allocators, unknown: [...unknown.values()] };
  }

  async #look(pid: number, mapping: Mapping): Promise<Recognised> {
    let file: OpenFile | undefined;
    try {
      file = await this.#files.open(pid, mapping);
      if (file === undefined) return { allocators: [] };
      // The name is one of the marks.
      const identity = `${file.identity} ${path.basename(mapping.path)}`;
      const known = this.#kept.get(identity);
      if (known) return known;
      const recognised = await recognise(mapping.path, file);
      if (this.#kept.size >= MAX_KEPT) this.#kept.delete(this.#kept.keys().next().value as string);
      this.#kept.set(identity, recognised);
      return recognised;
    } catch (error) {
      return { allocators: [], unknown: `it cannot be read: ${(error as Error).message}` };
    } finally {
      await file?.close();
    }
  }
}

/** Whether a mapping may be of a program or library; opening a device could have effects. */
function mayBeProgram({ inode, path: name }: Mapping): boolean {
  return inode !== 0n && name.startsWith('/') && !/^\/(SYSV|dev\/(?!shm\/))/.test(name);
}
