import { writeFile } from 'node:fs/promises';
import { describe, expect, it } from 'vitest';
import { checkpointOf, type Deployed, deployHeap, HEAPS, type Mode, onWire } from '../e2e/heaps.js';
import { expectNothingWrong, expectOperationsRight, expectRightAllAlong, expectWholeHeap } from '../e2e/memory.js';
import { getJson, type InstanceRow, instances, mustRun, sleepService, wokenBy } from '../e2e/support.js';

const KINDS = Object.keys(HEAPS) as (keyof typeof HEAPS)[];
const MODES: readonly Mode[] = ['mapped', 'copied', 'lazy'];
/** First of as many ports as there are kinds and modes. */
const PORT = 8311;
/** V8 ends itself under the guard, and jemalloc goes wrong without it. */
const NEVER_MAPPED = 'node-jemalloc';
/** So many restored at the same time. */
const CROWD = 10;

/** What a kind can do besides. */
const MORE: Partial<Record<keyof typeof HEAPS, (heap: Deployed, mode: Mode) => Promise<void>>> = {
  areas: async ({ name, url, kind }, mode) => {
    await wokenBy(name, () => expectOperationsRight(url, mode));
    await expectRightAllAlong(url, kind);
  },
  forking: async ({ name, url, kind }) => {
    await wokenBy(name, () => getJson(`${url}/more`));
    const more = { heapMb: [...kind.heapMb, ...kind.heapMb.slice(0, 2)] };
    await expectRightAllAlong(url, more);
  },
  redis: async ({ name, url, kind }) => {
    await wokenBy(name, () => getJson(`${url}/refill`));
    await expectNothingWrong(url);
    await getJson(`${url}/refill`);
    await expectRightAllAlong(url, kind);
  },
};

/** As many instances as requests come at a time: each is asked for its whole heap. */
async function restoredAtOnce({ name, url, kind }: Deployed): Promise<InstanceRow[]> {
  await sleepService(name);
  await Promise.all(Array.from({ length: CROWD }, () => expectWholeHeap(url, kind)));
  return instances(name);
}

describe.each(KINDS.flatMap((kind) => MODES.map((mode) => ({ kind, mode }))))(
  '$kind with its memory $mode',
  ({ kind, mode }) => {
    it('is right from the first page to the last, whatever it does', { timeout: 900_000 }, async () => {
      const port = PORT + KINDS.indexOf(kind) * MODES.length + MODES.indexOf(mode);
      const heap = await deployHeap(kind, mode, port, { max_concurrency: 1 });
      const { memory } = await checkpointOf(heap.name);
      const expected = kind === NEVER_MAPPED && mode === 'mapped' ? 'copied' : mode;
      expect(memory?.mode, memory?.reason).toBe(onWire(expected));
      if (expected !== mode) expect(memory?.reason).toMatch(/is configured, but it is never mapped: .*V8.*jemalloc/);
      if (expected === 'mapped') expect(memory?.guarded ?? false).toBe(kind !== 'node');

      const { instance } = await wokenBy(heap.name, () => expectRightAllAlong(heap.url, heap.kind));
      expect(instance.memory).toBe(onWire(expected));
      await MORE[kind]?.(heap, mode);

      await sleepService(heap.name);
      await writeFile('/proc/sys/vm/drop_caches', '3');
      await wokenBy(heap.name, () => expectWholeHeap(heap.url, heap.kind));

      const crowd = await restoredAtOnce(heap);
      expect(crowd.length).toBeGreaterThan(1);
      expect(crowd.filter(({ memory }) => memory !== onWire(expected))).toEqual([]);
      for (const { address } of crowd) await expectNothingWrong(`http://${address}`);
      await mustRun('service', 'rm', heap.name);
    });
  },
);

describe('memory: auto', () => {
  it.each(KINDS)('maps the memory of %s, unless that cannot be right', { timeout: 600_000 }, async (kind) => {
    const name = `${kind}-auto`;
    const heap = await deployHeap(kind, 'mapped', PORT + 99, { service_name: name, memory: undefined });
    const { memory } = await checkpointOf(name);
    expect(memory?.mode, memory?.reason).toBe(onWire(kind === NEVER_MAPPED ? 'copied' : 'mapped'));
    await wokenBy(name, () => expectRightAllAlong(heap.url, heap.kind));
    await mustRun('service', 'rm', name);
  });
});
