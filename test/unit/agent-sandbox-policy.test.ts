import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  choose,
  mayFill,
  mayKeep,
  pauseAfter,
  remembered,
  SPARES,
  surplus,
  wanted,
} from '../../agent/instance/sandbox-policy.js';

/** So many takes, a millisecond apart, the last of them at `at`. */
const takes = (count: number, at: number) => Array.from({ length: count }, (_, index) => at - count + 1 + index);

describe('the number of spare sandboxes', () => {
  it('is two while nothing happens', () => {
    expect(wanted([], 0, 1_000)).toBe(2);
    expect(wanted(takes(1, 0), 0, 1_000)).toBe(2);
  });

  it('is as many as were taken together in the last minute, and 32 at most', () => {
    expect(wanted(takes(10, 100_000), 100_000, 1_000)).toBe(10);
    expect(wanted(takes(10, 100_000), 159_000, 1_000)).toBe(10);
    expect(wanted(takes(10, 100_000), 160_001, 1_000)).toBe(2);
    expect(wanted(takes(100, 100_000), 100_000, 1_000)).toBe(32);
  });

  it('does not grow when sandboxes are taken one now and then', () => {
    const slow = Array.from({ length: 10 }, (_, index) => index * (SPARES.togetherMs + 1));
    expect(wanted(slow, slow.at(-1) as number, 1_000)).toBe(2);
  });

  it('is never more than there are ports that no tenant has', () => {
    expect(wanted(takes(10, 0), 0, 3)).toBe(3);
    expect(wanted([], 0, 0)).toBe(0);
    expect(wanted([], 0, -5)).toBe(0);
  });

  it('is the same whether all takes are remembered, or only those that can matter', () => {
    const gaps = fc.array(fc.integer({ min: 0, max: 400 }), { maxLength: 1_500 });
    fc.assert(
      fc.property(gaps, fc.nat(100_000), (steps, later) => {
        let now = 0;
        let kept: number[] = [];
        const all = steps.map((step) => {
          now += step;
          kept = remembered([...kept, now], now);
          return now;
        });
        expect(kept.length).toBeLessThanOrEqual(SPARES.most * 13);
        expect(wanted(kept, now + later, 1_000)).toBe(wanted(all, now + later, 1_000));
      }),
      { numRuns: 200 },
    );
  });
});

describe('a spare sandbox', () => {
  it('is made in a quiet moment, or at once when there is none', () => {
    expect(mayFill([], 0, 1)).toBe(true);
    expect(mayFill([1_000], 1_000 + SPARES.quietMs - 1, 1)).toBe(false);
    expect(mayFill([1_000], 1_000 + SPARES.quietMs, 1)).toBe(true);
    expect(mayFill([1_000], 1_000, 0)).toBe(true);
  });

  it('that comes back is kept as long as there are not twice as many as wanted', () => {
    expect(mayKeep(3, 2)).toBe(true);
    expect(mayKeep(4, 2)).toBe(false);
    expect(mayKeep(31, 20)).toBe(true);
    expect(mayKeep(32, 20)).toBe(false);
    expect(mayKeep(0, 0)).toBe(false);
  });

  it('beyond those wanted is removed when nobody has wanted it for a minute, longest first', () => {
    const spares = [300, 0, 100, 90_000].map((since, index) => ({ index, leadsTo: undefined, since }));
    const now = 61_000;
    expect(surplus(spares, 2, now).map(({ since }) => since)).toEqual([0, 100]);
    expect(surplus(spares, 9, now).map(({ since }) => since)).toEqual([0, 100, 300]);
    expect(surplus(spares, 0, now)).toEqual([]);
    expect(surplus(spares, -1, now)).toEqual([]);
  });

  it('is chosen by what it costs to bind it: none that leads there already, little that leads nowhere, most to another', () => {
    const other = { index: 0, leadsTo: 8080, since: 0 };
    const nowhere = { index: 1, leadsTo: undefined, since: 0 };
    const there = { index: 2, leadsTo: 80, since: 9 };
    expect(choose([other, nowhere, there], 80)).toBe(there);
    expect(choose([other, nowhere], 80)).toBe(nowhere);
    expect(choose([other], 80)).toBe(other);
    expect(choose([], 80)).toBeUndefined();
  });

  it('is the one that was spare for longest, among equals', () => {
    const spares = [5, 3, 4].map((since, index) => ({ index, leadsTo: 80, since }));
    expect(choose(spares, 80)?.since).toBe(3);
    expect(choose(spares, 81)?.since).toBe(3);
  });
});

it('the pause after failures doubles, up to a minute', () => {
  expect([1, 2, 3, 7, 50].map(pauseAfter)).toEqual([1_000, 2_000, 4_000, 60_000, 60_000]);
});
