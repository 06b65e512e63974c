import { beforeAll, describe, expect, it } from 'vitest';
import { AUTO, FIXED, type Outcome, type Policy, simulate } from './pool-world.js';
import { DAY, HOUR, MINUTE, type Pattern, population, type TrafficService } from './traffic.js';

function total(services: readonly TrafficService[], policy: Policy): Outcome {
  const sum: Outcome = { requests: 0, cold: 0, idleHours: 0, refills: 0 };
  for (const service of services) {
    const outcome = simulate(service, policy);
    for (const key of Object.keys(sum) as (keyof Outcome)[]) sum[key] += outcome[key];
  }
  return sum;
}

const every = (minutes: number): TrafficService => ({
  name: `every${minutes}`,
  pattern: 'regular',
  every: minutes * MINUTE,
  horizon: 5 * DAY,
  seed: minutes,
});

/** What a platform does that keeps each instance for ten minutes, and what the automatic pool does, side by side. */
describe('an automatic pool, against ten minutes of keep-alive', () => {
  // The first pauses are needed to learn from, and one in twenty is shorter than the window.
  it.each([
    [15, 0.06, 0.5],
    [30, 0.06, 0.6],
    [60, 0.1, 1],
  ])('meets calls every %i minutes at most %f as often cold, for %f of the memory', (minutes, cold, memory) => {
    const [auto, fixed] = [simulate(every(minutes), AUTO), simulate(every(minutes), FIXED)];
    expect(auto.cold).toBeLessThanOrEqual(fixed.cold * cold);
    expect(auto.idleHours).toBeLessThanOrEqual(fixed.idleHours * memory);
  });

  it('holds less for calls every 5 minutes, and is late for no more than one in a hundred', () => {
    const [auto, fixed] = [simulate(every(5), AUTO), simulate(every(5), FIXED)];
    expect(auto.idleHours).toBeLessThanOrEqual(fixed.idleHours * 0.7);
    expect(auto.cold).toBeLessThanOrEqual(auto.requests / 100);
  });

  it('restores about one instance for each call that wakes one, not more', () => {
    const auto = simulate(every(30), AUTO);
    expect(auto.refills).toBeLessThanOrEqual(auto.requests * 1.1);
  });
});

describe('automatic pools of many services, against ten minutes of keep-alive', () => {
  const services = population(40, 1);
  const patterns: Pattern[] = ['regular', 'random', 'bursty'];
  const results = new Map<string, { auto: Outcome; fixed: Outcome }>();

  beforeAll(() => {
    for (const pattern of patterns) {
      const mine = services.filter((service) => service.pattern === pattern);
      results.set(pattern, { auto: total(mine, AUTO), fixed: total(mine, FIXED) });
    }
    const say = ({ cold, idleHours }: Outcome) => `${cold} cold starts, ${idleHours.toFixed(0)} idle instance-hours`;
    for (const [pattern, { auto, fixed }] of results) {
      console.log(`${pattern}: ${auto.requests} requests; auto ${say(auto)}; fixed ${say(fixed)}`);
    }
  });

  const sum = (policy: 'auto' | 'fixed', key: keyof Outcome) =>
    [...results.values()].reduce((all, outcome) => all + outcome[policy][key], 0);

  it('follow the published spread: 45 % at most hourly, 81 % at most once a minute, the rest with 99 % of requests', () => {
    const share = (test: (service: TrafficService) => boolean) => services.filter(test).length / services.length;
    expect(share((service) => service.every >= HOUR)).toBeCloseTo(0.45, 1);
    expect(share((service) => service.every >= MINUTE)).toBeCloseTo(0.81, 1);
    const rate = (list: readonly TrafficService[]) => list.reduce((all, service) => all + 1 / service.every, 0);
    const busy = services.filter((service) => service.every < MINUTE);
    expect(rate(busy) / rate(services)).toBeGreaterThan(0.98);
  });

  it('start a sixth as many cold for those with a regular pattern, for a sixth less memory', () => {
    const { auto, fixed } = results.get('regular')!;
    expect(auto.cold).toBeLessThanOrEqual(fixed.cold / 6);
    expect(auto.idleHours).toBeLessThanOrEqual((fixed.idleHours * 5) / 6);
  });

  it.each(patterns)('start no more cold for %s ones', (pattern) => {
    const { auto, fixed } = results.get(pattern)!;
    expect(auto.cold).toBeLessThanOrEqual(fixed.cold);
  });

  it('start a third as many cold in all, for about the same memory', () => {
    expect(sum('auto', 'cold')).toBeLessThanOrEqual(sum('fixed', 'cold') / 3);
    expect(sum('auto', 'idleHours')).toBeLessThanOrEqual(sum('fixed', 'idleHours') * 1.1);
  });

  it('come to the same in every run', () => {
    const service = services.find((one) => one.pattern === 'bursty' && one.every > MINUTE)!;
    expect(simulate(service, AUTO)).toEqual(simulate(service, AUTO));
  });
});
