import { mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { parseImage } from '../../agent/memory/image-file.js';
import { readFiles, readProcess } from '../../agent/memory/images.js';
import { type Area, PAGE } from '../../agent/memory/model.js';
import { type RewrittenProcess, rewriteDump } from '../../agent/memory/rewrite.js';
import { verifyMemoryFile } from '../../agent/memory/sparse.js';
import {
  anonymous,
  digestsOf,
  type FixtureProcess,
  fileMapping,
  guard,
  rebuild,
  stack,
  UNKNOWN,
  writeDump,
} from './memory-fixture.js';

const BASE = 0x7f00_0000_0000n;
const at = (page: number) => BASE + BigInt(page * PAGE);
const never = new AbortController().signal;
/** Two heaps, the program's data with changed pages in rows of 70 and 2, and a stack. */
const SERVICE: FixtureProcess = {
  pid: 1,
  areas: [
    fileMapping(at(0), 200),
    anonymous(at(1_000), 300),
    anonymous(at(1_300), 50, { prot: 1 }),
    anonymous(at(2_000), 4),
    stack(at(9_000), 10),
    guard(at(2_001), 1),
  ],
  present: [
    { start: at(10), pages: 70 },
    { start: at(90), pages: 2 },
    { start: at(1_100), pages: 220 },
    { start: at(2_002), pages: 2 },
    { start: at(9_005), pages: 5 },
  ],
};

let root: string;
let from: string;
let out: string;
let layer: string;
beforeEach(async () => {
  root = await mkdtemp(path.join(tmpdir(), 'initless-memory-'));
  from = path.join(root, 'dump');
  out = path.join(root, 'out');
  layer = path.join(root, 'layer');
});
afterEach(() => rm(root, { recursive: true, force: true }));

const rewrite = (bounds?: { room: number; maxFile: number }) => rewriteDump({ from, out, layer, bounds }, never);

/** Every memory file holds data within its stretches only, so that all around them reads as zeros. */
async function expectRoom(processes: readonly RewrittenProcess[]): Promise<void> {
  for (const { index, stretches } of processes) {
    if (index === undefined) continue;
    await verifyMemoryFile(path.join(layer, index.path), index);
    for (const { offset, length } of index.extents) {
      let left = length;
      for (const one of stretches) {
        const end = Math.min(one.offset + Number(one.end - one.start), offset + length);
        left -= Math.max(0, end - Math.max(one.offset, offset));
      }
      expect(left).toBe(0);
    }
  }
}

describe('a rewritten dump', () => {
  it('gives back every page at its address, large private areas from the memory file', async () => {
    await writeDump(from, [SERVICE]);
    const [process] = await rewrite();
    expect(process).toMatchObject({
      pid: 1,
      mapped: { areas: 3, bytes: (70 + 220) * PAGE },
      copied: { areas: 3, bytes: (2 + 2 + 5) * PAGE },
      index: { path: '.initless/mem-1' },
    });
    expect((await rebuild(out, layer)).get(1)).toEqual(digestsOf(SERVICE));
    expect((await stat(path.join(out, 'pages-1.img'))).size).toBe(9 * PAGE);
    const { size, blocks } = await stat(path.join(layer, '.initless/mem-1'));
    expect(size).toBe(process?.index?.size);
    expect(size).toBeGreaterThan(8 * 2 ** 30);
    expect(blocks * 512).toBeLessThan(3 * 2 ** 20);
  });

  it('says so in the areas, and keeps everything else that stood there', async () => {
    await writeDump(from, [SERVICE]);
    const [process] = await rewrite();
    const [before, after] = [await readProcess(from, 1), await readProcess(out, 1)];
    const offsets = process?.stretches.map(({ offset }) => BigInt(offset)) as bigint[];
    const mapped = { status: 65, flags: 2, shmid: 31n };
    const [data, heap, constants, ...rest] = before.memory.areas as [Area, Area, Area];
    expect(after.memory.areas).toEqual([
      { ...data, end: at(10) },
      { ...data, ...mapped, start: at(10), end: at(80), pgoff: offsets[0] },
      { ...data, start: at(80), pgoff: data.pgoff + BigInt(80 * PAGE) },
      { ...heap, ...mapped, pgoff: offsets[1] },
      { ...constants, ...mapped, pgoff: offsets[2] },
      ...rest,
    ]);
    for (const vma of after.space.vmas) {
      expect(vma._unknownFields).toEqual(before.space.vmas[0]?._unknownFields);
      expect(vma.fdflags).toBe(vma.shmid === 31n ? 0 : undefined);
    }
    expect(after.space._unknownFields).toEqual(before.space._unknownFields);
    expect(Object.keys(UNKNOWN).every((tag) => tag in (after.pagemap[0]?.message._unknownFields ?? {}))).toBe(true);
  });

  it('has the memory file among its files, on the mount of the program, without what CRIU would compare', async () => {
    await writeDump(from, [SERVICE]);
    await rewrite();
    const read = async (dir: string) =>
      parseImage(await readFile(path.join(dir, 'files.img')), 'files', 'files.img').map(({ bytes }) =>
        Buffer.from(bytes),
      );
    const [before, after] = [await read(from), await read(out)];
    expect(after.slice(0, -1)).toEqual(before);
    const [program] = (await readFiles(out)).map(({ message }) => message);
    const added = (await readFiles(out)).at(-1)?.message;
    const reg = { id: 31, flags: 0, pos: 0n, fown: program?.reg?.fown, name: '/.initless/mem-1', mntId: 143 };
    expect(added).toEqual({ type: 1, id: 31, reg: { ...reg, _unknownFields: {} }, _unknownFields: {} });
  });

  it('keeps the bytes of what it does not edit, by a second name of the same file', async () => {
    const small = { ...SERVICE, pid: 2, areas: [stack(at(9_000), 10)], present: [{ start: at(9_005), pages: 5 }] };
    await writeDump(from, [SERVICE, small]);
    const [, second] = await rewrite();
    expect(second).toMatchObject({ index: undefined, stretches: [], mapped: { areas: 0, bytes: 0 } });
    expect(await readdir(out)).toEqual(await readdir(from));
    const edited = ['files.img', 'mm-1.img', 'pagemap-1.img', 'pages-1.img'];
    for (const name of await readdir(out)) {
      const [was, is] = [await stat(path.join(from, name)), await stat(path.join(out, name))];
      expect([name, was.ino === is.ino]).toEqual([name, !edited.includes(name)]);
    }
    const entries = async (dir: string) =>
      parseImage(await readFile(path.join(dir, 'pagemap-1.img')), 'pagemap', '').map(({ bytes }) => Buffer.from(bytes));
    const [before, after] = [await entries(from), await entries(out)];
    expect(after).toEqual([before[0], before[2], before[4], before[5]]);
  });

  it('gives each process of a tree its own file, so that CRIU takes no area of a child for its parent’s', async () => {
    const child = {
      ...SERVICE,
      pid: 9,
      content: (address: bigint) => Buffer.alloc(PAGE, (Number(address >> 12n) & 0x7f) | 1),
    };
    const small = { ...SERVICE, pid: 10, areas: [anonymous(at(1_000), 300), stack(at(9_000), 10)] };
    const few = {
      ...small,
      present: [
        { start: at(1_100), pages: 15 },
        { start: at(9_005), pages: 5 },
      ],
    };
    await writeDump(from, [SERVICE, child, few]);
    await rewrite();
    const heaps = await Promise.all(
      [1, 9, 10].map(async (pid) =>
        (await readProcess(out, pid)).memory.areas.find(({ start }) => start === at(1_000)),
      ),
    );
    expect(heaps.map((heap) => [heap?.shmid, heap?.flags])).toEqual([
      [31n, 2],
      [32n, 2],
      [0n, 0x22],
    ]);
    const rebuilt = await rebuild(out, layer);
    for (const process of [SERVICE, child, few]) expect(rebuilt.get(process.pid)).toEqual(digestsOf(process));
  });

  it('holds no more than a few megabytes at a time, and still gives back rows of pages that have more', async () => {
    const large: FixtureProcess = {
      pid: 1,
      areas: [anonymous(at(0), 3_000), stack(at(9_000), 3_000)],
      present: [
        { start: at(5), pages: 2_500 },
        { start: at(9_500), pages: 2_500 },
      ],
    };
    await writeDump(from, [large]);
    await rewrite();
    expect((await rebuild(out, layer)).get(1)).toEqual(digestsOf(large));
  });

  it('leaves zeros out of the memory file', async () => {
    const zeros = (address: bigint) => Buffer.alloc(PAGE, address >= at(1_150) && address < at(1_250) ? 0 : 7);
    await writeDump(from, [{ ...SERVICE, content: zeros }]);
    const [process] = await rewrite();
    const data = process?.index?.extents.reduce((sum, { length }) => sum + length, 0) ?? 0;
    expect(data).toBeLessThan((290 - 100 + 2 * 16) * PAGE);
    expect((await rebuild(out, layer)).get(1)).toEqual(digestsOf({ ...SERVICE, content: zeros }));
    await expectRoom([process as RewrittenProcess]);
  });

  it('is readable by root only, the memory files not even writable', async () => {
    await writeDump(from, [SERVICE]);
    await rewrite();
    const mode = async (file: string) => ((await stat(file)).mode & 0o777).toString(8);
    expect(await mode(path.join(layer, '.initless'))).toBe('700');
    expect(await mode(path.join(layer, '.initless/mem-1'))).toBe('400');
    for (const name of ['pages-1.img', 'mm-1.img', 'files.img']) expect(await mode(path.join(out, name))).toBe('600');
  });

  it('gives back every page whatever the areas, their pages and the processes are', { timeout: 120_000 }, async () => {
    const area = fc.record({
      gap: fc.constantFrom(0, 0, 3),
      make: fc.constantFrom(anonymous, anonymous, fileMapping, stack),
      rows: fc.array(fc.tuple(fc.nat({ max: 2 }), fc.integer({ min: 1, max: 70 })), { maxLength: 3 }),
      tail: fc.nat({ max: 2 }),
    });
    const process = fc.record({
      areas: fc.array(area, { minLength: 1, maxLength: 5 }),
      oldForm: fc.boolean(),
      zeros: fc.constantFrom(0, 0, 16, 40),
      across: fc.boolean(),
    });
    const room = fc.constantFrom(2 ** 21, 2 ** 32);
    await fc.assert(
      fc.asyncProperty(fc.array(process, { minLength: 1, maxLength: 3 }), room, async (specs, bytes) => {
        const processes = specs.map(({ areas, oldForm, zeros, across }, index): FixtureProcess => {
          const made: FixtureProcess = { pid: index * 5 + 1, areas: [], present: [], oldForm };
          let page = 0;
          for (const { gap, make, rows, tail } of areas) {
            page += gap;
            const start = page;
            for (const [skip, pages] of rows) {
              page += skip;
              const last = made.present.at(-1);
              if (across && last && last.start + BigInt(last.pages * PAGE) === at(page)) last.pages += pages;
              else made.present.push({ start: at(page), pages });
              page += pages;
            }
            page += tail;
            if (page > start) made.areas.push(make(at(start), page - start));
          }
          made.areas.push(stack(at(page + 1), 2));
          made.present.push({ start: at(page + 2), pages: 1 });
          if (zeros > 0) {
            made.content = (address) =>
              Buffer.alloc(PAGE, (Number(address - BASE) / PAGE) % 64 < zeros ? 0 : index + 1);
          }
          return made;
        });
        await writeDump(from, processes);
        const result = await rewrite({ room: bytes, maxFile: 2 ** 40 });
        const rebuilt = await rebuild(out, layer);
        for (const [index, process] of processes.entries()) {
          expect(rebuilt.get(process.pid)).toEqual(digestsOf(process));
          const held = process.present.reduce((sum, { pages }) => sum + pages, 0);
          const { mapped, copied } = result[index] as RewrittenProcess;
          expect(mapped.bytes + copied.bytes).toBe(held * PAGE);
        }
        await expectRoom(result);
        for (const dir of [from, out, layer]) await rm(dir, { recursive: true });
      }),
      { numRuns: 150 },
    );
  });
});

describe('a dump that cannot be rewritten', () => {
  it('leaves nothing behind when a later process of it is damaged', async () => {
    await writeDump(from, [SERVICE, { ...SERVICE, pid: 2 }]);
    await truncate(path.join(from, 'mm-2.img'), 40);
    await expect(rewrite()).rejects.toMatchObject({ code: 'CHECKPOINT_DAMAGED', subject: path.join(from, 'mm-2.img') });
    expect(await readdir(root)).toEqual(['dump']);
  });

  it('leaves nothing behind when it is given up in the middle', async () => {
    await writeDump(from, [SERVICE]);
    const reason = new Error('no longer wanted');
    let asked = 0;
    const signal = {
      throwIfAborted: () => {
        if (++asked === 4) throw reason;
      },
    } as AbortSignal;
    await expect(rewriteDump({ from, out, layer }, signal)).rejects.toBe(reason);
    expect(asked).toBe(4);
    expect(await readdir(root)).toEqual(['dump']);
  });

  it('touches nothing that is there already', async () => {
    await writeDump(from, [SERVICE]);
    await mkdir(layer);
    await writeFile(path.join(layer, 'kept'), '');
    await expect(rewrite()).rejects.toMatchObject({ code: 'EEXIST' });
    expect(await readdir(layer)).toEqual(['kept']);
    expect((await readdir(root)).sort()).toEqual(['dump', 'layer']);
  });

  it('is one that continues another, or has no entry for its program', async () => {
    await writeDump(from, [SERVICE]);
    await symlink('../earlier', path.join(from, 'parent'));
    await expect(rewrite()).rejects.toThrow(/parent is not a file; dumps that continue others/);
    await rm(path.join(from, 'parent'));
    const files = await readFile(path.join(from, 'files.img'));
    await writeFile(path.join(from, 'files.img'), files.subarray(0, 8));
    await expect(rewrite()).rejects.toThrow(/files\.img has no regular file with the id 7, the program of process 1/);
  });
});
