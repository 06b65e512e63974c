import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseServiceConfig } from '../../control-plane/config/service.js';
import { parseSettings } from '../../control-plane/config/settings.js';
import {
  BIN_MS,
  BINS,
  type History,
  historyFromJson,
  historyToJson,
  newHistory,
  observe,
  target,
  type UseReport,
} from '../../control-plane/core/autoscale.js';
import {
  memoryBudget,
  type Planned,
  planPools,
  SHRINK_AFTER_MS,
  shareMemory,
  type Wish,
} from '../../control-plane/core/pool-plan.js';
import { World } from './control-plane-world.js';

const START = 1_700_000_000_000;
const LIMITS = { maxPoolSize: 10 };

/** A service that a host reports of every 5 seconds. */
class Service {
  now = START;
  history: History | undefined;
  said: UseReport = { source: 'h 1', arrivals: 0, inUse: 0, idleMs: 0, stretch: 1, mostInUse: 0, mostTaken: 0 };
  #usedAt = 0;

  report(): void {
    const idleMs = this.#usedAt === 0 ? 0 : this.now - this.#usedAt;
    this.history = observe(this.history, { ...this.said, idleMs }, this.now);
  }

  /** Called once, by so many at a time, each in an instance of its own. */
  call(together = 1): void {
    const { arrivals, stretch } = this.said;
    this.said = {
      ...this.said,
      ...{ arrivals: arrivals + together, stretch: stretch + 1, mostInUse: together, mostTaken: together },
    };
    this.#usedAt = this.now;
    this.report();
  }

  /** Time passes, and is reported. */
  wait(minutes: number): void {
    for (const end = this.now + minutes * BIN_MS; this.now < end; ) {
      this.now = Math.min(end, this.now + 5_000);
      this.report();
    }
  }

  /** Time passes that nobody sees. */
  miss(minutes: number): void {
    this.now += minutes * BIN_MS;
  }

  target(limits = LIMITS) {
    return target(this.history!, limits, this.now);
  }
}

/** A service that has been called at these pauses, in minutes, many times. */
function called(pauses: readonly number[], together = 1, times = 20): Service {
  const service = new Service();
  service.report();
  for (let n = 0; n < times; n++) {
    service.call(together);
    service.wait(pauses[n % pauses.length]!);
  }
  service.call(together);
  return service;
}

