import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { cut, planMapping } from '../../agent/memory/mapping.js';
import { type Area, FLAG, PAGE, STATUS } from '../../agent/memory/model.js';
import { anonymous, fileMapping, guard, stack } from './memory-fixture.js';

const RUNS = Number(process.env.INITLESS_PROPERTY_RUNS ?? 1_000);
const BASE = 0x7f00_0000_0000n;
const MIB = 2 ** 20;
const GIB = 2 ** 30;
const at = (page: number) => BASE + BigInt(page * PAGE);
/** A dump of these areas, in which every page of `full` is present, and always one of a stack. */
const plan = (areas: Area[], full: Area[] = areas, bounds?: { room: number; maxFile: number }) => {
  const end = stack(0x7fff_0000_0000n, 4);
  const runs = full.map(({ start, end }) => ({ start, pages: Number(end - start) / PAGE, file: 'p', offset: 0 }));
  const guards = areas.filter(({ status }) => status === STATUS.guard);
  const real = areas.filter((area) => !guards.includes(area));
  return planMapping(
    { pid: 1, areas: [...real, end, ...guards], runs: [...runs, { start: end.start, pages: 1, file: 'p', offset: 0 }] },
    bounds,
  );
};
/** Why an area of 100 pages is copied; undefined: it is mapped. */
const reasonFor = (more: Partial<Area>) => {
  const area = anonymous(at(0), 100, more);
  const { copied, stretches } = plan([area]);
  const reason = copied.find((copy) => copy.area === area)?.reason;
  expect(stretches.length).toBe(reason === undefined ? 1 : 0);
  return reason;
};

describe('what is mapped', () => {
  it('is large private memory, the heap too, with what madvise said of it', () => {
    expect(reasonFor({})).toBeUndefined();
    expect(reasonFor({ status: STATUS.regular | STATUS.anonymousPrivate | STATUS.heap })).toBeUndefined();
    expect(reasonFor({ flags: FLAG.private | FLAG.anonymous | 0x4000 })).toBeUndefined();
    expect(reasonFor({ prot: 0 })).toBeUndefined();
    expect(reasonFor({ madv: (1n << 10n) | (1n << 14n) | (1n << 16n) })).toBeUndefined();
  });

  it.each([
    ['grows downwards', { flags: FLAG.private | FLAG.anonymous | FLAG.growsDown }, /grows downwards/],
    ['is locked', { flags: FLAG.private | FLAG.anonymous | FLAG.locked }, /locked/],
    ['consists of huge pages', { flags: FLAG.private | FLAG.anonymous | FLAG.hugePages }, /huge pages/],
    ['may be dropped', { flags: FLAG.droppable | FLAG.anonymous }, /MAP_DROPPABLE/],
    ['is shared', { flags: FLAG.shared | FLAG.anonymous }, /not private/],
    ['contradicts itself', { flags: FLAG.private }, /contradict/],
    ['is wiped in children', { madv: 1n << 18n }, /MADV_WIPEONFORK/],
    ['is shared memory', { status: STATUS.regular | STATUS.anonymousShared }, /shared memory/],
    ['is the vdso', { status: STATUS.regular | STATUS.anonymousPrivate | STATUS.vdso }, /kernel provides/],
    ['is vvar', { status: STATUS.regular | STATUS.anonymousPrivate | STATUS.vvar }, /kernel provides/],
    ['is an aio ring', { status: STATUS.regular | STATUS.anonymousPrivate | STATUS.aioRing }, /aio/],
    ['is a shadow stack', { status: STATUS.regular | STATUS.anonymousPrivate | STATUS.shadowStack }, /shadow/],
    ['has an unknown bit', { status: STATUS.regular | STATUS.anonymousPrivate | (1 << 27) }, /0x8000201/],
    ['has the highest bit', { status: (STATUS.regular | STATUS.anonymousPrivate | (2 ** 31)) >>> 0 }, /0x80000201/],
    ['is not regular', { status: STATUS.anonymousPrivate }, /not known here/],
  ])('is not what %s', (_, more, reason) => {
    expect(reasonFor(more)).toMatch(reason);
  });

  it('is nothing in which guard pages are installed, at its end either', () => {
    const area = anonymous(at(0), 100);
    const neighbour = anonymous(at(100), 100);
    const { stretches, copied } = plan([area, neighbour, guard(at(99), 1)], [area, neighbour]);
    expect(stretches.map((stretch) => stretch.area)).toEqual([neighbour]);
    expect(copied[0]).toMatchObject({ area, pages: 100, reason: expect.stringMatching(/MADV_GUARD_INSTALL/) });
  });

  it('is nothing with fewer than 16 pages in the dump, however large', () => {
    const area = anonymous(at(0), 100_000);
    const few = plan([area], [anonymous(at(50), 15)]);
    expect(few.stretches).toEqual([]);
    expect(few.copied[0]).toMatchObject({ area, pages: 15, reason: expect.stringMatching(/fewer than 16/) });
    expect(plan([area], []).copied[0]).toMatchObject({ pages: 0, reason: 'it is empty' });
    expect(plan([area], [anonymous(at(50), 8), anonymous(at(99), 8)]).stretches).toMatchObject([{ area, pages: 16 }]);
  });

  it('leaves at least one page to copy, without which CRIU crashes', () => {
    const [small, large] = [anonymous(at(0), 20), anonymous(at(50), 30)];
    const runs = [
      { start: at(0), pages: 20, file: 'p', offset: 0 },
      { start: at(50), pages: 30, file: 'p', offset: 20 * PAGE },
    ];
    const { stretches, copied } = planMapping({ pid: 1, areas: [small, large], runs });
    expect(stretches.map(({ area }) => area)).toEqual([large]);
    expect(copied).toMatchObject([{ area: small, pages: 20, reason: expect.stringMatching(/at least one page/) }]);
  });

  it("takes rows of changed pages out of a file's mapping, and leaves the rest to the file", () => {
    const area = fileMapping(at(0), 500);
    const { stretches, copied } = plan(
      [area],
      [anonymous(at(3), 40), anonymous(at(43), 30), anonymous(at(100), 63), anonymous(at(200), 300)],
    );
    expect(stretches.map(({ start, end, pages }) => [start, end, pages])).toEqual([
      [at(3), at(73), 70],
      [at(200), at(500), 300],
    ]);
    expect(copied).toMatchObject([{ area, pages: 63, reason: expect.stringMatching(/rows of 64 or more/) }, {}]);
    expect(plan([area], [area]).copied).toHaveLength(1);
    expect(plan([area], []).copied[0]?.reason).toMatch(/was not changed/);
  });
});

