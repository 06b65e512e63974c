import fc from 'fast-check';
import { describe, it } from 'vitest';
import { live, steps } from './fleet-actions.js';

/** Set to look for longer: SIM_RUNS=2000. */
const RUNS = Number(process.env.SIM_RUNS ?? 60);

describe('a fleet to which anything happens', () => {
  it('keeps what must hold at every step, and comes to rest as it should', () => {
    fc.assert(
      fc.property(fc.integer(), steps, (seed, happenings) => void live(seed, happenings)),
      { numRuns: RUNS, seed: Number(process.env.SIM_SEED ?? 1), endOnFailure: false },
    );
  });
});
