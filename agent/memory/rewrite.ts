import { type FileHandle, link, mkdir, open, readdir, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { damaged } from '../checkpoint/manifest.js';
import { sync } from '../checkpoint/tree.js';
import { editedPagemap, editedSpace, freshFileId, MEMORY_FOLDER, memoryFileEntry, memoryPath } from './edit.js';
import { writeImage } from './image-file.js';
import { type DumpedProcess, imageNames, pidsOf, readFiles, readProcess } from './images.js';
import {
  type CopiedArea,
  cut,
  type MappingBounds,
  type MappingPlan,
  type Piece,
  planMapping,
  type Stretch,
} from './mapping.js';
import { type Area, PAGE, type PageRun } from './model.js';
import { MAX_EXTENT, readAll, type SparseIndex, SparseWriter, writeAll } from './sparse.js';

/** What to rewrite, and where to. */
export interface Rewrite {
  /** Folder of a dump, as CRIU wrote it. It is only read, and may go afterwards. */
  from: string;
  /** Folder to make, on the same file system: the dump to restore. */
  out: string;
  /** Folder to make: what has to lie in an instance's root file system at the restore, `.initless/mem-PID`. */
  layer: string;
  /** Default: those of {@link planMapping}. */
  bounds?: MappingBounds;
}

/** What became of one process's memory. */
export interface RewrittenProcess {
  pid: number;
  /** What its memory file holds. Undefined: nothing of it is mapped. */
  index: SparseIndex | undefined;
  stretches: readonly Stretch[];
  /** Areas that are copied at a restore, or parts of which are, and why. */
  copiedAreas: readonly CopiedArea[];
  mapped: Share;
  copied: Share;
}

/** A part of a process's memory. */
export interface Share {
  /** Areas that the dump holds pages of. */
  areas: number;
  /** Bytes of those pages. */
  bytes: number;
}

/**
 * Writes a second dump in which large private memory is a private mapping of one file for each process, and those files.
 * What is not edited is the same file by another name (hard link). The memory files are on the disk when it returns, the
 * rest not yet. Nothing is left of `out` and `layer` when it fails; neither may be there before.
 * Errors: CHECKPOINT_DAMAGED where the dump cannot be used; EEXIST, ENOSPC and the like; the signal's reason.
 */
export async function rewriteDump(rewrite: Rewrite, signal: AbortSignal): Promise<RewrittenProcess[]> {
  const { out, layer } = rewrite;
  signal.throwIfAborted();
  await mkdir(out, { mode: 0o700 });
  try {
    await mkdir(layer);
    try {
      return await rewriteAll(rewrite, signal);
    } catch (error) {
      await rm(layer, { recursive: true, force: true });
      throw error;
    }
  } catch (error) {
    await rm(out, { recursive: true, force: true });
    throw error;
  }
}

async function rewriteAll({ from, out, layer, bounds }: Rewrite, signal: AbortSignal): Promise<RewrittenProcess[]> {
  const folder = path.join(layer, MEMORY_FOLDER);
  await mkdir(folder, { mode: 0o700 });
  const files = await readFiles(from);
  const entries = files.map(({ entry }) => entry.bytes);
  const edited = new Set<string>();
  const result: RewrittenProcess[] = [];
  let id = freshFileId(files);
  for (const pid of await pidsOf(from)) {
    const process = await readProcess(from, pid);
    const plan = planMapping(process.memory, bounds);
    const { stretches } = plan;
    const index = stretches.length > 0 ? await rewriteProcess(process, plan, id, out, layer, signal) : undefined;
    if (index) {
      entries.push(memoryFileEntry(files, process, id++, path.join(from, imageNames.files)));
      for (const name of [imageNames.space(pid), imageNames.pagemap(pid), process.pages]) edited.add(name);
    }
    result.push({
      pid,
      index,
      stretches,
      copiedAreas: plan.copied,
      mapped: shareOf(stretches),
      copied: shareOf(plan.copied),
    });
  }
  if (edited.size > 0) {
    await writeFile(path.join(out, imageNames.files), writeImage('files', entries), { mode: 0o600 });
    edited.add(imageNames.files);
  }
  await sync(folder);
  await sync(layer);
  await linkRest(from, out, edited, signal);
  return result;
}

/** Writes one process's memory file and its images. */
async function rewriteProcess(
  process: DumpedProcess,
  { pid, stretches, size }: MappingPlan,
  id: number,
  out: string,
  layer: string,
  signal: AbortSignal,
): Promise<SparseIndex> {
  const relative = memoryPath(pid);
  const memory = await SparseWriter.create(path.join(layer, relative));
  try {
    const staying = await distribute(process, stretches, memory, path.join(out, process.pages), signal);
    await writeFile(path.join(out, imageNames.space(pid)), editedSpace(process, stretches, id), { mode: 0o600 });
    await writeFile(path.join(out, imageNames.pagemap(pid)), editedPagemap(process, staying), { mode: 0o600 });
    return { path: relative, ...(await memory.finish(size)) };
  } finally {
    await memory.close();
  }
}

/** Takes every page to the memory file or to the new file of pages. Returns what went to the latter, in order. */
async function distribute(
  process: DumpedProcess,
  stretches: readonly Stretch[],
  memory: SparseWriter,
  to: string,
  signal: AbortSignal,
): Promise<Piece[]> {
  const staying: Piece[] = [];
  const { runs } = process.memory;
  const [from, copy] = await openBoth((runs[0] as PageRun).file, to);
  try {
    const buffer = Buffer.allocUnsafe(MAX_EXTENT);
    let written = 0;
    for (const piece of cut(runs, stretches)) {
      if (piece.to === undefined) staying.push(piece);
      const bytes = piece.pages * PAGE;
      for (let done = 0; done < bytes; done += buffer.length) {
        signal.throwIfAborted();
        const part = buffer.subarray(0, Math.min(buffer.length, bytes - done));
        await readAll(from, part, piece.offset + done, (runs[piece.run] as PageRun).file);
        if (piece.to !== undefined) {
          await memory.write(piece.to + done, part);
        } else {
          await writeAll(copy, part, written);
          written += part.length;
        }
      }
    }
    return staying;
  } finally {
    await Promise.all([from.close(), copy.close()]);
  }
}

async function openBoth(from: string, to: string): Promise<[FileHandle, FileHandle]> {
  const reading = await open(from, 'r');
  try {
    return [reading, await open(to, 'wx', 0o600)];
  } catch (error) {
    await reading.close();
    throw error;
  }
}

/** Gives everything that was not edited a second name. */
async function linkRest(from: string, out: string, edited: ReadonlySet<string>, signal: AbortSignal): Promise<void> {
  for (const entry of await readdir(from, { withFileTypes: true })) {
    signal.throwIfAborted();
    if (edited.has(entry.name)) continue;
    const file = path.join(from, entry.name);
    // CRIU writes files only, but for the link named `parent` of a dump that continues an earlier one.
    if (!entry.isFile()) throw damaged(`${file} is not a file; dumps that continue others are not used here`, file);
    await link(file, path.join(out, entry.name));
  }
}

function shareOf(parts: readonly { area: Area; pages: number }[]): Share {
  const used = parts.filter(({ pages }) => pages > 0);
  const pages = used.reduce((sum, part) => sum + part.pages, 0);
  return { areas: new Set(used.map(({ area }) => area)).size, bytes: pages * PAGE };
}
