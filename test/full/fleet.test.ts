import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { live, steps } from '../sim/fleet-actions.js';
import { comparePolicies } from '../sim/policies.js';

const RUNS = 1_000;

describe('a simulated fleet to which anything happens, for long', () => {
  it('keeps what must hold at every step, and comes to rest as it should', () => {
    // Other ones every time; a failure says how to have the same again.
    fc.assert(
      fc.property(fc.integer(), steps, (seed, happenings) => void live(seed, happenings)),
      { numRuns: RUNS },
    );
  });
});

describe('the pool policies over services that are used as published, with losses of hosts', () => {
  const rows = comparePolicies({ services: 16, days: 1, seed: 1, lossEveryHours: 24 });
  const [fixed, none, one, auto] = rows as [(typeof rows)[0], (typeof rows)[0], (typeof rows)[0], (typeof rows)[0]];

  it('start a fifth as many cold with an automatic pool as with none, for less memory than one each or keep-alive', () => {
    expect(auto.restored_percent).toBeLessThan(none.restored_percent / 5);
    expect(auto.instance_hours).toBeLessThan(fixed.instance_hours);
    expect(auto.instance_hours).toBeLessThan(one.instance_hours / 2);
  });

  it('start fewer cold for three services in four with an automatic pool than with keep-alive', () => {
    expect(auto.cold_p75_percent).toBeLessThan(fixed.cold_p75_percent);
  });
});
