import { hex } from './image-file.js';
import { ADVICE, type Area, FLAG, PAGE, type PageRun, type ProcessMemory, STATUS } from './model.js';

/**
 * Which parts of a process's memory become private mappings of its memory file, and where in the file each lies.
 *
 * What CRIU 4.2 makes of such an area (criu/mem.c, criu/files-reg.c, criu/pie/restorer.c), and what follows from it:
 *
 * - One file entry for each process, never one for two. Before it forks, CRIU looks for areas that parent and child may
 *   share copy-on-write: same start and end, both private, same MAP_ANONYMOUS and MAP_GROWSDOWN, and for file mappings
 *   the same `shmid`; the place in the file is not compared (check_cow_vmas). A child's area that is taken for inherited is
 *   not mapped again, and pages that its own pagemap does not list stay the parent's. With a file of its own the child's
 *   area has another `shmid`, so that it is mapped afresh, from its own bytes. Where only one of the two is mapped,
 *   MAP_ANONYMOUS differs. Where neither is, all is as before: a dump lists every page of every process, shared or not.
 *   The price is that pages which parent and child still had in common lie in both files.
 * - An area that is neither inherited nor premapped is mapped by the restorer with MAP_FIXED, PROT_WRITE added until the
 *   contents are in, and then gets its own protection and its madvise advice back. A mapping of a file that is open for
 *   reading may be private and writable. MADV_WIPEONFORK is refused for it by the kernel (EINVAL, which ends the
 *   restore); the other advice that CRIU records (DONTFORK, DONTDUMP, MERGEABLE, HUGEPAGE, NOHUGEPAGE, SEQUENTIAL,
 *   RANDOM) is not.
 * - Stretches with guard pages (MADV_GUARD_INSTALL) stand behind the areas as entries of their own, and are installed
 *   again at the restore. For files the kernel can do that only since 6.15, so such areas are copied.
 * - The file's room keeps a whole stretch right when mremap makes it longer. It cannot do so for a *part* of one: made
 *   longer, in place or elsewhere, the part shows what lies behind it in the file, which is its old neighbour's content,
 *   where memory without a file would show zeros (seen with a 6.18 kernel). No layout helps; the guard has to.
 * - With no entry at all in a pagemap CRIU follows a null pointer (premap_priv_vmas): at least one page must stay.
 */
export interface MappingPlan {
  pid: number;
  /** In address order, which is also their order in the file. */
  stretches: Stretch[];
  /** All others, and those of which only parts are mapped. */
  copied: CopiedArea[];
  /** Bytes of the memory file, room included; 0 where nothing is mapped. */
  size: number;
}

/** A stretch of addresses that is to be mapped: a whole area without a file, or a part of a file's private mapping. */
export interface Stretch {
  area: Area;
  start: bigint;
  end: bigint;
  /** Where in the memory file it begins, in bytes. */
  offset: number;
  /** How many pages of it the dump holds; the others are zeros. */
  pages: number;
}

/** An area that a restore fills as CRIU always does. */
export interface CopiedArea {
  area: Area;
  /** How many pages of it the dump holds and a restore copies. */
  pages: number;
  /** Why, as the end of the sentence "it is copied because ...". */
  reason: string;
}

/** Fewer pages are copied in less time than a mapping, its open file and its faults take. */
const MIN_PAGES = 16;
/**
 * Fewer changed pages in a row of a file's private mapping are not worth the two more areas that cutting them out makes.
 * Only rows without gaps are taken: what is not changed keeps coming from its own file, whose content is not needed then.
 */
const MIN_CHANGED_PAGES = 64;
/**
 * Room left behind each run of adjacent areas. mremap may grow a mapping, in place or elsewhere; what it gains shows the
 * file's next bytes, which must be zeros, not the content of another area. No heap block grows by more at once.
 */
const ROOM = 4 * 2 ** 30;
/** ext4 with blocks of 4 KiB ends a file one block below 16 TiB; XFS and Btrfs allow more. */
const MAX_FILE = 16 * 2 ** 40 - 2 ** 30;
/** The kernel maps page cache in pieces of up to this size where address and offset agree below it. */
const ALIGNMENT = 2 * 2 ** 20;

/** Bounds of {@link planMapping}; tests make them small. */
export interface MappingBounds {
  room: number;
  maxFile: number;
}

/** A stretch before it has a place. */
type Candidate = Omit<Stretch, 'offset'>;