describe('what an automatic pool is to hold', () => {
  it('is one instance for ten minutes after the service came in or was used, while little is known', () => {
    const service = new Service();
    service.report();
    service.wait(9);
    expect(service.target()).toMatchObject({ parked: 1, ready: 1 });
    service.wait(2);
    expect(service.target()).toMatchObject({ parked: 0 });
    service.call();
    service.wait(9);
    expect(service.target()).toMatchObject({ parked: 1, nextLookAt: service.now + BIN_MS });
    expect(service.target().reason).toBe('too few pauses seen to know its pattern: parked for 10 min after each use');
  });

  it('is nothing right after a call that comes every half hour, and one instance shortly before the next', () => {
    const service = called([30]);
    service.wait(5);
    const { parked, nextLookAt, reason } = service.target();
    expect(parked).toBe(0);
    expect(reason).toBe('its pauses last 30 to 31 min; parked again 29 min after the last use');
    service.now = nextLookAt - 1;
    expect(service.target().parked).toBe(0);
    service.now = nextLookAt;
    expect(service.target()).toMatchObject({ parked: 1, chance: 1 });
    expect(nextLookAt - service.history!.lastUse).toBeCloseTo(28.5 * BIN_MS);
  });

  it('is nothing once the longest usual pause has passed', () => {
    const service = called([30]);
    service.wait(36);
    expect(service.target()).toMatchObject({
      parked: 0,
      nextLookAt: Number.POSITIVE_INFINITY,
      reason: 'its pauses last 30 to 31 min; not used for longer than that',
    });
  });

  it('lasts over the whole window where pauses are of several lengths', () => {
    const service = called([3, 20]);
    for (const minutes of [2.5, 10, 19]) {
      service.now = service.history!.lastUse + minutes * BIN_MS;
      expect(service.target().parked, `after ${minutes} min`).toBe(1);
    }
  });

  it('follows a pattern that has changed', () => {
    const service = called([30], 1, 50);
    for (let n = 0; n < 100; n++) {
      service.wait(5);
      service.call();
    }
    service.wait(12);
    expect(service.target()).toMatchObject({ parked: 0 });
    expect(service.target().reason).toContain('its pauses last 5 to 6 min');
  });

  it('is ten minutes after each use where pauses follow no pattern, or are mostly longer than four hours', () => {
    const random = called(
      Array.from({ length: 97 }, (_, n) => ((n * 37) % 97) * 2 + 2),
      1,
      97,
    );
    expect(random.history!.bins.filter((weight) => weight > 0).length).toBeGreaterThan(90);
    random.wait(9);
    expect(random.target()).toMatchObject({ parked: 1 });
    expect(random.target().reason).toContain('no pattern');
    const rare = called([300], 1, 10);
    rare.wait(9);
    expect(rare.target()).toMatchObject({ parked: 1 });
    expect(rare.target().reason).toContain('most pauses are longer than 240 min');
  });

  it('is as many as are usually taken together, within max_pool_size', () => {
    const service = called([30], 4);
    service.now = service.history!.lastUse + 30 * BIN_MS;
    expect(service.target()).toMatchObject({ parked: 4, ready: 4 });
    expect(service.target({ maxPoolSize: 3 })).toMatchObject({ parked: 3, ready: 3 });
  });

  it('does not follow one burst in a hundred', () => {
    const service = called([2], 1, 30);
    service.call(9);
    for (let n = 0; n < 30; n++) {
      service.wait(2);
      service.call();
    }
    service.wait(1.5);
    expect(service.target()).toMatchObject({ parked: 1 });
  });

  it('counts those that run for what stands ready, and not for what is taken together', () => {
    const service = new Service();
    service.said = { ...service.said, arrivals: 9, inUse: 5, mostInUse: 6, mostTaken: 2 };
    service.report();
    expect(service.target()).toMatchObject({
      parked: 2,
      ready: 6,
      reason: 'in use, lately by up to 6 instances at once',
    });
  });
});

describe('a history', () => {
  it('is the same whether reports are lost or come twice', () => {
    const all = called([30]);
    const some = new Service();
    some.report();
    for (let n = 0; n < 20; n++) {
      some.call();
      some.report();
      some.report();
      for (let minute = 0; minute < 30; minute++) {
        some.miss(0.95);
        some.wait(0.05);
      }
    }
    some.call();
    expect(some.history!.bins).toEqual(all.history!.bins);
    expect(some.history!.bursts).toEqual(all.history!.bursts);
  });

  it('counts pauses of less than a minute as one use', () => {
    const service = called([0.5], 1, 40);
    expect(service.history!.bins.every((weight) => weight === 0)).toBe(true);
  });

  it('does not take a time in which nobody looked for a pause', () => {
    const service = called([30]);
    const before = service.history!.bins;
    service.miss(45);
    service.call();
    expect(service.history!.bins).toEqual(before);
    expect(service.history!.lastUse).toBe(service.now);
  });

  it('takes a pause that began before nobody looked, and ended after', () => {
    const service = called([30]);
    const [before] = [service.history!.bins[45]];
    service.wait(10);
    service.miss(10);
    service.wait(25);
    service.call();
    expect([before, service.history!.bins[45]]).toEqual([0, 1]);
  });

  it('counts anew when the agent has started again', () => {
    const service = called([30]);
    service.said = { ...service.said, source: 'h 2', arrivals: 0, stretch: 1, mostInUse: 0, mostTaken: 0 };
    service.wait(30);
    service.call();
    expect(service.target().reason).toContain('its pauses last 30 to 31 min');
    expect(service.history!.bins[30]).toBeGreaterThan(10);
  });

  it('keeps a burst of a host that has gone among the others', () => {
    const service = called([30]);
    service.call(9);
    service.said = { ...service.said, source: 'h 2', stretch: 1, mostInUse: 0, mostTaken: 0 };
    service.wait(2);
    expect(service.history).toMatchObject({ sources: [{ id: 'h 2' }] });
    expect(service.history!.bursts.at(-1)).toBe(9);
    for (let n = 0; n < 30; n++) {
      service.call();
      service.wait(30);
    }
    expect(service.target().parked).toBe(1);
  });

  it('is the same after it was stored, to a thousandth, and small', () => {
    const { history } = called([3, 20, 300], 3, 60);
    const text = JSON.stringify(historyToJson(history!));
    expect(text.length).toBeLessThan(3_000);
    const again = historyFromJson(JSON.parse(text))!;
    expect({ ...again, bins: [] }).toEqual({ ...history, bins: [] });
    for (const [bin, weight] of history!.bins.entries()) expect(again.bins[bin]).toBeCloseTo(weight, 2);
  });

  it.each([
    undefined,
    null,
    7,
    {},
    { lastUse: 'x' },
    { ...(historyToJson(newHistory(1)) as object), bins: [[BINS, 1]] },
  ])('that was damaged is none: %j', (raw) => {
    expect(historyFromJson(raw)).toBeUndefined();
  });
});

