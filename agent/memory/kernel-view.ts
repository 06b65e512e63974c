import { type FileHandle, open, readdir, readFile } from 'node:fs/promises';
import { PAGE } from './model.js';
import type { Stretch } from './stretches.js';

/** What the kernel shows of processes' memory: /proc/PID/maps, smaps, pagemap and status. */

/** A mapping of a process, as it is now. */
export interface Mapping extends Stretch {
  /** As in "rw-p". */
  permissions: string;
  /** Where in its file it begins, in bytes. */
  offset: number;
  /** 0n: it has no file. */
  inode: bigint;
  /** As its process sees it; "" for memory without a file and without a name, "[heap]" and the like for some of it. */
  path: string;
  /** Whether the file has lost the name `path`. */
  deleted: boolean;
}

/** A mapping with how much of it is there. */
export interface SizedMapping extends Mapping {
  /** Bytes in memory or in swap; a page of zeros that was only read does not count. */
  held: number;
}

const DELETED = ' (deleted)';
const HEADER = /^([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][ps]) ([0-9a-f]+) [0-9a-f]+:[0-9a-f]+ (\d+) *(.*)$/;

/** The mappings in the text of /proc/PID/maps or smaps, in address order. Pure. */
export function parseMaps(text: string): SizedMapping[] {
  const mappings: SizedMapping[] = [];
  for (const line of text.split('\n')) {
    const header = HEADER.exec(line);
    if (header) {
      const [, start, end, permissions = '', offset = '', inode = '0', name = ''] = header;
      const deleted = name.endsWith(DELETED);
      mappings.push({
        start: BigInt(`0x${start}`),
        end: BigInt(`0x${end}`),
        permissions,
        offset: Number.parseInt(offset, 16),
        inode: BigInt(inode),
        path: deleted ? name.slice(0, -DELETED.length) : name,
        deleted,
        held: 0,
      });
      continue;
    }
    const size = /^(?:Rss|Swap):\s+(\d+) kB$/.exec(line)?.[1];
    const last = mappings.at(-1);
    if (size !== undefined && last) last.held += Number(size) * 1024;
  }
  return mappings;
}

/** A process's mappings. Errors: those of reading /proc; ENOENT or ESRCH where there is no such process. */
export async function readMaps(pid: number): Promise<Mapping[]> {
  return parseMaps(await readFile(`/proc/${pid}/maps`, 'utf8'));
}

/** {@link readMaps} with sizes: the kernel goes through all of the process's pages for it. */
export async function readSizedMaps(pid: number): Promise<SizedMapping[]> {
  return parseMaps(await readFile(`/proc/${pid}/smaps`, 'utf8'));
}

/**
 * A path that opens the very file of a mapping, also one that has lost its name or lies in another mount namespace. The
 * kernel allows it to CAP_SYS_ADMIN and CAP_CHECKPOINT_RESTORE only.
 */
export function fileOf(pid: number, { start, end }: Mapping): string {
  return `/proc/${pid}/map_files/${start.toString(16)}-${end.toString(16)}`;
}

/**
 * Fills a buffer from a process's memory, through its opened /proc/PID/mem. Returns how many bytes can be read before the
 * first page that cannot, because nothing is mapped there or it is a guard page. Errors: ESRCH where the process has ended.
 */
