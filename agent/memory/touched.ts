import { z } from 'zod';
import { damaged } from '../checkpoint/manifest.js';
import { MEMORY_FOLDER } from './edit.js';
import { type Mapping, Pagemap, readMaps, unlessGone } from './kernel-view.js';
import { PAGE } from './model.js';

/** A part of a file. Bytes, multiples of 4096. */
export interface FileRange {
  offset: number;
  length: number;
}

/** What of a memory file is wanted early. */
export interface TouchedFile {
  /** As in an index of sparse files: path below the folder that holds memory files, such as ".initless/mem-1". */
  path: string;
  /** In order, none adjacent to the next. */
  ranges: FileRange[];
}

/** Pages between two touched ones that are taken along: reading them costs less than a further read. */
const MAX_GAP = 16 * PAGE;
/** Bound on the ranges of one file; larger gaps are closed to keep it. */
const MAX_RANGES = 4096;

/**
 * The pages of memory files that processes have touched since they were restored: those in their page tables, and what
 * they wrote, which was read from the file first. The kernel maps neighbours of a page that is read along with it: those of
 * 16 that are in the page cache, or all that it keeps in one block with it, at most 2 MiB. They are in the list too.
 *
 * Whatever else read a process's memory counts as touching it, a comparison with its dump above all: ask about an instance
 * that has not been compared.
 * Processes that have ended are left out. Errors: the signal's reason, those of reading /proc.
 */
export async function touchedPages(pids: Iterable<number>, signal: AbortSignal): Promise<TouchedFile[]> {
  const files = new Map<string, FileRange[]>();
  for (const pid of pids) {
    const mappings = ((await unlessGone(readMaps(pid))) ?? []).flatMap((mapping) => {
      const file = memoryFileOf(mapping);
      return file === undefined ? [] : [{ mapping, file }];
    });
    if (mappings.length === 0) continue;
    const pagemap = await unlessGone(Pagemap.open(pid));
    if (pagemap === undefined) continue;
    try {
      for (const { mapping, file } of mappings) {
        const ranges = files.get(file) ?? [];
        files.set(file, ranges);
        for await (const { start, end } of pagemap.there(mapping, signal)) {
          ranges.push({ offset: mapping.offset + Number(start - mapping.start), length: Number(end - start) });
        }
      }
    } finally {
      await pagemap.close();
    }
  }
  return [...files]
    .map(([path, ranges]) => ({ path, ranges: joined(ranges) }))
    .filter(({ ranges }) => ranges.length > 0)
    .sort((a, b) => (a.path < b.path ? -1 : 1));
}

/** Its own mount ends a path as the kernel shows it, whichever that is; the file may have lost its name by now. */
const MEMORY_FILE = new RegExp(`(?:^|/)(${MEMORY_FOLDER.replace('.', '\\.')}/mem-\\d+)$`);

/** The memory file that a mapping is of, as a path below the folder that holds them; undefined for any other mapping. */
export function memoryFileOf({ inode, path }: Mapping): string | undefined {
  return inode === 0n ? undefined : MEMORY_FILE.exec(path)?.[1];
}

/** Ranges in order, those that overlap or lie close together made one, and no more than `most`. Pure. */
export function joined(ranges: readonly FileRange[], gap = MAX_GAP, most = MAX_RANGES): FileRange[] {
  const result: FileRange[] = [];
  for (const { offset, length } of [...ranges].sort((a, b) => a.offset - b.offset)) {
    const last = result.at(-1);
    if (last && offset - (last.offset + last.length) <= gap) {
      last.length = Math.max(last.length, offset + length - last.offset);
    } else {
      result.push({ offset, length });
    }
  }
  return result.length <= most ? result : joined(result, 2 * Math.max(gap, PAGE), most);
}

/** What of `ranges` a file holds data for: its holes need not be read. Both in order and without overlaps. Pure. */
export function withinExtents(ranges: readonly FileRange[], extents: readonly FileRange[]): FileRange[] {
  const result: FileRange[] = [];
  let next = 0;
  for (const { offset, length } of ranges) {
    const end = offset + length;
    while (next < extents.length && endOf(extents[next] as FileRange) <= offset) next++;
    for (let i = next; i < extents.length; i++) {
      const extent = extents[i] as FileRange;
      if (extent.offset >= end) break;
      const start = Math.max(offset, extent.offset);
      result.push({ offset: start, length: Math.min(end, endOf(extent)) - start });
    }
  }
  return result;
}

function endOf({ offset, length }: FileRange): number {
  return offset + length;
}

const pages = z
  .number()
  .int()
  .nonnegative()
  .max(Number.MAX_SAFE_INTEGER / PAGE);
const LIST = z.array(
  z.strictObject({
    path: z.string().regex(MEMORY_FILE),
    // First page and number of pages.
    pages: z.array(z.tuple([pages, pages.positive()])).max(MAX_RANGES),
  }),
);

/** The text of a checkpoint's list of pages that are wanted early. */
export function writeTouched(files: readonly TouchedFile[]): string {
  const list = files.map(({ path, ranges }) => ({
    path,
    pages: ranges.map(({ offset, length }) => [offset / PAGE, length / PAGE]),
  }));
  return `${JSON.stringify(list)}\n`;
}

/** Reads {@link writeTouched}'s text. Errors: CHECKPOINT_DAMAGED. */
export function readTouched(text: string, file: string): TouchedFile[] {
  try {
    return LIST.parse(JSON.parse(text)).map(({ path, pages }) => ({
      path,
      ranges: pages.map(([first, count]) => ({ offset: first * PAGE, length: count * PAGE })),
    }));
  } catch (cause) {
    throw damaged(`${file} is not a list of pages: ${(cause as Error).message}`, file, cause);
  }
}
