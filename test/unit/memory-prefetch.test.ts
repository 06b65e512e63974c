import { describe, expect, it } from 'vitest';
import { type PrefetchBounds, type PrefetchEffects, Prefetcher } from '../../agent/memory/prefetch.js';

const PIECE = 256 * 1024;
const signal = new AbortController().signal;

/** Files that are read in no time, a clock that moves when somebody sleeps, and a record of it all. */
function world(bounds: Partial<PrefetchBounds> = {}) {
  const log: string[] = [];
  const reads: { file: string; offset: number; length: number }[] = [];
  const state = { now: 0, open: 0, most: 0, under: 0, mostReads: 0, slept: 0 };
  let fail: string | undefined;
  let gate: Promise<void> = Promise.resolve();
  const effects: PrefetchEffects = {
    open: async (file) => {
      log.push(`open ${file}`);
      state.most = Math.max(state.most, ++state.open);
      return {
        read: async (_, length, offset) => {
          state.mostReads = Math.max(state.mostReads, ++state.under);
          await gate;
          state.under--;
          if (fail === file) throw new Error(`EIO: ${file}`);
          reads.push({ file, offset, length });
          return length;
        },
        close: async () => {
          state.open--;
          if (state.under > 0) throw new Error('closed while it is read');
        },
      };
    },
    now: () => state.now,
    sleep: async (ms, signal) => {
      signal?.throwIfAborted();
      state.now += ms;
      state.slept += ms;
    },
  };
  return {
    log,
    reads,
    state,
    failing: (file: string | undefined) => {
      fail = file;
    },
    hold: () => {
      let release = () => {};
      gate = new Promise((resolve) => {
        release = resolve;
      });
      return release;
    },
    prefetcher: new Prefetcher({ bytesPerSecond: 1e12, concurrency: 1, ...bounds }, effects),
  };
}

const wanted = (file: string, ...ranges: [number, number][]) => [
  { file, ranges: ranges.map(([offset, length]) => ({ offset, length })) },
];

