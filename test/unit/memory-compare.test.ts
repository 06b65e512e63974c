import { mkdtemp, open, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { compareMemory, differenceError } from '../../agent/memory/compare.js';
import { MAX_DIFFERENCES } from '../../agent/memory/compare-process.js';
import { namespaceNumbers, parseMaps, treeOf } from '../../agent/memory/kernel-view.js';
import { type Area, FLAG, PAGE, type ProcessMemory, STATUS } from '../../agent/memory/model.js';
import { CAN, Child, dumpOf } from './memory-child.js';

const signal = new AbortController().signal;
const INNER = 1;
let folder: string;
let child: Child | undefined;

beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'compare-'));
});

afterEach(async () => {
  await child?.end();
  child = undefined;
  await rm(folder, { recursive: true });
});

const at = (address: bigint, pages: number, bytes = 0) => address + BigInt(pages * PAGE + bytes);
const filled = (pages: number, value: number) => Buffer.alloc(pages * PAGE, value);

function compare(dumped: ProcessMemory, ignored: { address: bigint; length: number }[] = []) {
  const hosts = new Map([[INNER, child!.pid]]);
  return compareMemory({ dumped: [dumped], hosts, ignored: ignored.map((one) => ({ pid: INNER, ...one })) }, signal);
}

/** A child with one mapping of memory without a file, of which the first pages hold something. */
async function plain(pages: number, content: Buffer): Promise<bigint> {
  child = await Child.start([{ pages }]);
  const [address] = child.addresses as [bigint];
  child.write(address, content);
  child.stop();
  return address;
}