const REPORT = fc.record({
  source: fc.constantFrom('a 1', 'a 2', 'b 1'),
  arrivals: fc.nat({ max: 1_000_000 }),
  inUse: fc.nat({ max: 50 }),
  idleMs: fc.nat({ max: 10 ** 9 }),
  stretch: fc.nat({ max: 100 }),
  mostInUse: fc.nat({ max: 10_000 }),
  mostTaken: fc.nat({ max: 10_000 }),
});
/** Also backwards, as a clock that is set does. */
const STEP = fc.integer({ min: -60_000, max: 6 * 3_600_000 });

describe('whatever is reported, whenever', () => {
  const STEPS = fc.array(fc.tuple(STEP, REPORT), { minLength: 1, maxLength: 300 });

  function play(steps: readonly [number, UseReport][]): { history: History; now: number } {
    let now = START;
    let history: History | undefined;
    for (const [step, report] of steps) {
      now += step;
      history = observe(history, report, now);
    }
    return { history: history!, now };
  }

  it('the pool is a whole number of instances within its limits, with a reason and a later time to look', () => {
    fc.assert(
      fc.property(STEPS, fc.integer({ min: 1, max: 10_000 }), STEP, (steps, maxPoolSize, later) => {
        const { history, now } = play(steps);
        const { parked, ready, chance, reason, nextLookAt } = target(history, { maxPoolSize }, now + later);
        expect(Number.isInteger(parked) && parked >= 0 && parked <= ready && ready <= maxPoolSize).toBe(true);
        expect(chance >= 0 && chance <= 1).toBe(true);
        expect(reason).not.toMatch(/NaN|Infinity|undefined/);
        expect(nextLookAt).toBeGreaterThan(now + later);
      }),
      { numRuns: 500 },
    );
  });

  it('the history stays small, and what is stored of it can be read', () => {
    fc.assert(
      fc.property(STEPS, (steps) => {
        const { history } = play(steps);
        expect(history.bins).toHaveLength(BINS);
        expect(history.bursts.length + history.peaks.length + history.sources.length).toBeLessThanOrEqual(130);
        expect([...history.bins, history.beyond].every((weight) => weight >= 0 && weight <= 51)).toBe(true);
        expect(JSON.stringify(historyToJson(history)).length).toBeLessThan(12_000);
        expect(historyFromJson(JSON.parse(JSON.stringify(historyToJson(history))))).toBeDefined();
      }),
      { numRuns: 300 },
    );
  });

  it('the same comes of the same', () => {
    fc.assert(
      fc.property(STEPS, (steps) => {
        const [one, other] = [play(steps), play(steps)];
        expect(one).toEqual(other);
        expect(target(one.history, LIMITS, one.now)).toEqual(target(other.history, LIMITS, other.now));
      }),
      { numRuns: 50 },
    );
  });
});

