import { FileEntry } from '../../proto/gen/criu/files.js';
import { AddressSpace, PagemapEntry, type Vma } from '../../proto/gen/criu/memory.js';
import { damaged } from '../checkpoint/manifest.js';
import { writeImage } from './image-file.js';
import type { DumpedProcess, Read } from './images.js';
import type { Piece, Stretch } from './mapping.js';
import { FLAG, STATUS } from './model.js';

/** Folder of memory files, at the root of an instance. */
export const MEMORY_FOLDER = '.initless';
/** Type of a regular file among CRIU's. */
const REGULAR = 1;
/** O_RDONLY: private mappings may be written to nevertheless. */
const READ_ONLY = 0;

/** A process's memory file, as a path below the root of an instance. */
export function memoryPath(pid: number): string {
  return `${MEMORY_FOLDER}/mem-${pid}`;
}

/** mm-PID.img of a process whose stretches are mappings of the file with the id `file`. */
export function editedSpace({ space }: DumpedProcess, stretches: readonly Stretch[], file: number): Buffer {
  const byArea = new Map<bigint, Stretch[]>();
  for (const stretch of stretches) {
    const known = byArea.get(stretch.area.start);
    if (known) known.push(stretch);
    else byArea.set(stretch.area.start, [stretch]);
  }
  const vmas = space.vmas.flatMap((vma) => {
    // A stretch of guard pages cannot be meant, though it is listed too: what it lies in is never mapped.
    const mapped = byArea.get(vma.start ?? -1n);
    return mapped ? split(vma, mapped, file) : [vma];
  });
  return writeImage('mm', [AddressSpace.encode({ ...space, vmas }).finish()]);
}

/** The areas that one becomes: its stretches, and what is left of it before, between and behind them. */
function split(vma: Vma, stretches: readonly Stretch[], file: number): Vma[] {
  const pieces: Vma[] = [];
  const { start = 0n, end = 0n, pgoff = 0n } = vma;
  let next = start;
  const rest = (until: bigint) => {
    if (next < until) pieces.push({ ...vma, start: next, end: until, pgoff: pgoff + (next - start) });
  };
  for (const stretch of stretches) {
    rest(stretch.start);
    pieces.push({
      ...vma,
      start: stretch.start,
      end: stretch.end,
      pgoff: BigInt(stretch.offset),
      shmid: BigInt(file),
      flags: (vma.flags ?? 0) & ~FLAG.anonymous,
      status: ((vma.status ?? 0) & ~STATUS.anonymousPrivate) | STATUS.filePrivate,
      fdflags: READ_ONLY,
    });
    next = stretch.end;
  }
  rest(end);
  return pieces;
}

/** pagemap-PID.img with only the pieces that stay in the dump; an entry of which all stays keeps its bytes. */
export function editedPagemap({ head, pagemap }: DumpedProcess, staying: readonly Piece[]): Buffer {
  const entries = staying.map(({ run, start, pages }) => {
    const { entry, message } = pagemap[run] as Read<PagemapEntry>;
    const newer = message.nrPages !== undefined;
    if (pages === Number(newer ? message.nrPages : message.compatNrPages)) return entry.bytes;
    const count = newer ? { nrPages: BigInt(pages) } : { compatNrPages: pages };
    return PagemapEntry.encode({ ...message, vaddr: start, ...count }).finish();
  });
  return writeImage('pagemap', [head.entry.bytes, ...entries]);
}

/**
 * The entry of a memory file, made after that of the program that the process runs: from its mount CRIU takes the root
 * at which the path starts (so it need not be the root mount itself), and the owner of signals is as good as any.
 * Size, mode and build id are left out, since CRIU compares them only where they are present; the file's own digests say more.
 * Errors: CHECKPOINT_DAMAGED when the program has no entry.
 */
export function memoryFileEntry(
  files: readonly Read<FileEntry>[],
  process: DumpedProcess,
  id: number,
  image: string,
): Uint8Array {
  const { exeFileId } = process.space;
  const { pid } = process.memory;
  const program = files.find(({ message }) => message.id === exeFileId && message.type === REGULAR)?.message.reg;
  if (exeFileId === undefined || program?.fown === undefined) {
    throw damaged(`${image} has no regular file with the id ${exeFileId}, the program of process ${pid}`, image);
  }
  const reg = {
    id,
    flags: READ_ONLY,
    pos: 0n,
    fown: program.fown,
    name: `/${memoryPath(pid)}`,
    mntId: program.mntId,
  };
  return FileEntry.encode({ type: REGULAR, id, reg }).finish();
}

/** An id that no file of the dump has. */
export function freshFileId(files: readonly Read<FileEntry>[]): number {
  return files.reduce((max, { message }) => Math.max(max, message.id ?? 0), 0) + 1;
}