describe('reading ahead', () => {
  it('reads exactly the ranges, in pieces, in order', async () => {
    const { prefetcher, reads } = world();
    const done = await prefetcher.prefetch('web@1', wanted('/m', [4096, 8192], [PIECE, PIECE + 4096]), signal);
    expect(reads).toEqual([
      { file: '/m', offset: 4096, length: 8192 },
      { file: '/m', offset: PIECE, length: PIECE },
      { file: '/m', offset: 2 * PIECE, length: 4096 },
    ]);
    expect(done).toMatchObject({ bytes: 8192 + PIECE + 4096, before: false });
  });

  it('reads several pieces of a file at a time, each once, and counts them all', async () => {
    const { prefetcher, reads, state } = world({ concurrency: 4 });
    const { bytes } = await prefetcher.prefetch('web@1', wanted('/m', [0, 20 * PIECE]), signal);
    expect(bytes).toBe(20 * PIECE);
    expect(new Set(reads.map(({ offset }) => offset)).size).toBe(20);
    expect(reads).toHaveLength(20);
    expect(state.mostReads).toBe(4);
  });

  it('reads one file at a time, whoever asks', async () => {
    const { prefetcher, state, log } = world({ concurrency: 2 });
    const two = [...wanted('/a', [0, PIECE]), ...wanted('/b', [0, PIECE])];
    await Promise.all([prefetcher.prefetch('x', two, signal), prefetcher.prefetch('y', wanted('/c', [0, 1]), signal)]);
    expect(log).toEqual(['open /a', 'open /b', 'open /c']);
    expect(state).toMatchObject({ most: 1, open: 0 });
  });

  it('keeps to its rate', async () => {
    const { prefetcher, state } = world({ bytesPerSecond: PIECE, concurrency: 2 });
    const { ms } = await prefetcher.prefetch('web@1', wanted('/m', [0, 10 * PIECE]), signal);
    expect(state.slept).toBeGreaterThanOrEqual(9_000);
    expect(ms).toBe(state.slept);
  });

  it('reads a list once, and again when it is another one or its checkpoint was forgotten', async () => {
    const { prefetcher, reads } = world();
    const list = wanted('/m', [0, 4096]);
    await prefetcher.prefetch('web@1', list, signal);
    expect(await prefetcher.prefetch('web@1', list, signal)).toEqual({ bytes: 0, ms: 0, before: true });
    expect(reads).toHaveLength(1);
    await prefetcher.prefetch('web@2', list, signal);
    await prefetcher.prefetch('web@1', wanted('/m', [0, 8192]), signal);
    expect(reads).toHaveLength(3);
    prefetcher.forget('web@2');
    await prefetcher.prefetch('web@2', list, signal);
    expect(reads).toHaveLength(4);
  });

  it('reads a list once also when two ask for it at the same time', async () => {
    const { prefetcher, reads } = world();
    const list = wanted('/m', [0, 4096]);
    const both = await Promise.all([1, 2].map(() => prefetcher.prefetch('web@1', list, signal)));
    expect(both.map(({ before }) => before)).toEqual([false, true]);
    expect(reads).toHaveLength(1);
  });

  it('tells of a failure, closes the file, tries again when asked again, and goes on with the next', async () => {
    const { prefetcher, reads, state, failing } = world({ concurrency: 4 });
    failing('/m');
    const first = prefetcher.prefetch('web@1', wanted('/m', [0, 20 * PIECE]), signal);
    const next = prefetcher.prefetch('web@2', wanted('/n', [0, 4096]), signal);
    await expect(first).rejects.toThrow('EIO: /m');
    expect(await next).toMatchObject({ bytes: 4096 });
    expect(state.open).toBe(0);
    failing(undefined);
    expect(await prefetcher.prefetch('web@1', wanted('/m', [0, 4096]), signal)).toMatchObject({ before: false });
    expect(reads).toHaveLength(2);
  });

  it('stops in the middle when told to, and does not take the list for read', async () => {
    const { prefetcher, reads, hold } = world();
    const release = hold();
    const stopping = new AbortController();
    const list = wanted('/m', [0, 10 * PIECE]);
    const reading = prefetcher.prefetch('web@1', list, stopping.signal);
    stopping.abort(new Error('enough'));
    await expect(reading).rejects.toThrow('enough');
    release();
    expect(await prefetcher.prefetch('web@1', list, signal)).toMatchObject({ bytes: 10 * PIECE });
    expect(reads.length).toBeLessThanOrEqual(11);
  });

  it('lets go of one that waits for its turn as soon as it is told to stop', async () => {
    const { prefetcher, log, hold } = world();
    const release = hold();
    const first = prefetcher.prefetch('x', wanted('/a', [0, 1]), signal);
    const stopping = new AbortController();
    const second = prefetcher.prefetch('y', wanted('/b', [0, 1]), stopping.signal);
    stopping.abort(new Error('enough'));
    await expect(second).rejects.toThrow('enough');
    release();
    await first;
    await prefetcher.prefetch('z', wanted('/c', [0, 1]), signal);
    expect(log).toEqual(['open /a', 'open /c']);
  });

  it('lets no more than a number of checkpoints wait', async () => {
    const { prefetcher, hold } = world();
    const release = hold();
    const waiting = Array.from({ length: 64 }, (_, i) =>
      prefetcher.prefetch(`${i}`, wanted('/a', [0, 1]), new AbortController().signal),
    );
    await expect(prefetcher.prefetch('more', wanted('/a', [0, 1]), signal)).rejects.toMatchObject({ code: 'BUSY' });
    release();
    expect(await Promise.all(waiting)).toHaveLength(64);
    expect(await prefetcher.prefetch('more', wanted('/a', [0, 1]), signal)).toMatchObject({ bytes: 1 });
  });

  it('reads real files to their end', async () => {
    const file = new URL(import.meta.url).pathname;
    const { bytes } = await new Prefetcher().prefetch('self', wanted(file, [0, PIECE]), signal);
    expect(bytes).toBeGreaterThan(1000);
  });
});