describe.skipIf(!CAN)('comparing a stopped process with its dump', () => {
  it('finds no difference in a process that was left alone, and says how much was compared', async () => {
    await plain(600, filled(400, 7));
    const dump = await dumpOf(child!, path.join(folder, 'pages'));
    const result = await compare(dump);
    expect(result.differences).toEqual([]);
    expect(differenceError(result, 'web')).toBeUndefined();
    const pages = dump.runs.reduce((sum, run) => sum + run.pages, 0);
    expect(pages).toBeGreaterThan(400);
    expect(result.pages).toBe(pages);
    expect(result.bytes).toBe((result.pages + result.zeroPages) * PAGE);
  });

  it('names process, address and area of a single byte that differs', async () => {
    const address = await plain(600, filled(400, 7));
    const dump = await dumpOf(child!, path.join(folder, 'pages'));
    child!.write(at(address, 300, 5), Buffer.from([9]));
    const result = await compare(dump);
    expect(result.differences).toEqual([
      {
        pid: INNER,
        address: at(address, 300, 5),
        area: `private memory 0x${address.toString(16)}-0x${at(address, 600).toString(16)} rw-`,
        expectedHead: '07'.repeat(16),
        foundHead: `09${'07'.repeat(15)}`,
      },
    ]);
    const error = differenceError(result, 'web');
    expect(error).toMatchObject({ code: 'RESTORE_FAILED', subject: 'web' });
    expect(error?.message).toContain(`process 1 at 0x${at(address, 300, 5).toString(16)}, private memory`);
  });

  it('finds bytes in the last page of a run, and in every piece that is read at once', async () => {
    const address = await plain(600, filled(600, 7));
    const dump = await dumpOf(child!, path.join(folder, 'pages'));
    const places = [at(address, 0), at(address, 255, 4095), at(address, 256), at(address, 599, 4095)];
    for (const place of places) child!.write(place, Buffer.from([8]));
    expect((await compare(dump)).differences.map(({ address }) => address)).toEqual(places);
  });

  it('ends after a number of differences', async () => {
    const address = await plain(600, filled(600, 7));
    const dump = await dumpOf(child!, path.join(folder, 'pages'));
    child!.write(address, filled(600, 8));
    const result = await compare(dump);
    expect(result.differences).toHaveLength(MAX_DIFFERENCES);
    expect(differenceError(result, 'web')?.message).toContain('10 or more differences');
  });

  it('ignores the bytes that the kernel writes, and no byte beside them', async () => {
    const address = await plain(10, filled(10, 7));
    const dump = await dumpOf(child!, path.join(folder, 'pages'));
    // Across the border of two pages.
    const registered = { address: at(address, 4, -16), length: 32 };
    child!.write(registered.address, Buffer.alloc(32, 1));
    expect((await compare(dump, [registered])).differences).toEqual([]);
    child!.write(at(registered.address, 0, 32), Buffer.from([1]));
    child!.write(at(registered.address, 0, -1), Buffer.from([1]));
    expect((await compare(dump, [registered])).differences.map((one) => one.address)).toEqual([
      at(registered.address, 0, -1),
      at(registered.address, 0, 32),
    ]);
  });

  it('expects zeros where the dump holds nothing', async () => {
    const address = await plain(600, filled(4, 7));
    const dump = await dumpOf(child!, path.join(folder, 'pages'));
    child!.write(at(address, 500), Buffer.alloc(PAGE));
    const zeros = await compare(dump);
    expect(zeros.differences).toEqual([]);
    expect(zeros.zeroPages).toBeGreaterThan(0);
    child!.write(at(address, 500, 8), Buffer.from([1]));
    expect((await compare(dump)).differences).toMatchObject([
      { address: at(address, 500, 8), expectedHead: '00'.repeat(16), foundHead: `01${'00'.repeat(15)}` },
    ]);
  });

  it('leaves out what the running kernel provides, and says why', async () => {
    await plain(10, filled(10, 7));
    const dump = await dumpOf(child!, path.join(folder, 'pages'));
    const vdso = dump.areas.find(({ status }) => (status & STATUS.vdso) !== 0) as Area;
    const file = path.join(folder, 'other');
    await writeFile(file, filled(1, 1));
    const runs = [...dump.runs, { start: vdso.start, pages: 1, file, offset: 0 }].sort((a, b) =>
      a.start < b.start ? -1 : 1,
    );
    const result = await compare({ ...dump, runs });
    expect(result.differences).toEqual([]);
    expect(result.excluded).toContainEqual({ reason: 'the running kernel provides it', areas: expect.any(Number) });
  });

  it('reports an area that is not there', async () => {
    const address = await plain(10, filled(10, 7));
    const dump = await dumpOf(child!, path.join(folder, 'pages'));
    const start = 0x1000_0000n;
    const template = dump.areas.find((area) => area.start === address) as Area;
    const lost = { ...template, start, end: at(start, 20) };
    const run = { start, pages: 2, file: path.join(folder, 'pages'), offset: 0 };
    const result = await compare({ ...dump, areas: [lost, ...dump.areas], runs: [run, ...dump.runs] });
    expect(result.differences).toMatchObject([
      { address: start, foundHead: 'it cannot be read' },
      { address: at(start, 2), foundHead: 'nothing is mapped there' },
    ]);
  });

  it('reports a private mapping of a file that is mapped from another place', async () => {
    const file = path.join(folder, 'library');
    await writeFile(file, filled(40, 3));
    child = await Child.start([{ pages: 10, file, offset: 8 * PAGE }]);
    const [address] = child.addresses as [bigint];
    child.stop();
    const dump = await dumpOf(child, path.join(folder, 'pages'));
    expect((await compare(dump)).differences).toEqual([]);
    const areas = dump.areas.map((area) => (area.start === address ? { ...area, pgoff: BigInt(9 * PAGE) } : area));
    expect((await compare({ ...dump, areas })).differences).toMatchObject([
      { address, expectedHead: `offset ${9 * PAGE} of a file`, foundHead: `offset ${8 * PAGE} of ${file}` },
    ]);
  });

  it('refuses a dump whose pages are missing or cut short', async () => {
    await plain(10, filled(10, 7));
    const dump = await dumpOf(child!, path.join(folder, 'pages'));
    await truncate(path.join(folder, 'pages'), 8 * PAGE);
    await expect(compare(dump)).rejects.toMatchObject({ code: 'CHECKPOINT_DAMAGED' });
    await rm(path.join(folder, 'pages'));
    await expect(compare(dump)).rejects.toMatchObject({ code: 'CHECKPOINT_DAMAGED' });
  });

  it('says so when a process of the dump is not there, or ended', async () => {
    await plain(10, filled(10, 7));
    const dump = await dumpOf(child!, path.join(folder, 'pages'));
    await expect(compareMemory({ dumped: [dump], hosts: new Map(), ignored: [] }, signal)).rejects.toMatchObject({
      code: 'INSTANCE_LOST',
    });
    await child!.end();
    await expect(compare(dump)).rejects.toMatchObject({ code: 'INSTANCE_LOST' });
  });

  it('stops when told to', async () => {
    await plain(10, filled(10, 7));
    const dump = await dumpOf(child!, path.join(folder, 'pages'));
    const hosts = new Map([[INNER, child!.pid]]);
    const enough = AbortSignal.abort(new Error('enough'));
    await expect(compareMemory({ dumped: [dump], hosts, ignored: [] }, enough)).rejects.toThrow('enough');
  });
});

