import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { overlaps, type Stretch, uncovered } from '../../agent/memory/stretches.js';

/** Up to some stretches of small numbers, in order, without overlaps. */
const stretches = fc.uniqueArray(fc.nat(60), { maxLength: 16 }).map((points): Stretch[] => {
  const sorted = [...points].sort((a, b) => a - b).map(BigInt);
  return sorted.flatMap((start, i) =>
    i % 2 === 0 && sorted[i + 1] !== undefined ? [{ start, end: sorted[i + 1]! }] : [],
  );
});
const holds = (list: readonly Stretch[], at: bigint) => list.some(({ start, end }) => start <= at && at < end);

describe('stretches of addresses', () => {
  it('are cut at each other’s borders: every address is in an overlap or uncovered, as it should be', () => {
    fc.assert(
      fc.property(stretches, stretches, (ours, theirs) => {
        const common = [...overlaps(ours, theirs)];
        const rest = [...uncovered(ours, theirs)];
        for (let at = 0n; at < 62n; at++) {
          expect(holds(common, at)).toBe(holds(ours, at) && holds(theirs, at));
          expect(holds(rest, at)).toBe(holds(ours, at) && !holds(theirs, at));
        }
        for (const { start, end, a, b } of common) {
          expect(a.start <= start && end <= a.end && b.start <= start && end <= b.end).toBe(true);
        }
        for (const { start, end, a } of rest) expect(a.start <= start && end <= a.end).toBe(true);
      }),
      { seed: 5, numRuns: 500 },
    );
  });

  it('may be covered by stretches that overlap one another', () => {
    const cover = [
      { start: 2n, end: 9n },
      { start: 3n, end: 5n },
      { start: 8n, end: 12n },
    ];
    expect([...uncovered([{ start: 0n, end: 20n }], cover)].map(({ start, end }) => [start, end])).toEqual([
      [0n, 2n],
      [12n, 20n],
    ]);
  });
});