export async function readMemory(mem: FileHandle, buffer: Buffer, address: bigint): Promise<number> {
  let filled = 0;
  while (filled < buffer.length) {
    try {
      const { bytesRead } = await mem.read(buffer, filled, buffer.length - filled, Number(address) + filled);
      // The kernel's answer once there is no memory left to read.
      if (bytesRead === 0) throw gone();
      filled += bytesRead;
    } catch (error) {
      if (!['EIO', 'EFAULT'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
      break;
    }
  }
  return filled;
}

/** The error of reading about a process that has ended, as the kernel gives it for most files of /proc/PID. */
export function gone(): NodeJS.ErrnoException {
  return Object.assign(new Error('the process has ended'), { code: 'ESRCH' });
}

/** Entries of a pagemap that are read at once: 256 MiB of addresses. */
const ENTRIES = 65_536;
const ENTRY_BYTES = 8;
/** In the last byte of an entry (least significant first): the page is in memory (bit 63), or swapped out (bit 62). */
const THERE = 0xc0;

/** Reads /proc/PID/pagemap. {@link close} must be called. */
export class Pagemap {
  readonly #handle: FileHandle;
  readonly #buffer = Buffer.allocUnsafe(ENTRIES * ENTRY_BYTES);

  private constructor(handle: FileHandle) {
    this.#handle = handle;
  }

  /** Errors: of open(2). */
  static async open(pid: number): Promise<Pagemap> {
    return new Pagemap(await open(`/proc/${pid}/pagemap`, 'r'));
  }

  /** Where in a stretch of addresses the process has pages of its own or mapped ones, in order, none adjacent to the next. */
  async *there({ start, end }: Stretch, signal: AbortSignal): AsyncGenerator<Stretch> {
    let open: Stretch | undefined;
    for (let at = start; at < end; ) {
      signal.throwIfAborted();
      const count = Math.min(ENTRIES, Number(end - at) / PAGE);
      const position = (Number(at) / PAGE) * ENTRY_BYTES;
      const { bytesRead } = await this.#handle.read(this.#buffer, 0, count * ENTRY_BYTES, position);
      // Nothing is to be read where the process's addresses end, or when it has ended.
      if (bytesRead < ENTRY_BYTES) break;
      const entries = Math.floor(bytesRead / ENTRY_BYTES);
      for (let i = 0; i < entries; i++) {
        const there = ((this.#buffer[i * ENTRY_BYTES + 7] as number) & THERE) !== 0;
        if (there === (open !== undefined)) continue;
        const address = at + BigInt(i * PAGE);
        if (open) yield { start: open.start, end: address };
        open = there ? { start: address, end: address } : undefined;
      }
      at += BigInt(entries * PAGE);
      if (open) open.end = at;
    }
    if (open) yield open;
  }

  /** May be called again. */
  async close(): Promise<void> {
    await this.#handle.close();
  }
}

/**
 * A process and all that descend from it: the number that each has on this host, by the number that it has in the process
 * number namespace of the first. Those that ended meanwhile are left out.
 * Errors: ENOENT or ESRCH where the first is not there.
 */
export async function treeOf(root: number): Promise<Map<number, number>> {
  const first = namespaceNumbers(await readFile(`/proc/${root}/status`, 'utf8'));
  const level = first.length - 1;
  const tree = new Map([[first[level] as number, root]]);
  const waiting = await childrenOf(root);
  for (let pid = waiting.pop(); pid !== undefined; pid = waiting.pop()) {
    const status = await unlessGone(readFile(`/proc/${pid}/status`, 'utf8'));
    const inner = status === undefined ? undefined : namespaceNumbers(status)[level];
    if (inner === undefined) continue;
    tree.set(inner, pid);
    waiting.push(...(await childrenOf(pid)));
  }
  return tree;
}

/** A process's numbers in /proc/PID/status: outermost namespace first, as seen from this /proc. Pure. */
export function namespaceNumbers(status: string): number[] {
  const numbers = /^NSpid:\s+(.+)$/m.exec(status)?.[1];
  return numbers === undefined ? [] : numbers.split(/\s+/).map(Number);
}

async function childrenOf(pid: number): Promise<number[]> {
  // Each thread lists the children that it made itself.
  const threads = (await unlessGone(readdir(`/proc/${pid}/task`))) ?? [];
  const lists = await Promise.all(
    threads.map((thread) => unlessGone(readFile(`/proc/${pid}/task/${thread}/children`, 'utf8'))),
  );
  return lists.flatMap((list) => (list ?? '').split(' ').filter((child) => child !== '')).map(Number);
}

/** What was read, or undefined where the process ended before. */
export async function unlessGone<T>(reading: Promise<T>): Promise<T | undefined> {
  try {
    return await reading;
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined;
    throw error;
  }
}