/** Decides for one process of a dump; the others do not matter, see {@link MappingPlan}. */
export function planMapping(
  { pid, areas, runs }: ProcessMemory,
  bounds: MappingBounds = { room: ROOM, maxFile: MAX_FILE },
): MappingPlan {
  const guards = areas.filter((area) => (area.status & STATUS.guard) !== 0);
  let chosen: Candidate[] = [];
  const copied = new Map<Area, CopiedArea>();
  for (const area of areas) {
    if ((area.status & STATUS.guard) !== 0) continue;
    const present = presentIn(runs, area);
    const pages = present.reduce((sum, [start, end]) => sum + pagesBetween(start, end), 0);
    const found = candidatesOf(area, present, pages, guards);
    chosen.push(...found.candidates);
    const mapped = found.candidates.reduce((sum, candidate) => sum + candidate.pages, 0);
    if (found.reason !== undefined) copied.set(area, { area, pages: pages - mapped, reason: found.reason });
  }
  const drop = (candidate: Candidate, reason: string) => {
    chosen = chosen.filter((other) => other !== candidate);
    const { area } = candidate;
    copied.set(area, { area, pages: (copied.get(area)?.pages ?? 0) + candidate.pages, reason });
  };
  const total = runs.reduce((sum, run) => sum + run.pages, 0);
  if (chosen.length > 0 && chosen.reduce((sum, { pages }) => sum + pages, 0) === total) {
    const least = chosen.reduce((a, b) => (b.pages < a.pages ? b : a));
    drop(least, 'CRIU needs at least one page to copy');
  }
  let laid = layOut(chosen, bounds);
  while (laid === undefined) {
    const largest = chosen.reduce((a, b) => (b.end - b.start > a.end - a.start ? b : a));
    drop(largest, 'a file cannot be large enough to hold it in place');
    laid = layOut(chosen, bounds);
  }
  return { pid, ...laid, copied: areas.flatMap((area) => copied.get(area) ?? []) };
}

/** What of an area may be mapped, and why the rest may not. */
function candidatesOf(
  area: Area,
  present: readonly Interval[],
  pages: number,
  guards: readonly Area[],
): { candidates: Candidate[]; reason: string | undefined } {
  const reason = unfit(area, guards);
  if (reason !== undefined) return { candidates: [], reason };
  if ((area.status & STATUS.filePrivate) !== 0) {
    const candidates = present
      .map(([start, end]) => ({ area, start, end, pages: pagesBetween(start, end) }))
      .filter((row) => row.pages >= MIN_CHANGED_PAGES);
    const whole = candidates.length === 1 && candidates[0]?.start === area.start && candidates[0].end === area.end;
    const rest = pages === 0 ? 'it maps a file and was not changed' : SMALL_CHANGES;
    return { candidates, reason: whole ? undefined : rest };
  }
  if (pages < MIN_PAGES) return { candidates: [], reason: pages === 0 ? 'it is empty' : SMALL };
  return { candidates: [{ area, start: area.start, end: area.end, pages }], reason: undefined };
}

const SMALL = `it has fewer than ${MIN_PAGES} pages, which are not worth a mapping`;
const SMALL_CHANGES = `it maps a file, and of its changed pages only rows of ${MIN_CHANGED_PAGES} or more are worth a mapping`;

/** Why a kind of area is not mapped. The first that fits is given. */
const KINDS: readonly (readonly [bits: number, reason: string])[] = [
  [STATUS.vsyscall | STATUS.vdso | STATUS.vvar | STATUS.uprobes, 'the kernel provides it'],
  [STATUS.fileShared | STATUS.anonymousShared | STATUS.sysvShared | STATUS.memfd, 'it is shared memory'],
  [STATUS.socket, 'it belongs to a socket'],
  [STATUS.aioRing, 'the kernel writes to it (aio)'],
  [STATUS.shadowStack, 'it is a shadow stack'],
  [STATUS.stack, 'it is a stack that grows downwards'],
];

/** Bits of a status that do not keep an area from being mapped. */
const FIT = STATUS.regular | STATUS.anonymousPrivate | STATUS.filePrivate | STATUS.heap;

function unfit(area: Area, guards: readonly Area[]): string | undefined {
  const { status, flags } = area;
  const kind = KINDS.find(([bits]) => (status & bits) !== 0);
  if (kind) return kind[1];
  const ofFile = (status & STATUS.filePrivate) !== 0;
  const anonymous = (status & STATUS.anonymousPrivate) !== 0;
  if ((status & ~FIT) !== 0 || (status & STATUS.regular) === 0 || ofFile === anonymous) {
    return `it is of a kind that is not known here (status ${hex(status >>> 0)})`;
  }
  if ((flags & FLAG.kind) === FLAG.droppable) return 'the kernel may drop its pages (MAP_DROPPABLE)';
  if ((flags & FLAG.kind) !== FLAG.private) return 'it is not private';
  if (((flags & FLAG.anonymous) !== 0) !== anonymous) return 'its kind and its flags contradict each other';
  if ((flags & FLAG.growsDown) !== 0) return 'it grows downwards';
  if ((flags & FLAG.hugePages) !== 0) return 'it consists of huge pages';
  if ((flags & FLAG.locked) !== 0) return 'it is locked in memory';
  if ((((area.madv ?? 0n) >> ADVICE.wipeOnFork) & 1n) !== 0n) return 'children find it empty (MADV_WIPEONFORK)';
  if (guards.some((guard) => guard.start < area.end && guard.end > area.start)) {
    return 'guard pages are installed in it (MADV_GUARD_INSTALL)';
  }
  return undefined;
}

