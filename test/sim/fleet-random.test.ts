import fc from 'fast-check';
import { describe, it } from 'vitest';
import { live, steps } from './fleet-actions.js';

/** More, and other ones, are lived through by test/full. */
const RUNS = 8;
/** A machine that is busy lives through fewer, milliseconds. */
const ENOUGH_MS = 12_000;

describe('a fleet to which anything happens', () => {
  it('keeps what must hold at every step, and comes to rest as it should', () => {
    fc.assert(
      fc.property(fc.integer(), steps, (seed, happenings) => void live(seed, happenings)),
      { numRuns: RUNS, seed: 1, interruptAfterTimeLimit: ENOUGH_MS },
    );
  });
});
