import { describe, expect, it } from 'vitest';
import { Invariants, unsettled } from './fleet-invariants.js';
import { FleetWorld, type WorldOptions } from './fleet-world.js';

const SECOND = 1_000;
const HOST_TIMEOUT_MS = 15_000;
/** What replacing a host takes beyond `host_timeout`: a look every second, a copy, and telling it. */
const REPLACE_MS = 10 * SECOND;
const SERVICES = ['s1', 's2', 's3'];
const SEEDS = [1, 2];

/** Four hosts that serve three services, each on three of them, with requests all the time. */
function busyFleet(seed: number, options: Partial<WorldOptions> = {}) {
  const world = new FleetWorld({ seed, hosts: 4, gateways: 2, ...options });
  const invariants = new Invariants(world);
  for (const service of SERVICES) {
    world.apply(
      service,
      'v1',
      'max_pool_size: 6\npre_start_pool_size: 3\nmax_concurrency: 2\nspread: 3\nidle_timeout: 4\n',
    );
  }
  world.clock.pass(90 * SECOND);
  const stop = world.clock.every(150, () => world.request(world.pick(SERVICES), world.between(1, 900)));
  world.clock.pass(60 * SECOND);
  const from = world.decided.length;
  return {
    world,
    invariants,
    stop,
    /** What was decided since the fleet was as it is now. */
    decisions: () => world.decided.slice(from).map(({ decision }) => decision),
    /** Instances of a host, by id. */
    instancesOf: (host: string) => [...world.hosts.get(host)!.instances.keys()],
    /** Those of them that run. */
    runningOf: (host: string) =>
      [...world.hosts.get(host)!.instances.values()].filter(({ state }) => state === 'running').map(({ id }) => id),
    failed: () => [...world.outcomes.values()].filter(({ kind }) => kind !== 'answered'),
    /** No more requests, and time for what is under way. */
    rest: () => {
      stop();
      world.clock.pass(330 * SECOND);
      return unsettled(world);
    },
  };
}