/**
 * Gives each its place, or undefined where the file would become too large. Adjacent areas stay adjacent where the
 * kernel may make one of them, once mprotect or madvise have made them alike, so that it still can: a mapping is merged
 * with its neighbour only where their places in the file follow each other too, and mremap works within one mapping.
 * What it never merges (flags of mmap that differ, a gap, a file's pages) gets a run of its own, and room behind it.
 * Where the room would take the file past its bound, all runs get less, evenly.
 */
function layOut(chosen: readonly Candidate[], { room, maxFile }: MappingBounds): Layout | undefined {
  if (chosen.length === 0) return { stretches: [], size: 0 };
  const runs: Candidate[][] = [];
  for (const candidate of chosen) {
    const last = runs.at(-1)?.at(-1);
    if (last && mayMerge(last, candidate)) runs.at(-1)?.push(candidate);
    else runs.push([candidate]);
  }
  const bytes = chosen.reduce((sum, { start, end }) => sum + Number(end - start), 0);
  // Each run may lose up to twice the alignment: before it, so that address and offset agree, and behind it.
  const spare = Math.floor((maxFile - bytes) / runs.length) - 2 * ALIGNMENT;
  const each = Math.min(room, Math.floor(spare / PAGE) * PAGE);
  if (each < Math.min(room, ALIGNMENT)) return undefined;
  const stretches: Stretch[] = [];
  let next = 0;
  for (const run of runs) {
    const first = (run[0] as Candidate).start;
    const base = Math.ceil(next / ALIGNMENT) * ALIGNMENT + Number(first % BigInt(ALIGNMENT));
    for (const candidate of run) stretches.push({ ...candidate, offset: base + Number(candidate.start - first) });
    next = base + Number((run.at(-1) as Candidate).end - first) + each;
  }
  return { stretches, size: next };
}

interface Layout {
  stretches: Stretch[];
  size: number;
}

function mayMerge(lower: Candidate, upper: Candidate): boolean {
  return (
    lower.end === upper.start &&
    lower.area.flags === upper.area.flags &&
    ((lower.area.status | upper.area.status) & STATUS.filePrivate) === 0
  );
}

/** From, up to but not including. */
type Interval = readonly [start: bigint, end: bigint];

/** Where in an area the dump holds pages: as few intervals as there are, in order. */
function presentIn(runs: readonly PageRun[], area: Area): Interval[] {
  const found: [bigint, bigint][] = [];
  for (let i = firstEndingAfter(runs, area.start); i < runs.length; i++) {
    const run = runs[i] as PageRun;
    if (run.start >= area.end) break;
    const start = greater(run.start, area.start);
    const end = lesser(endOf(run), area.end);
    const last = found.at(-1);
    if (last && last[1] === start) last[1] = end;
    else found.push([start, end]);
  }
  return found;
}

function firstEndingAfter(runs: readonly PageRun[], address: bigint): number {
  let low = 0;
  let high = runs.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (endOf(runs[middle] as PageRun) <= address) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** A piece of a run that lies in one stretch, or in none. */
export interface Piece {
  /** Which run of the process it is a piece of. */
  run: number;
  start: bigint;
  pages: number;
  /** Where its bytes lie in the run's file. */
  offset: number;
  /** Where they go in the memory file; undefined: they stay in the dump. */
  to: number | undefined;
}

/** Cuts a process's runs where stretches begin and end; every page is in exactly one piece. In address order. */
export function* cut(runs: readonly PageRun[], stretches: readonly Stretch[]): Generator<Piece> {
  let at = 0;
  for (const [index, run] of runs.entries()) {
    const end = endOf(run);
    for (let start = run.start; start < end; ) {
      while (at < stretches.length && (stretches[at] as Stretch).end <= start) at++;
      const stretch = stretches[at];
      const inside = stretch !== undefined && stretch.start <= start;
      const border = stretch === undefined ? end : inside ? stretch.end : stretch.start;
      const until = lesser(border, end);
      yield {
        run: index,
        start,
        pages: pagesBetween(start, until),
        offset: run.offset + Number(start - run.start),
        to: inside ? stretch.offset + Number(start - stretch.start) : undefined,
      };
      start = until;
    }
  }
}

function endOf(run: PageRun): bigint {
  return run.start + BigInt(run.pages * PAGE);
}

function pagesBetween(start: bigint, end: bigint): number {
  return Number(end - start) / PAGE;
}

function lesser(a: bigint, b: bigint): bigint {
  if (a < b) return a;
  return b;
}

function greater(a: bigint, b: bigint): bigint {
  return lesser(a, b) === a ? b : a;
}
