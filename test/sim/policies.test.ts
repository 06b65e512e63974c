import { describe, expect, it } from 'vitest';
import { POLICIES, simulatePolicy } from './policies.js';
import { DAY, HOUR, MINUTE, type TrafficService } from './traffic.js';

const [FIXED, NONE, ONE, AUTO] = POLICIES as [
  (typeof POLICIES)[0],
  (typeof POLICIES)[0],
  (typeof POLICIES)[0],
  (typeof POLICIES)[0],
];
const EVERY_HALF_HOUR: TrafficService = { name: 'web', pattern: 'regular', every: 30 * MINUTE, horizon: DAY, seed: 3 };

describe('a service that is called every half hour, on three hosts', () => {
  it('starts cold without a pool, and with ten minutes of keep-alive, but perhaps the first time; never with one instance parked', () => {
    const halfDay = { ...EVERY_HALF_HOUR, horizon: DAY / 2 };
    for (const policy of [FIXED, NONE]) {
      const { requests, restored } = simulatePolicy(halfDay, policy, Number.POSITIVE_INFINITY);
      expect(restored).toBeGreaterThanOrEqual(requests - 1);
    }
    const { requests, parked } = simulatePolicy(halfDay, ONE, Number.POSITIVE_INFINITY);
    expect(parked).toBeGreaterThanOrEqual(requests - 1);
  });

  it('rarely starts cold with an automatic pool, which holds less than one that is always there', () => {
    const one = simulatePolicy(EVERY_HALF_HOUR, ONE, Number.POSITIVE_INFINITY);
    const auto = simulatePolicy(EVERY_HALF_HOUR, AUTO, Number.POSITIVE_INFINITY);
    expect(auto.restored).toBeLessThanOrEqual(auto.requests / 4);
    expect(auto.instanceHours).toBeLessThan(one.instanceHours);
  });

  it('has the same outcome in every run, with losses of hosts too', () => {
    const run = () => simulatePolicy({ ...EVERY_HALF_HOUR, horizon: 6 * HOUR }, AUTO, 1);
    expect(run()).toEqual(run());
  });
});