describe('the place in the memory file', () => {
  it('keeps neighbours that the kernel may make one as they were, with 4 GiB of room behind them', () => {
    const [code, data] = [anonymous(at(16), 100, { prot: 5 }), anonymous(at(116), 50)];
    const far = anonymous(at(5_000), 20);
    const { stretches, size } = plan([code, data, far]);
    const [first, second, third] = stretches.map(({ offset }) => offset) as [number, number, number];
    expect(second - first).toBe(100 * PAGE);
    expect(third - (second + 50 * PAGE)).toBeGreaterThanOrEqual(4 * GIB);
    expect(size).toBe(third + 20 * PAGE + 4 * GIB);
    for (const [i, area] of [code, data, far].entries()) {
      expect(BigInt(stretches[i]?.offset ?? 0) % BigInt(2 * MIB)).toBe(area.start % BigInt(2 * MIB));
    }
  });

  it('parts neighbours that the kernel never makes one, since one that grew would show the other', () => {
    const [reserved, other] = [anonymous(at(0), 100, { flags: 0x4022 }), anonymous(at(100), 100)];
    const [first, second] = plan([reserved, other]).stretches;
    expect((second?.offset ?? 0) - (first?.offset ?? 0)).toBeGreaterThanOrEqual(4 * GIB);
  });

  it('gives all less room where the file would pass what ext4 allows', () => {
    const areas = Array.from({ length: 10_000 }, (_, i) => anonymous(at(i * 1_000), 16));
    const { stretches, size, copied } = plan(areas);
    expect(stretches).toHaveLength(10_000);
    expect(copied).toHaveLength(1);
    expect(size).toBeLessThanOrEqual(16 * 1024 * GIB - 1 * GIB);
    const rooms = stretches.slice(1).map(({ offset }, i) => offset - (stretches[i]?.offset ?? 0) - 16 * PAGE);
    expect(Math.min(...rooms)).toBeGreaterThan(1.5 * GIB);
  });

  it('leaves the largest area out where even that is not enough', () => {
    const [large, small] = [anonymous(0x1000_0000_0000n, 2 ** 32), anonymous(at(0), 16)];
    const { stretches, copied } = plan([large, small], [{ ...large, end: large.start + 4096n * 100n }, small]);
    expect(stretches.map(({ area }) => area)).toEqual([small]);
    expect(copied[0]).toMatchObject({ area: large, pages: 100, reason: expect.stringMatching(/large enough/) });
  });

  it(
    'is never that of another page, and every page of the dump has one place',
    () => {
      const part = fc.record({
        gap: fc.constantFrom(0, 0, 1, 1_000),
        make: fc.constantFrom(anonymous, anonymous, fileMapping, stack),
        more: fc.constantFrom({}, {}, { prot: 1 }, { flags: 0x4022 }, { madv: 1n << 18n }),
        rows: fc.array(fc.tuple(fc.nat({ max: 3 }), fc.integer({ min: 1, max: 120 })), { maxLength: 5 }),
        tail: fc.nat({ max: 3 }),
      });
      const bounds = fc.record({
        room: fc.constantFrom(4 * MIB, GIB),
        maxFile: fc.constantFrom(30 * MIB, GIB, 2 ** 44),
      });
      fc.assert(
        fc.property(fc.array(part, { minLength: 1, maxLength: 8 }), fc.boolean(), bounds, (parts, across, limits) => {
          const areas: Area[] = [];
          const runs: { start: bigint; pages: number; file: string; offset: number }[] = [];
          let page = 0;
          let offset = 0;
          for (const { gap, make, more, rows, tail } of parts) {
            page += gap;
            const start = page;
            for (const [skip, pages] of rows) {
              page += skip;
              const last = runs.at(-1);
              const joins = last && last.start + BigInt(last.pages * PAGE) === at(page) && across;
              if (joins) last.pages += pages;
              else runs.push({ start: at(page), pages, file: 'p', offset });
              offset += pages * PAGE;
              page += pages;
            }
            page += tail;
            if (page > start)
              areas.push(make === stack ? stack(at(start), page - start) : make(at(start), page - start, more));
          }
          const { stretches, copied, size } = planMapping({ pid: 1, areas, runs }, limits);

          let next = 0;
          let address = 0n;
          for (const { area, start, end, offset: to } of stretches) {
            expect(to).toBeGreaterThanOrEqual(next);
            expect(start >= address && start >= area.start && end <= area.end && areas.includes(area)).toBe(true);
            if (to > next && next > 0) expect(to - next).toBeGreaterThanOrEqual(2 * MIB);
            next = to + Number(end - start);
            address = end;
          }
          expect(size).toBeGreaterThanOrEqual(stretches.length > 0 ? next + 2 * MIB : 0);
          expect(size).toBeLessThanOrEqual(limits.maxFile);

          const seen: [bigint, number][] = [];
          let inFile = 0;
          let staying = 0;
          for (const { start, pages, offset: from, to } of cut(runs, stretches)) {
            for (let i = 0; i < pages; i++) seen.push([start + BigInt(i * PAGE), from + i * PAGE]);
            const stretch = stretches.find((one) => one.start <= start && start < one.end);
            expect(to).toBe(stretch && stretch.offset + Number(start - stretch.start));
            if (stretch) {
              expect(start + BigInt(pages * PAGE) <= stretch.end).toBe(true);
              inFile += pages;
            } else staying += pages;
          }
          const all = runs.flatMap((run) =>
            Array.from({ length: run.pages }, (_, i) => [run.start + BigInt(i * PAGE), run.offset + i * PAGE]),
          );
          expect(seen).toEqual(all);
          expect(stretches.reduce((sum, { pages }) => sum + pages, 0)).toBe(inFile);
          expect(copied.reduce((sum, { pages }) => sum + pages, 0)).toBe(staying);
          if (all.length > 0) expect(staying).toBeGreaterThan(0);
          const whole = new Set(
            stretches
              .filter(({ area, start, end }) => area.start === start && area.end === end)
              .map(({ area }) => area),
          );
          expect(copied.map(({ area }) => area)).toEqual(areas.filter((area) => !whole.has(area)));
        }),
        { numRuns: RUNS },
      );
    },
    30_000 + RUNS * 10,
  );
});