describe('memory for parked instances', () => {
  const POOLS = fc.uniqueArray(
    fc.record({
      service: fc.stringMatching(/^[a-z]{1,3}$/),
      parked: fc.nat({ max: 20 }),
      held: fc.nat({ max: 20 }),
      memory: fc.nat({ max: 2 ** 30 }),
      chance: fc.double({ min: 0, max: 1, noNaN: true }),
    }),
    { selector: (pool) => pool.service, maxLength: 20 },
  );
  const UNMEASURED = 32 * 2 ** 20;

  it('is never shared out beyond the budget, nor beyond what is wanted; more of it takes from nobody', () => {
    fc.assert(
      fc.property(POOLS, fc.nat({ max: 2 ** 33 }), fc.nat({ max: 2 ** 32 }), (pools, budget, more) => {
        const shares = shareMemory(pools, budget);
        const used = pools.reduce((sum, pool) => sum + shares.get(pool.service)! * (pool.memory || UNMEASURED), 0);
        expect(used).toBeLessThanOrEqual(budget);
        const richer = shareMemory(pools, budget + more);
        for (const { service, parked } of pools) {
          expect(shares.get(service)).toBeLessThanOrEqual(parked);
          expect(richer.get(service)).toBeGreaterThanOrEqual(shares.get(service)!);
        }
      }),
      { numRuns: 500 },
    );
  });

  it('goes to what is most likely to be needed for its size', () => {
    const pool = (service: string, memory: number, chance: number) => ({ service, parked: 2, held: 2, memory, chance });
    const shares = shareMemory([pool('large', 100, 0.9), pool('small', 10, 0.9), pool('idle', 10, 0.01)], 125);
    expect([...shares]).toEqual([
      ['large', 1],
      ['small', 2],
      ['idle', 0],
    ]);
  });

  it('leaves a fifth of the host free, 1 GiB at most, and counts what parked instances hold already', () => {
    expect(memoryBudget({ memoryTotal: 1_000, memoryAvailable: 500 }, 0)).toBe(300);
    expect(memoryBudget({ memoryTotal: 1_000, memoryAvailable: 100 }, 50)).toBe(0);
    expect(memoryBudget({ memoryTotal: 2 ** 40, memoryAvailable: 2 ** 35 }, 7)).toBe(2 ** 35 + 7 - 2 ** 30);
  });
});