describe('a simulated fleet with requests all the time', () => {
  it('answers all of them, with instances of all hosts of a service', () => {
    const { world, invariants, failed, rest } = busyFleet(1);
    expect(failed()).toEqual([]);
    expect(world.outcomes.size).toBeGreaterThan(300);
    expect(Math.max(...invariants.peaks.values())).toBeGreaterThan(1);
    expect(rest()).toEqual([]);
  });

  it.each(SEEDS)('changes nothing when a host is cut off for less than host_timeout (seed %i)', (seed) => {
    const { world, decisions, instancesOf, failed, rest } = busyFleet(seed);
    const before = [...world.hosts.keys()].map((host) => [host, instancesOf(host)]);
    world.cut('host2', 12 * SECOND);
    world.clock.pass(60 * SECOND);
    expect(decisions()).toEqual([]);
    const after = new Map([...world.hosts.keys()].map((host) => [host, instancesOf(host)]));
    // What is idle for four minutes may go; nothing has been idle for so long.
    for (const [host, ids] of before)
      expect(after.get(host as string)).toEqual(expect.arrayContaining(ids as string[]));
    expect(failed()).toEqual([]);
    expect(rest()).toEqual([]);
  });

  it.each(SEEDS)('replaces a host that is cut off for a minute once, and fails no request (seed %i)', (seed) => {
    const { world, decisions, instancesOf, runningOf, failed, rest } = busyFleet(seed);
    const untouched = ['host1', 'host3', 'host4'].map((host) => ({ host, ids: runningOf(host) }));
    const placedOn2 = SERVICES.filter((service) => world.record(service).hosts.includes('host2'));
    world.cut('host2', 60 * SECOND);
    world.clock.pass(HOST_TIMEOUT_MS + REPLACE_MS);
    for (const service of placedOn2) expect(world.record(service).hosts).not.toContain('host2');
    world.clock.pass(120 * SECOND);
    const placed = decisions().filter((decision) => decision.type === 'place');
    expect(placed.map((decision) => decision.service).sort()).toEqual(placedOn2);
    expect(decisions().filter(({ type }) => type === 'remake' || type === 'prepare')).toEqual([]);
    for (const { host, ids } of untouched) expect(instancesOf(host)).toEqual(expect.arrayContaining(ids));
    expect(failed()).toEqual([]);
    expect(rest()).toEqual([]);
  });

  it.each(SEEDS)(
    'has every service whole again after the loss of a host; only what was in flight on it fails (seed %i)',
    (seed) => {
      const { world, failed, rest } = busyFleet(seed);
      const lost = world.pick([...world.hosts.keys()]);
      const inFlight = [...world.hosts.get(lost)!.instances.values()].reduce((sum, one) => sum + one.slotsHeld, 0);
      world.kill(lost, true);
      world.clock.pass(HOST_TIMEOUT_MS + REPLACE_MS);
      for (const service of SERVICES) {
        expect(world.record(service).hosts).not.toContain(lost);
        const shares = world.record(service).hosts.map((host) => world.hosts.get(host)!.assignments.get(service)?.pool);
        // What runs beyond a share since before the copy was there is the new host's only when it has ended.
        const running = [...world.hosts.values()].map((host) =>
          Math.max(host.countedRunning(service), host.assignments.get(service)?.pool?.maxRunning ?? 0),
        );
        expect(running.reduce((sum, count) => sum + count, 0)).toBeGreaterThanOrEqual(6);
        expect(shares.map((share) => share?.parked)).toEqual([1, 1, 1]);
      }
      expect(failed().filter(({ kind }) => kind === 'refused')).toEqual([]);
      expect(failed().length).toBeLessThanOrEqual(inFlight);
      world.revive(lost);
      expect(rest()).toEqual([]);
    },
  );

  it.each(SEEDS)('does nothing at all when the control plane is killed and started again (seed %i)', (seed) => {
    const { world, decisions, instancesOf, failed, rest } = busyFleet(seed);
    const before = [...world.hosts.keys()].flatMap(instancesOf);
    world.killControlPlane(30 * SECOND);
    world.clock.pass(90 * SECOND);
    expect(decisions()).toEqual([]);
    expect([...world.hosts.keys()].flatMap(instancesOf)).toEqual(expect.arrayContaining(before));
    expect(failed()).toEqual([]);
    expect(rest()).toEqual([]);
  });

  it.each(SEEDS)('empties a host that is drained, and fails no request (seed %i)', (seed) => {
    const { world, instancesOf, failed, rest } = busyFleet(seed);
    world.controlPlane.mark('host3', { cordoned: true, drainingSince: world.clock.now });
    world.clock.pass(60 * SECOND);
    expect(instancesOf('host3')).toEqual([]);
    expect(world.hosts.get('host3')!.assignments.size).toBe(0);
    expect(failed()).toEqual([]);
    expect(rest()).toEqual([]);
  });

  it.each(SEEDS)('replaces a revision on all hosts and goes back to it, and fails no request (seed %i)', (seed) => {
    const { world, decisions, failed, rest } = busyFleet(seed);
    const first = world.record('s1').current!.id;
    world.apply(
      's1',
      'v2',
      'max_pool_size: 6\npre_start_pool_size: 3\nmax_concurrency: 2\nspread: 3\nidle_timeout: 4\n',
    );
    world.clock.pass(60 * SECOND);
    expect(world.record('s1').current!.id).not.toBe(first);
    world.rollBack('s1');
    world.clock.pass(30 * SECOND);
    for (const host of world.record('s1').hosts)
      expect(world.hosts.get(host)!.assignments.get('s1')?.revision).toBe(first);
    expect(decisions().filter(({ type }) => type === 'prepare')).toHaveLength(1);
    expect(failed()).toEqual([]);
    expect(rest()).toEqual([]);
  });

  it('makes a revision again elsewhere when the only host that has it is lost', () => {
    const world = new FleetWorld({ seed: 1, hosts: 2 });
    const invariants = new Invariants(world);
    world.apply('only', 'v1', 'spread: 1\npre_start_pool_size: 1\n');
    world.clock.pass(60 * SECOND);
    const [lost] = world.record('only').hosts;
    world.kill(lost!, true);
    // A build takes up to 25 seconds here.
    world.clock.pass(HOST_TIMEOUT_MS + REPLACE_MS + 25 * SECOND);
    expect(world.record('only').hosts).not.toContain(lost);
    expect(world.isServed('only')).toBe(true);
    invariants.check();
  });

  it('comes to the same in every run', () => {
    const run = () => {
      const { world, rest } = busyFleet(7);
      world.kill('host1', false);
      rest();
      return { steps: world.clock.steps, decided: world.decided, outcomes: [...world.outcomes] };
    };
    expect(run()).toEqual(run());
  });
});
