import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { PAGE } from '../../agent/memory/model.js';
import {
  type FileRange,
  joined,
  memoryFileOf,
  readTouched,
  touchedPages,
  withinExtents,
  writeTouched,
} from '../../agent/memory/touched.js';
import { CAN, Child } from './memory-child.js';

const range = (page: number, pages: number): FileRange => ({ offset: page * PAGE, length: pages * PAGE });
const inPages = (ranges: readonly FileRange[]) => ranges.map(({ offset, length }) => [offset / PAGE, length / PAGE]);

describe.skipIf(!CAN)('finding the pages that a process touched', () => {
  let folder: string;
  let child: Child | undefined;

  beforeEach(async () => {
    folder = await mkdtemp(path.join(tmpdir(), 'touched-'));
    await mkdir(path.join(folder, '.initless'));
  });
  afterEach(async () => {
    await child?.end();
    child = undefined;
    await rm(folder, { recursive: true });
  });

  /** A process that maps pages 100 to 2899 of a memory file of 3000 pages, and another file besides. */
  async function mapping(): Promise<[memory: bigint, other: bigint]> {
    const file = path.join(folder, '.initless/mem-7');
    const other = path.join(folder, 'library');
    await writeFile(file, Buffer.alloc(3000 * PAGE, 3));
    await writeFile(other, Buffer.alloc(50 * PAGE, 3));
    child = await Child.start([
      { pages: 2800, file, offset: 100 * PAGE },
      { pages: 50, file: other },
    ]);
    return child.addresses as [bigint, bigint];
  }
  const touched = async () => touchedPages([child!.pid], new AbortController().signal);

  it('finds none where nothing was touched', async () => {
    await mapping();
    expect(await touched()).toEqual([]);
  });

  it('names the place in the file of pages that were read, and of those that were written', async () => {
    const [memory, other] = await mapping();
    child!.read(memory + BigInt(50 * PAGE), 1);
    child!.write(memory + BigInt(2250 * PAGE), Buffer.from([1]));
    child!.read(other, 1);
    const files = await touched();
    expect(files.map((file) => file.path)).toEqual(['.initless/mem-7']);
    const holds = (page: number) =>
      files[0]!.ranges.some(({ offset, length }) => offset <= page * PAGE && page * PAGE < offset + length);
    expect(holds(150)).toBe(true);
    expect(holds(2350)).toBe(true);
    // The kernel maps neighbours of a page that is read, up to 2 MiB of them; not the whole file.
    expect(holds(1200)).toBe(false);
    expect(holds(1600)).toBe(false);
    expect(holds(2899)).toBe(false);
  });

  it('adds up what several processes touched of one file', async () => {
    const [memory] = await mapping();
    child!.read(memory, 1);
    const both = await touchedPages([child!.pid, child!.pid, 2 ** 30], new AbortController().signal);
    expect(both).toEqual(await touched());
    expect(both).toHaveLength(1);
  });

  it('stops when told to', async () => {
    await mapping();
    await expect(touchedPages([child!.pid], AbortSignal.abort(new Error('enough')))).rejects.toThrow('enough');
  });
});

describe('the list of touched pages', () => {
  it('takes small gaps along, and leaves large ones out', () => {
    expect(inPages(joined([range(100, 1), range(0, 2), range(18, 1), range(36, 4)]))).toEqual([
      [0, 19],
      [36, 4],
      [100, 1],
    ]);
  });

  it('makes one of ranges that overlap', () => {
    expect(inPages(joined([range(0, 10), range(2, 3), range(5, 10)]))).toEqual([[0, 15]]);
  });

  it('closes larger gaps rather than become too long, and still holds every page', () => {
    const pages = fc.array(fc.tuple(fc.nat(5000), fc.integer({ min: 1, max: 9 })), { maxLength: 60 });
    fc.assert(
      fc.property(pages, fc.integer({ min: 1, max: 8 }), (list, most) => {
        const ranges = list.map(([page, count]) => range(page, count));
        const result = joined(ranges, 0, most);
        expect(result.length).toBeLessThanOrEqual(most);
        for (const { offset, length } of ranges) {
          const holder = result.find((one) => one.offset <= offset && offset + length <= one.offset + one.length);
          expect(holder).toBeDefined();
        }
        for (const [i, one] of result.entries()) {
          const next = result[i + 1];
          if (next) expect(one.offset + one.length).toBeLessThan(next.offset);
        }
      }),
      { seed: 5 },
    );
  });

  it('leaves holes of the file out', () => {
    const extents = [range(0, 4), range(10, 10), range(40, 5)];
    expect(inPages(withinExtents([range(2, 10), range(15, 2), range(30, 12), range(50, 2)], extents))).toEqual([
      [2, 2],
      [10, 2],
      [15, 2],
      [40, 2],
    ]);
  });

  it('is read back as it was written', () => {
    const files = [{ path: '.initless/mem-1', ranges: [range(0, 3), range(2 ** 31, 700)] }];
    expect(readTouched(writeTouched(files), 'touched.json')).toEqual(files);
  });

  it.each([
    ['cut short', '[{"path":".initless/mem-1","pages":[[0,'],
    ['with a path that leads elsewhere', '[{"path":"../etc/mem-1","pages":[[0,1]]}]'],
    ['with a negative page', '[{"path":".initless/mem-1","pages":[[-1,1]]}]'],
    ['with an empty range', '[{"path":".initless/mem-1","pages":[[1,0]]}]'],
  ])('is refused %s', (_, text) => {
    expect(() => readTouched(text, '/c/touched.json')).toThrow(
      expect.objectContaining({ code: 'CHECKPOINT_DAMAGED', subject: '/c/touched.json' }),
    );
  });

  it('is about memory files only, wherever their mount is', () => {
    const of = (file: string, inode = 5n) =>
      memoryFileOf({ start: 0n, end: 0n, permissions: 'rw-p', offset: 0, inode, path: file, deleted: false });
    expect(of('/.initless/mem-12')).toBe('.initless/mem-12');
    expect(of('/var/x/root/.initless/mem-1')).toBe('.initless/mem-1');
    expect(of('/x.initless/mem-1')).toBeUndefined();
    expect(of('/.initless/mem-1.old')).toBeUndefined();
    expect(of('/.initless/mem-1', 0n)).toBeUndefined();
  });
});
