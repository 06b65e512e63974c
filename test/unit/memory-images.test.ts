import { appendFile, mkdtemp, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { decodeEntry, type ImageKind, parseImage, writeImage } from '../../agent/memory/image-file.js';
import { readDump, rseqAreas } from '../../agent/memory/images.js';
import { PAGE } from '../../agent/memory/model.js';
import { AddressSpace, PagemapEntry, PagemapHead, Vma } from '../../proto/gen/criu/memory.js';
import { anonymous, type FixtureProcess, fileMapping, guard, stack, UNKNOWN, writeDump } from './memory-fixture.js';

const RUNS = Number(process.env.INITLESS_PROPERTY_RUNS ?? 1_000);
const BASE = 0x7f00_0000_0000n;
const at = (page: number) => BASE + BigInt(page * PAGE);
const kind = fc.constantFrom<ImageKind>('mm', 'pagemap', 'files', 'pstree', 'core');
const PROCESS: FixtureProcess = {
  pid: 12,
  areas: [fileMapping(at(0), 10), anonymous(at(20), 40), stack(at(100), 4), guard(at(21), 1)],
  present: [
    { start: at(3), pages: 2 },
    { start: at(30), pages: 20 },
    { start: at(100), pages: 4 },
  ],
};

describe('an image file', { timeout: 30_000 + RUNS * 10 }, () => {
  it('has the same bytes after it was taken apart and put together', () => {
    fc.assert(
      fc.property(kind, fc.array(fc.uint8Array({ maxLength: 300 })), (of, entries) => {
        const image = writeImage(of, entries);
        const parsed = parseImage(image, of, 'x.img');
        expect(parsed.map(({ bytes }) => Buffer.from(bytes))).toEqual(entries.map((entry) => Buffer.from(entry)));
        expect(
          writeImage(
            of,
            parsed.map(({ bytes }) => bytes),
          ).equals(image),
        ).toBe(true);
      }),
      { numRuns: RUNS },
    );
  });

  it('is refused wherever it is cut short, but at the end of an entry', () => {
    const entries = [Buffer.from('first'), Buffer.alloc(0), Buffer.from('the third one')];
    const image = writeImage('mm', entries);
    const ends = new Set([8, 17, 21, image.length]);
    for (let length = 0; length <= image.length; length++) {
      const parse = () => parseImage(image.subarray(0, length), 'mm', '/d/mm-1.img');
      if (ends.has(length)) expect(parse).not.toThrow();
      else expect(parse).toThrow(/^\/d\/mm-1\.img is cut short/);
    }
  });

  it('is refused with its offset when it is another kind of file, or a length leads past its end', () => {
    const image = writeImage('mm', [Buffer.from('first'), Buffer.from('second')]);
    expect(() => parseImage(image, 'pagemap', 'x.img')).toThrow(/pagemap of CRIU: at offset 4 stands 0x57492820/);
    expect(() => parseImage(Buffer.alloc(100), 'mm', 'x.img')).toThrow(/no image file of CRIU: at offset 0 stands 0x0/);
    image.writeUInt32LE(7, 17);
    expect(() => parseImage(image, 'mm', 'x.img')).toThrow(/the entry at offset 17 has 7 bytes, 6 are left/);
    expect(() => parseImage(image, 'mm', 'x.img')).toThrow(expect.objectContaining({ code: 'CHECKPOINT_DAMAGED' }));
  });

  it('keeps what is not described of its messages, whatever the numbers', () => {
    const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
    const u32 = fc.nat({ max: 2 ** 32 - 1 });
    const vma = fc.record({
      start: u64,
      end: u64,
      pgoff: u64,
      shmid: u64,
      prot: u32,
      flags: u32,
      status: u32,
      madv: u64,
    });
    const fields = fc.dictionary(
      fc.integer({ min: 20, max: 5_000 }).map((number) => `${number * 8 + 2}`),
      fc.array(
        fc.uint8Array({ maxLength: 100 }).map((bytes) => Buffer.from([bytes.length, ...bytes])),
        { minLength: 1 },
      ),
    );
    fc.assert(
      fc.property(vma, fields, fields, (area, inner, outer) => {
        const space = { exeFileId: 0, vmas: [{ ...area, _unknownFields: inner }], _unknownFields: outer };
        const bytes = AddressSpace.encode(space).finish();
        const read = decodeEntry(AddressSpace, { offset: 8, bytes }, 'x.img');
        expect(read.vmas[0]).toMatchObject(area);
        expect(Buffer.from(AddressSpace.encode(read).finish()).equals(bytes)).toBe(true);
        const [changed] = AddressSpace.decode(
          AddressSpace.encode({ ...read, vmas: [{ ...read.vmas[0], pgoff: 1n } as Vma] }).finish(),
        ).vmas;
        expect(changed?._unknownFields).toEqual(
          Object.fromEntries(
            Object.entries(inner).map(([tag, values]) => [tag, values.map((value) => new Uint8Array(value))]),
          ),
        );
      }),
      { numRuns: RUNS },
    );
  });

  it('is refused when a message in it is not whole, also where the decoder would not say so', () => {
    const whole = Vma.encode({ start: 4096n, end: 8192n, _unknownFields: UNKNOWN }).finish();
    for (let length = 1; length < whole.length; length++) {
      const entry = { offset: 8, bytes: whole.subarray(0, length) };
      const start = length === 3 || length === 6;
      if (start) expect(decodeEntry(Vma, entry, 'x.img').start).toBe(4096n);
      else expect(() => decodeEntry(Vma, entry, 'x.img')).toThrow(/x\.img: the entry at offset 8 cannot be read/);
    }
    const stopped = Buffer.concat([whole, Buffer.from([0, 1, 2])]);
    expect(() => decodeEntry(Vma, { offset: 8, bytes: stopped }, 'x.img')).toThrow(/does not end where it should/);
  });
});

describe('a dump', () => {
  let root: string;
  let dir: string;
  beforeEach(async () => {
    root = await mkdtemp(path.join(tmpdir(), 'initless-memory-'));
    dir = path.join(root, 'dump');
  });
  afterEach(() => rm(root, { recursive: true, force: true }));
  const replacePagemap = (entries: Parameters<typeof PagemapEntry.encode>[0][]) =>
    writeFile(
      path.join(dir, 'pagemap-12.img'),
      writeImage('pagemap', [
        PagemapHead.encode({ pagesId: 1 }).finish(),
        ...entries.map((entry) => PagemapEntry.encode(entry).finish()),
      ]),
    );

  it.each([false, true])(
    'says which pages of each process it holds, and where (older pagemap: %s)',
    async (oldForm) => {
      await writeDump(dir, [
        { ...PROCESS, oldForm },
        { ...PROCESS, pid: 3, oldForm },
      ]);
      const [first, second] = await readDump(dir);
      expect([first?.pid, second?.pid]).toEqual([3, 12]);
      expect(second?.areas).toEqual(PROCESS.areas);
      const file = path.join(dir, 'pages-1.img');
      expect(second?.runs).toEqual([
        { start: at(3), pages: 2, file, offset: 0 },
        { start: at(30), pages: 20, file, offset: 2 * PAGE },
        { start: at(100), pages: 4, file, offset: 22 * PAGE },
      ]);
      expect(first?.runs[0]?.file).toBe(path.join(dir, 'pages-2.img'));
    },
  );

  it('says where threads have areas that the kernel writes to', async () => {
    const threads = [
      { tid: 12, rseq: { address: BASE, length: 32 } },
      { tid: 14 },
      { tid: 15, rseq: { address: BASE + 64n, length: 20 } },
    ];
    await writeDump(dir, [
      { ...PROCESS, threads },
      { ...PROCESS, pid: 20 },
    ]);
    expect(await rseqAreas(dir)).toEqual([
      { pid: 12, tid: 12, address: BASE, length: 32 },
      { pid: 12, tid: 15, address: BASE + 64n, length: 20 },
    ]);
  });

  it('is refused when it continues an earlier one, or lacks pages that it lists', async () => {
    await writeDump(dir, [PROCESS]);
    await replacePagemap([{ vaddr: at(20), nrPages: 26n, inParent: true }]);
    await expect(readDump(dir)).rejects.toThrow(/pagemap-12\.img: the entry at offset 14 refers to an earlier dump/);
    await replacePagemap([{ vaddr: at(20), nrPages: 26n, flags: 1 }]);
    await expect(readDump(dir)).rejects.toThrow(/refers to an earlier dump/);
    await replacePagemap([{ vaddr: at(20), nrPages: 26n, flags: 2 }]);
    await expect(readDump(dir)).rejects.toThrow(/has pages that are not in the dump \(flags 0x2\)/);
  });

  it('is refused when its pagemap is out of order, or names no pages', async () => {
    await writeDump(dir, [PROCESS]);
    await replacePagemap([
      { vaddr: at(30), nrPages: 20n },
      { vaddr: at(49), nrPages: 6n },
    ]);
    await expect(readDump(dir)).rejects.toThrow(/the entry at offset \d+ is not in address order/);
    await replacePagemap([{ vaddr: at(30), nrPages: 0n }]);
    await expect(readDump(dir)).rejects.toThrow(/is no run of pages: 0 at 0x7f000001e000/);
    await replacePagemap([{ vaddr: at(30) + 1n, nrPages: 26n }]);
    await expect(readDump(dir)).rejects.toThrow(/is no run of pages/);
  });

  it('is refused with the name of the file that is missing, too long or too short', async () => {
    await writeDump(dir, [PROCESS]);
    const pages = path.join(dir, 'pages-1.img');
    await appendFile(pages, 'x');
    await expect(readDump(dir)).rejects.toThrow(`${pages} has ${26 * PAGE + 1} bytes`);
    await truncate(pages, 26 * PAGE - 1);
    await expect(readDump(dir)).rejects.toMatchObject({ code: 'CHECKPOINT_DAMAGED', subject: pages });
    await rm(pages);
    await expect(readDump(dir)).rejects.toThrow(`${pages} is missing`);
    await rm(path.join(dir, 'pagemap-12.img'));
    await expect(readDump(dir)).rejects.toThrow(/pagemap-12\.img is missing/);
    await rm(path.join(dir, 'mm-12.img'));
    await expect(readDump(dir)).rejects.toThrow(/holds no process's memory/);
  });

  it('is refused when an area is out of order or not whole', async () => {
    await writeDump(dir, [{ ...PROCESS, areas: [anonymous(at(20), 40), anonymous(at(59), 3)] }]);
    await expect(readDump(dir)).rejects.toThrow(/mm-12\.img: the area at 0x7f000003b000 is not in order/);
    const bytes = await readFile(path.join(dir, 'mm-12.img'));
    await writeFile(path.join(dir, 'mm-12.img'), bytes.subarray(0, bytes.length - 3));
    await expect(readDump(dir)).rejects.toThrow(/mm-12\.img is cut short/);
    const half = AddressSpace.encode({ vmas: [{ start: at(1), end: at(2) }] }).finish();
    await writeFile(path.join(dir, 'mm-12.img'), writeImage('mm', [half]));
    await expect(readDump(dir)).rejects.toThrow(/the area at 0x7f0000001000 is not described whole/);
  });
});
