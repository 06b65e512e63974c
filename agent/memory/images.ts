import { readdir, readFile, stat } from 'node:fs/promises';
import path from 'node:path';
import { FileEntry } from '../../proto/gen/criu/files.js';
import { AddressSpace, PagemapEntry, PagemapHead, type Vma } from '../../proto/gen/criu/memory.js';
import { Core, ProcessEntry } from '../../proto/gen/criu/threads.js';
import { damaged } from '../checkpoint/manifest.js';
import { type Codec, decodeEntry, hex, type ImageEntry, type ImageKind, parseImage } from './image-file.js';
import { type Area, PAGE, type PageRun, type ProcessMemory, STATUS } from './model.js';

/** Bound on an image that is held in memory. One of 4 GB of memory in which no two pages are neighbours has 25 MB. */
const MAX_IMAGE_BYTES = 256 * 1024 * 1024;
/** Bits of a pagemap entry's flags. */
const IN_PARENT = 1;
const PRESENT = 4;
const PAGE_N = BigInt(PAGE);

/** A message with the bytes that it was read from. */
export interface Read<T> {
  entry: ImageEntry;
  message: T;
}

/** What a dump says of one process's memory, with the messages that say it. */
export interface DumpedProcess {
  memory: ProcessMemory;
  space: AddressSpace;
  /** The head of its pagemap. */
  head: Read<PagemapHead>;
  /** The rest of its pagemap; entry N is run N of `memory`. */
  pagemap: Read<PagemapEntry>[];
  /** Name of the file that holds its pages. */
  pages: string;
}

/** Names of the images of a process, in the folder of a dump. */
export const imageNames = {
  space: (pid: number) => `mm-${pid}.img`,
  pagemap: (pid: number) => `pagemap-${pid}.img`,
  pages: (id: number) => `pages-${id}.img`,
  files: 'files.img',
} as const;

/**
 * What a dump holds of each process's memory, by process number. For comparing a restored process with what was dumped,
 * read the folder that CRIU wrote: in a rewritten one the pages that went into memory files are no longer in the dump, so
 * its runs are only those that a restore still copies.
 * Errors: CHECKPOINT_DAMAGED where an image is missing, cut short or wrong, or the dump continues an earlier one.
 */
export async function readDump(dir: string): Promise<ProcessMemory[]> {
  const processes: ProcessMemory[] = [];
  for (const pid of await pidsOf(dir)) processes.push((await readProcess(dir, pid)).memory);
  return processes;
}

/** Numbers of the processes whose memory a dump holds, in order. */
export async function pidsOf(dir: string): Promise<number[]> {
  const found = (await readdir(dir)).flatMap((name) => /^mm-(\d+)\.img$/.exec(name)?.[1] ?? []).map(Number);
  if (found.length === 0) throw damaged(`${dir} holds no process's memory (mm-PID.img)`, dir);
  return found.sort((a, b) => a - b);
}

/** One process of a dump. Errors: as {@link readDump}. */
export async function readProcess(dir: string, pid: number): Promise<DumpedProcess> {
  const name = imageNames.space(pid);
  const entries = await readImage(dir, name, 'mm');
  const [first] = entries;
  const file = path.join(dir, name);
  if (first === undefined || entries.length > 1) throw damaged(`${file} has ${entries.length} entries, not 1`, file);
  const space = decodeEntry(AddressSpace, first, file);
  const areas = space.vmas.map((vma) => areaOf(vma, file));
  expectOrder(areas, file);
  return { space, ...(await readPagemap(dir, pid, areas)) };
}

/** An image file's entries. Errors: CHECKPOINT_DAMAGED. */
export async function readImage(dir: string, name: string, kind: ImageKind): Promise<ImageEntry[]> {
  const file = path.join(dir, name);
  const { size } = await statOf(file);
  if (size > MAX_IMAGE_BYTES) throw damaged(`${file} has ${size} bytes, more than any image of its kind`, file);
  return parseImage(await readFile(file), kind, file);
}

/** The entries of files.img. Errors: CHECKPOINT_DAMAGED. */
export async function readFiles(dir: string): Promise<Read<FileEntry>[]> {
  const file = path.join(dir, imageNames.files);
  return decodeAll(FileEntry, await readImage(dir, imageNames.files, 'files'), file);
}