describe.skipIf(!CAN)('comparing a process that maps a memory file', () => {
  const PAGES = 200;
  const FIRST = 16;

  /** A dump of memory without a file: pages 10 to 19, and of them only those; restored from a file, from page 16 of it on. */
  async function mapped(): Promise<{ dump: ProcessMemory; address: bigint; file: string }> {
    const file = path.join(folder, 'mem-1');
    const handle = await open(file, 'w');
    await handle.write(filled(10, 5), 0, 10 * PAGE, (FIRST + 10) * PAGE);
    await handle.truncate((FIRST + PAGES + 50) * PAGE);
    await handle.close();
    child = await Child.start([{ pages: PAGES, file, offset: FIRST * PAGE }]);
    const [address] = child.addresses as [bigint];
    child.stop();
    const pages = path.join(folder, 'pages');
    await writeFile(pages, filled(10, 5));
    const area: Area = {
      start: address,
      end: at(address, PAGES),
      status: STATUS.regular | STATUS.anonymousPrivate,
      flags: FLAG.private | FLAG.anonymous,
      prot: 3,
      shmid: 0n,
      pgoff: 0n,
    };
    const runs = [{ start: at(address, 10), pages: 10, file: pages, offset: 0 }];
    return { dump: { pid: INNER, areas: [area], runs }, address, file };
  }

  it('finds no difference where the file holds the pages in place and holes elsewhere', async () => {
    const { dump } = await mapped();
    expect((await compare(dump)).differences).toEqual([]);
  });

  it('looks at pages that the process has not touched yet', async () => {
    const { dump, address, file } = await mapped();
    const handle = await open(file, 'r+');
    await handle.write(Buffer.from([6]), 0, 1, (FIRST + 15) * PAGE + 3);
    await handle.write(Buffer.from([6]), 0, 1, (FIRST + 150) * PAGE + 9);
    await handle.close();
    expect((await compare(dump)).differences.map((one) => one.address)).toEqual([
      at(address, 15, 3),
      at(address, 150, 9),
    ]);
  });

  it('looks at pages that the process wrote over holes', async () => {
    const { dump, address } = await mapped();
    child!.write(at(address, 180), Buffer.from([6]));
    expect((await compare(dump)).differences.map((one) => one.address)).toEqual([at(address, 180)]);
  });

  it('leaves what lies outside the mapping alone', async () => {
    const { dump, file } = await mapped();
    const handle = await open(file, 'r+');
    await handle.write(filled(1, 6), 0, PAGE, (FIRST - 1) * PAGE);
    await handle.write(filled(1, 6), 0, PAGE, (FIRST + PAGES) * PAGE);
    await handle.close();
    expect((await compare(dump)).differences).toEqual([]);
  });
});

describe('what the kernel shows', () => {
  it('reads mappings with their sizes', () => {
    const text = [
      '7f0000001000-7f0000003000 rw-p 00000000 00:00 0 ',
      'Size:                  8 kB',
      'Rss:                   4 kB',
      'Swap:                  4 kB',
      'SwapPss:               0 kB',
      'VmFlags: rd wr mr mw me ac ',
      '7f0000003000-7f0000004000 r--p 12345000 fe:01 77                         /a file (old) (deleted)',
      'Rss:                   0 kB',
      '',
    ].join('\n');
    expect(parseMaps(text)).toEqual([
      {
        start: 0x7f0000001000n,
        end: 0x7f0000003000n,
        permissions: 'rw-p',
        offset: 0,
        inode: 0n,
        path: '',
        deleted: false,
        held: 8192,
      },
      {
        start: 0x7f0000003000n,
        end: 0x7f0000004000n,
        permissions: 'r--p',
        offset: 0x12345000,
        inode: 77n,
        path: '/a file (old)',
        deleted: true,
        held: 0,
      },
    ]);
  });

  it('reads a process’s numbers, outermost first', () => {
    expect(namespaceNumbers('Name:\tapp\nNSpid:\t4711\t12\t1\nNSpgid:\t4711\t12\t1\n')).toEqual([4711, 12, 1]);
  });

  it('finds a process and its children by the numbers that they have', async () => {
    child = await Child.start([], true);
    // No namespace of its own: both numbers of each are the same.
    expect(await treeOf(child.pid)).toEqual(
      new Map([
        [child.pid, child.pid],
        [child.child, child.child],
      ]),
    );
    await expect(treeOf(2 ** 30)).rejects.toMatchObject({ code: 'ENOENT' });
  });
});