describe('a plan', () => {
  const wish = (parked: number, more: Partial<Wish> = {}): Wish => ({
    service: 'a',
    hosts: ['h'],
    target: { parked, ready: parked, chance: 0.9, reason: 'r', nextLookAt: Number.POSITIVE_INFINITY },
    maxPoolSize: 10,
    memory: 100,
    ...more,
  });
  const plan = (wishes: Wish[], before: Map<string, Planned>, now: number, budget = 10_000) =>
    planPools(wishes, new Map([['h', budget]]), before, now);

  it('grows at once and shrinks late', () => {
    let plans = plan([wish(1)], new Map(), 0);
    plans = plan([wish(3)], plans, 1);
    expect(plans.get('a')).toMatchObject({ parked: 3 });
    plans = plan([wish(0)], plans, 2);
    expect(plans.get('a')).toMatchObject({ parked: 3 });
    plans = plan([wish(0)], plans, 1 + SHRINK_AFTER_MS);
    expect(plans.get('a')).toMatchObject({ parked: 3 });
    plans = plan([wish(0)], plans, 2 + SHRINK_AFTER_MS);
    expect(plans.get('a')).toMatchObject({ parked: 0, usefulness: 0 });
  });

  it('stays as it is for a service that is used every other moment', () => {
    let plans = plan([wish(2)], new Map(), 0);
    for (let now = 0; now < 10 * SHRINK_AFTER_MS; now += 10_000) {
      plans = plan([wish(now % 20_000 === 0 ? 2 : 0)], plans, now);
      expect(plans.get('a')).toMatchObject({ parked: 2 });
    }
  });

  it('takes a lower max_pool_size at once', () => {
    const plans = plan([wish(5)], new Map(), 0);
    expect(plan([wish(2, { maxPoolSize: 2 })], plans, 1).get('a')).toMatchObject({ parked: 2, ready: 2 });
  });

  it('says when memory is what limits it', () => {
    const plans = plan([wish(5)], new Map(), 0, 250);
    expect(plans.get('a')).toMatchObject({ parked: 2, reason: 'r; 5 wanted on h, but it has memory for 2' });
  });

  it('does not move back and forth when memory is just enough', () => {
    let plans = plan([wish(1)], new Map(), 0, 105);
    expect(plans.get('a')?.parked).toBe(0);
    plans = plan([wish(1)], plans, 1, 112);
    expect(plans.get('a')?.parked).toBe(1);
    plans = plan([wish(1)], plans, 2, 105);
    expect(plans.get('a')?.parked).toBe(1);
  });

  it('reaches the host by one command, and makes no revision', () => {
    const world = new World(['host1']);
    world.connect('host1');
    world.apply('a', '1', 'pre_start_pool_size: auto\n');
    const settle = () => {
      while (world.step() > 0) world.endBuild('made');
    };
    world.pools.set('a', { ...{ parked: 1, ready: 1, usefulness: 2, reason: 'x' }, perHost: new Map([['host1', 1]]) });
    settle();
    expect(world.hosts.get('host1')?.assignments[0]?.pool).toMatchObject({ parked: 1, ready: 1, usefulness: 2 });
    world.decided.length = 0;
    world.pools.set('a', { parked: 0, ready: 0, usefulness: 0, reason: 'y', perHost: new Map() });
    settle();
    expect(world.decided.map((decision) => decision.type)).toEqual(['assign']);
    world.decided.length = 0;
    world.pools.set('a', { parked: 0, ready: 0, usefulness: 0, reason: 'another reason', perHost: new Map() });
    settle();
    expect(world.decided).toEqual([]);
  });

  it('is not sent for a pool of a fixed number', () => {
    const world = new World(['host1']);
    world.connect('host1');
    world.apply('a', '1', 'pre_start_pool_size: 2\n');
    world.pools.set('a', { ...{ parked: 1, ready: 1, usefulness: 2, reason: 'x' }, perHost: new Map([['host1', 1]]) });
    while (world.step() > 0) world.endBuild('made');
    expect(world.hosts.get('host1')?.assignments[0]?.pool).toBeUndefined();
  });
});

describe('the key pre_start_pool_size', () => {
  const { settings } = parseSettings('pre_start_pool_size: auto\n', 'settings.yaml');
  const service = (more: string) =>
    parseServiceConfig(`service_name: a\nservice_port: 1\nhost_port: 2\n${more}`, 'config.yaml', settings);

  it('may say auto, for all services or for one', () => {
    expect(service('')).toMatchObject({ preStartPoolAuto: true, preStartPoolSize: 0 });
    expect(service('pre_start_pool_size: 3\n')).toMatchObject({ preStartPoolAuto: false, preStartPoolSize: 3 });
    expect(service('pre_start_pool_size: auto\n')).toMatchObject({ preStartPoolAuto: true, preStartPoolSize: 0 });
  });

  it.each(['-1', '1.5', 'Auto', 'automatic', 'true', 'null', '[auto]', '10001'])('may not say %s', (written) => {
    expect(() => service(`pre_start_pool_size: ${written}\n`)).toThrow(
      /config\.yaml:4: pre_start_pool_size: found .+, expected a whole number of instances from 0 to 10000, or "auto"/,
    );
  });
});