async function readPagemap(
  dir: string,
  pid: number,
  areas: Area[],
): Promise<Pick<DumpedProcess, 'memory' | 'head' | 'pagemap' | 'pages'>> {
  const name = imageNames.pagemap(pid);
  const file = path.join(dir, name);
  const [first, ...rest] = await readImage(dir, name, 'pagemap');
  if (first === undefined) throw damaged(`${file} has no entries, not even its head`, file);
  const message = decodeEntry(PagemapHead, first, file);
  if (message.pagesId === undefined) throw damaged(`${file} does not say which file holds the pages`, file);
  const pages = imageNames.pages(message.pagesId);
  const pagemap = decodeAll(PagemapEntry, rest, file);
  const runs: PageRun[] = [];
  let offset = 0;
  let end = 0n;
  for (const { entry, message } of pagemap) {
    const run = runOf(message, `${file}: the entry at offset ${entry.offset}`, file);
    if (run.start < end) throw damaged(`${file}: the entry at offset ${entry.offset} is not in address order`, file);
    end = run.start + BigInt(run.pages) * PAGE_N;
    runs.push({ ...run, file: path.join(dir, pages), offset });
    offset += run.pages * PAGE;
  }
  const held = (await statOf(path.join(dir, pages))).size;
  if (held !== offset) {
    throw damaged(`${path.join(dir, pages)} has ${held} bytes, ${file} says ${offset}`, path.join(dir, pages));
  }
  return { memory: { pid, areas, runs }, head: { entry: first, message }, pagemap, pages };
}

/** Address and length of a pagemap's entry, whichever form it has. `what` names it. */
function runOf(entry: PagemapEntry, what: string, file: string): { start: bigint; pages: number } {
  const flags = entry.flags ?? PRESENT;
  if (entry.inParent === true || (flags & IN_PARENT) !== 0) {
    throw damaged(`${what} refers to an earlier dump; dumps that continue others are not used here`, file);
  }
  if ((flags & PRESENT) === 0) throw damaged(`${what} has pages that are not in the dump (flags ${hex(flags)})`, file);
  const pages = Number(entry.nrPages ?? entry.compatNrPages ?? 0);
  const start = entry.vaddr;
  if (start === undefined || start % PAGE_N !== 0n || pages <= 0) {
    throw damaged(`${what} is no run of pages: ${pages} at ${start === undefined ? 'no address' : hex(start)}`, file);
  }
  return { start, pages };
}

function areaOf(vma: Vma, file: string): Area {
  const { start, end, status, flags, prot, shmid, pgoff } = vma;
  if (start === undefined || end === undefined || start >= end || start % PAGE_N !== 0n || end % PAGE_N !== 0n) {
    throw damaged(`${file} has an area that is none: from ${start} to ${end}`, file);
  }
  if (status === undefined || flags === undefined || prot === undefined || shmid === undefined || pgoff === undefined) {
    throw damaged(`${file}: the area at ${hex(start)} is not described whole`, file);
  }
  return { start, end, status, flags, prot, shmid, pgoff, madv: vma.madv ?? 0n };
}

/** Areas must be in address order without overlaps, guard pages after all of them: CRIU writes them so. */
function expectOrder(areas: readonly Area[], file: string): void {
  let end = 0n;
  let guards = false;
  for (const area of areas) {
    if ((area.status & STATUS.guard) !== 0) {
      guards = true;
      continue;
    }
    if (guards || area.start < end) throw damaged(`${file}: the area at ${hex(area.start)} is not in order`, file);
    end = area.end;
  }
}

/** An area that a thread shares with the kernel, which writes to it before the thread's first instruction. */
export interface RseqArea {
  pid: number;
  tid: number;
  address: bigint;
  /** Bytes. */
  length: number;
}

/** The registered rseq(2) areas of all threads of a dump. Errors: CHECKPOINT_DAMAGED. */
export async function rseqAreas(dir: string): Promise<RseqArea[]> {
  const areas: RseqArea[] = [];
  const tree = path.join(dir, 'pstree.img');
  for (const { message } of decodeAll(ProcessEntry, await readImage(dir, 'pstree.img', 'pstree'), tree)) {
    const { pid } = message;
    if (pid === undefined) throw damaged(`${tree} has a process without a number`, tree);
    for (const tid of message.threads) {
      const name = `core-${tid}.img`;
      const [first] = await readImage(dir, name, 'core');
      if (first === undefined) throw damaged(`${path.join(dir, name)} has no entries`, path.join(dir, name));
      const rseq = decodeEntry(Core, first, path.join(dir, name)).threadCore?.rseqEntry;
      if (!rseq?.rseqAbiPointer || !rseq.rseqAbiSize) continue;
      areas.push({ pid, tid, address: rseq.rseqAbiPointer, length: rseq.rseqAbiSize });
    }
  }
  return areas;
}

function decodeAll<T>(codec: Codec<T>, entries: readonly ImageEntry[], file: string): Read<T>[] {
  return entries.map((entry) => ({ entry, message: decodeEntry(codec, entry, file) }));
}

/** Errors: CHECKPOINT_DAMAGED where there is no such file. */
async function statOf(file: string): Promise<{ size: number }> {
  try {
    return await stat(file);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw cause;
    throw damaged(`${file} is missing`, file, cause);
  }
}
