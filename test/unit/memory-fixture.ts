import { createHash } from 'node:crypto';
import { mkdir, open, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { writeImage } from '../../agent/memory/image-file.js';
import { readDump } from '../../agent/memory/images.js';
import { type Area, FLAG, PAGE, STATUS } from '../../agent/memory/model.js';
import { FileEntry } from '../../proto/gen/criu/files.js';
import { AddressSpace, PagemapEntry, PagemapHead, type Vma } from '../../proto/gen/criu/memory.js';
import { Core, ProcessEntry } from '../../proto/gen/criu/threads.js';

/** Dumps made up for tests: folders as CRIU writes them, as far as this project reads them. */

/** A process of a made-up dump. */
export interface FixtureProcess {
  pid: number;
  areas: Area[];
  /** Which pages the dump holds, in address order. Each run becomes a pagemap entry. */
  present: { start: bigint; pages: number }[];
  /** Content of a page; default {@link pageOf}. */
  content?: (address: bigint) => Buffer;
  /** Threads besides the first, and areas registered by rseq(2). */
  threads?: { tid: number; rseq?: { address: bigint; length: number } }[];
  /** Writes the pagemap as CRIU did before it could count more than 2^32 pages. */
  oldForm?: boolean;
}

/** What every process's program has as its id in files.img. */
export const PROGRAM_ID = 7;
/** A field that no reader here knows, as it is kept: tag (number 1000, with a length) and bytes. */
export const UNKNOWN = { 8002: [Buffer.from([5, 104, 101, 108, 108, 111])] };
/** Field 8 of an area (fd), which CRIU demands: -1. */
const NO_FD = { 64: [Buffer.from([1])] };

/** A private area without a file. */
export function anonymous(start: bigint, pages: number, more: Partial<Area> = {}): Area {
  return {
    start,
    end: start + BigInt(pages * PAGE),
    status: STATUS.regular | STATUS.anonymousPrivate,
    flags: FLAG.private | FLAG.anonymous,
    prot: 3,
    shmid: 0n,
    pgoff: 0n,
    madv: 0n,
    ...more,
  };
}

/** A private mapping of the program's file. */
export function fileMapping(start: bigint, pages: number, more: Partial<Area> = {}): Area {
  const status = STATUS.regular | STATUS.filePrivate;
  return { ...anonymous(start, pages), status, flags: FLAG.private, shmid: BigInt(PROGRAM_ID), pgoff: 8192n, ...more };
}

/** A first thread's stack: every process has one, so that something is always copied. */
export function stack(start: bigint, pages: number): Area {
  return anonymous(start, pages, { flags: FLAG.private | FLAG.anonymous | FLAG.growsDown });
}

/** A stretch where guard pages are installed. */
export function guard(start: bigint, pages: number): Area {
  return anonymous(start, pages, { status: STATUS.guard, prot: 0 });
}

/** Content that tells each page of each process from every other. */
export function pageOf(pid: number, address: bigint): Buffer {
  return Buffer.alloc(PAGE, createHash('sha256').update(`${pid} ${address}`).digest());
}

/** Writes a dump of these processes into a new folder. */
export async function writeDump(dir: string, processes: readonly FixtureProcess[]): Promise<void> {
  await mkdir(dir);
  const put = (name: string, kind: Parameters<typeof writeImage>[0], entries: Uint8Array[]) =>
    writeFile(path.join(dir, name), writeImage(kind, entries));
  await put('files.img', 'files', [program(), otherFile()]);
  await put(
    'pstree.img',
    'pstree',
    processes.map(({ pid, threads = [] }) =>
      ProcessEntry.encode({
        pid,
        threads: [pid, ...threads.map(({ tid }) => tid).filter((tid) => tid !== pid)],
      }).finish(),
    ),
  );
  await writeFile(path.join(dir, 'dump.log'), 'made up\n');
  for (const [index, process] of processes.entries()) {
    const { pid, areas, present, threads = [], oldForm = false } = process;
    const vmas = areas.map((area): Vma => ({ ...area, _unknownFields: { ...NO_FD, ...UNKNOWN } }));
    const space = { exeFileId: PROGRAM_ID, vmas, _unknownFields: UNKNOWN };
    await put(`mm-${pid}.img`, 'mm', [AddressSpace.encode(space).finish()]);
    await put(`pagemap-${pid}.img`, 'pagemap', [
      PagemapHead.encode({ pagesId: index + 1 }).finish(),
      // What is not known stands first here, so that an entry that was read and written anew has other bytes.
      ...present.map(({ start, pages }) =>
        Buffer.concat([
          PagemapEntry.encode({ _unknownFields: UNKNOWN }).finish(),
          PagemapEntry.encode({
            vaddr: start,
            ...(oldForm ? { compatNrPages: pages } : { compatNrPages: 0, nrPages: BigInt(pages), flags: 4 }),
          }).finish(),
        ]),
      ),
    ]);
    await writeFile(path.join(dir, `pages-${index + 1}.img`), Buffer.concat(pagesOf(process).map(([, page]) => page)));
    const known = new Map(threads.map(({ tid, rseq }) => [tid, rseq]));
    for (const tid of new Set([pid, ...known.keys()])) {
      const rseq = known.get(tid);
      const rseqEntry = rseq && { rseqAbiPointer: rseq.address, rseqAbiSize: rseq.length };
      await put(`core-${tid}.img`, 'core', [Core.encode({ threadCore: { rseqEntry } }).finish()]);
    }
  }
}

/** Every page that a dump of the process holds, in order. */
export function pagesOf({
  pid,
  present,
  content = (address) => pageOf(pid, address),
}: FixtureProcess): [bigint, Buffer][] {
  return present.flatMap(({ start, pages }) =>
    Array.from({ length: pages }, (_, i): [bigint, Buffer] => {
      const address = start + BigInt(i * PAGE);
      return [address, content(address)];
    }),
  );
}

function program(): Uint8Array {
  const reg = { id: PROGRAM_ID, flags: 0, pos: 0n, fown: Buffer.from([8, 0]), name: '/usr/bin/app', mntId: 143 };
  // Size, mode and build id, which are not described here.
  const _unknownFields = { 64: [Buffer.from([42])], 80: [Buffer.from([0xed, 0x83, 0x02])], 88: [Buffer.from([3])] };
  return FileEntry.encode({ type: 1, id: PROGRAM_ID, reg: { ...reg, _unknownFields } }).finish();
}

/** Not a regular file, and with the highest id. */
function otherFile(): Uint8Array {
  const unknown = FileEntry.encode({ _unknownFields: { 34: [Buffer.from([2, 8, 30])] } }).finish();
  return Buffer.concat([unknown, FileEntry.encode({ type: 4, id: 30 }).finish()]);
}

/**
 * What a restore of a rewritten dump would fill memory with, by process and address: each area from its memory file, where
 * it maps one, and over that the pages that are copied. Pages of zeros are left out, each other is given by its digest.
 * Throws where a page has two sources.
 */
export async function rebuild(out: string, layer: string): Promise<Map<number, Map<bigint, string>>> {
  const rebuilt = new Map<number, Map<bigint, string>>();
  for (const { pid, areas, runs } of await readDump(out)) {
    const pages = new Map<bigint, string>();
    const mapped = areas.filter(({ shmid, status }) => shmid > 30n && (status & STATUS.filePrivate) !== 0);
    for (const { start, end, pgoff } of mapped) {
      await readPages(
        path.join(layer, `.initless/mem-${pid}`),
        Number(pgoff),
        start,
        Number(end - start) / PAGE,
        pages,
      );
    }
    for (const run of runs) {
      const end = run.start + BigInt(run.pages * PAGE);
      if (mapped.some((area) => area.start < end && run.start < area.end)) {
        throw new Error(`process ${pid}: ${run.start.toString(16)} is both mapped and copied`);
      }
      await readPages(run.file, run.offset, run.start, run.pages, pages);
    }
    rebuilt.set(pid, pages);
  }
  return rebuilt;
}

/** What {@link rebuild} has to give for a process. */
export function digestsOf(process: FixtureProcess): Map<bigint, string> {
  const digests = new Map<bigint, string>();
  for (const [address, page] of pagesOf(process)) note(digests, address, page);
  return digests;
}

const ZERO_PAGE = Buffer.alloc(PAGE);

function note(digests: Map<bigint, string>, address: bigint, page: Buffer): void {
  if (!page.equals(ZERO_PAGE)) digests.set(address, createHash('sha1').update(page).digest('hex'));
}

async function readPages(file: string, offset: number, start: bigint, count: number, into: Map<bigint, string>) {
  const handle = await open(file, 'r');
  try {
    const bytes = Buffer.alloc(count * PAGE);
    const { bytesRead } = await handle.read(bytes, 0, bytes.length, offset);
    if (bytesRead !== bytes.length) throw new Error(`${file} ends before ${offset + bytes.length}`);
    for (let i = 0; i < count; i++) {
      note(into, start + BigInt(i * PAGE), bytes.subarray(i * PAGE, (i + 1) * PAGE));
    }
  } finally {
    await handle.close();
  }
}
