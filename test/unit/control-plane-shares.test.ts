import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { explain } from '../../control-plane/core/explain.js';
import { assignmentAt } from '../../control-plane/core/hosts.js';
import type { HostState } from '../../control-plane/core/model.js';
import { placementOf } from '../../control-plane/core/placement.js';
import { routesOf } from '../../control-plane/core/routes.js';
import { divide, sharesOf } from '../../control-plane/core/shares.js';
import { type Instance, InstanceState } from '../../proto/gen/initless/v1/types.js';
import { HOST_TIMEOUT_MS, World } from './control-plane-world.js';

/** Carries out what is decided until nothing is. */
function settle(world: World): void {
  for (let round = 0; round < 100; round++) {
    const decisions = world.step();
    world.endBuild('made');
    world.now += 1_000;
    if (decisions === 0 && world.work.length === 0 && round > 20) return;
  }
  throw new Error('it did not come to rest');
}

function worldOf(hosts: readonly string[], more = ''): World {
  const world = new World(hosts);
  for (const host of hosts) world.connect(host);
  world.apply('web', '1', more);
  settle(world);
  return world;
}

const change = (world: World, name: string, by: Partial<HostState>) =>
  world.hosts.set(name, { ...world.hosts.get(name)!, ...by });
const most = (world: World) =>
  [...world.hosts.values()].map((host) => {
    const told = assignmentAt(host, 'web');
    return told === undefined ? 0 : (told.pool?.maxRunning ?? told.config!.maxPoolSize);
  });
const running = (count: number) =>
  Array.from({ length: count }, () => ({ service: 'web', state: InstanceState.INSTANCE_STATE_RUNNING }) as Instance);

describe('a total that is divided', () => {
  it('is as even as can be, and nothing of it is lost', () => {
    expect(divide(10, 3)).toEqual([4, 3, 3]);
    expect(divide(1, 3)).toEqual([1, 0, 0]);
    expect(divide(5, 0)).toEqual([]);
    fc.assert(
      fc.property(fc.nat(1_000), fc.integer({ min: 1, max: 20 }), (total, parts) => {
        const shares = divide(total, parts);
        expect(shares.reduce((sum, share) => sum + share, 0)).toBe(total);
        expect(Math.max(...shares) - Math.min(...shares)).toBeLessThanOrEqual(1);
      }),
    );
  });
});

describe('the shares of a pool', () => {
  it('sum to it, parked and running', () => {
    const world = worldOf(['a', 'b', 'c'], 'pre_start_pool_size: 4\nmax_pool_size: 7\n');
    expect(most(world)).toEqual([3, 2, 2]);
    expect([...world.hosts.values()].map((host) => assignmentAt(host, 'web')?.pool?.parked)).toEqual([2, 1, 1]);
  });

  it('leave nothing parked where nothing may run', () => {
    const world = worldOf(['a', 'b', 'c'], 'pre_start_pool_size: 9\nmax_pool_size: 2\n');
    expect(most(world)).toEqual([1, 1, 0]);
    expect([...world.hosts.values()].map((host) => assignmentAt(host, 'web')?.pool?.parked)).toEqual([5, 4, 0]);
  });

  it('do not grow by what another host still runs', () => {
    const world = worldOf(['a']);
    change(world, 'a', { instances: running(8) });
    world.hosts.set('b', { ...world.hosts.get('a')!, name: 'b', instances: [], assignments: [], checkpoints: [] });
    settle(world);
    expect(most(world)).toEqual([5, 2]);
    change(world, 'a', { instances: running(5) });
    settle(world);
    expect(most(world)).toEqual([5, 5]);
  });

  it('of a host that is away stand, and go to the others once it is lost', () => {
    const world = worldOf(['a', 'b']);
    world.disconnect('b', false);
    world.now += HOST_TIMEOUT_MS - 1;
    const record = () => world.services.get('web')!;
    expect(sharesOf(record(), world.snapshot(), world.now).get('a')?.maxRunning).toBe(5);
    world.now += 1;
    settle(world);
    expect(record().hosts).toEqual(['a']);
    expect(most(world)[0]).toBe(10);
  });

  it('do not grow by what another host is bringing up, and are kept by the host that brings it up', () => {
    const world = worldOf(['a', 'b']);
    const share = (host: string) =>
      sharesOf(world.services.get('web')!, world.snapshot(), world.now).get(host)?.maxRunning;
    const restoring = { service: 'web', state: InstanceState.INSTANCE_STATE_RESTORING } as Instance;
    const told = assignmentAt(world.hosts.get('b')!, 'web')!;
    change(world, 'b', { assignments: [{ ...told, pool: { ...told.pool!, maxRunning: 2 } }] });
    change(world, 'a', { instances: [...running(5), restoring] });
    expect(share('b')).toBe(4);
    expect(share('a')).toBe(5);
  });

  it('stay as they were told after a start of the control plane, until each host has said what it has', () => {
    const world = worldOf(['a', 'b']);
    const known = world.hosts.get('b')!;
    change(world, 'b', { connected: false, reported: false, engine: undefined, assignments: [], checkpoints: [] });
    change(world, 'b', { revisions: [], since: world.now });
    const shares = () => sharesOf(world.services.get('web')!, world.snapshot(), world.now);
    expect(shares().get('a')).toEqual(assignmentAt(world.hosts.get('a')!, 'web')!.pool);
    expect(world.step()).toBe(0);
    world.hosts.set('b', known);
    expect(world.step()).toBe(0);
    expect([...shares().values()].map((share) => share.maxRunning)).toEqual([5, 5]);
  });

  it('never exceed the pool in all, whatever is confirmed when', () => {
    const steps = fc.array(
      fc.record({ host: fc.constantFrom('a', 'b', 'c'), what: fc.constantFrom('in', 'out', 'run', 'idle', 'wait') }),
      { maxLength: 40 },
    );
    fc.assert(
      fc.property(steps, fc.integer({ min: 1, max: 9 }), (happenings, size) => {
        const world = new World(['a', 'b', 'c']);
        world.connect('a');
        world.apply('web', '1', `max_pool_size: ${size}\n`);
        for (const { host, what } of happenings) {
          if (what === 'in') world.connect(host);
          if (what === 'out') world.disconnect(host, false);
          const share = most(world)[['a', 'b', 'c'].indexOf(host)]!;
          if (what === 'run') change(world, host, { instances: running(share) });
          if (what === 'idle') change(world, host, { instances: [] });
          if (what === 'wait') world.now += 1_000;
          world.step();
          world.endBuild('made');
          // No time long enough for a host to be lost passes: then its share may be given away while it is alive.
          if (
            [...world.hosts.values()].some((one) => !one.connected && world.now - one.since > HOST_TIMEOUT_MS - 2_000)
          )
            return;
          expect(most(world).reduce((sum, share) => sum + share, 0)).toBeLessThanOrEqual(size);
        }
      }),
      { numRuns: 300 },
    );
  });
});

describe('where a service is placed', () => {
  const placed = (world: World) => placementOf(world.services.get('web')!, world.snapshot(), world.now);

  it('is not where a host is short of memory or ports, or its engine is down', () => {
    const world = new World(['a', 'b', 'c', 'd']);
    for (const host of ['a', 'b', 'c', 'd']) world.connect(host);
    change(world, 'a', { memoryAvailable: 2 ** 20 });
    change(world, 'b', { portsFree: 0 });
    change(world, 'c', { engine: undefined });
    world.apply('web', '1');
    expect(placed(world).hosts).toEqual(['d']);
    const why = explain(world.services.get('web')!, world.snapshot(), world.now).hosts;
    const reasons = Object.fromEntries(why.map(({ host, reasons }) => [host, reasons.join('; ')]));
    expect(reasons.a).toMatch(/1 MiB of memory free, and \d+ MiB are wanted/);
    expect(reasons.b).toMatch(/no port left/);
    expect(reasons.c).toMatch(/engine does not answer/);
  });

  it('stays where it is when another host becomes better', () => {
    const world = worldOf(['a', 'b', 'c'], 'spread: 1\n');
    const before = world.services.get('web')!.hosts;
    for (const host of ['a', 'b', 'c']) if (!before.includes(host)) change(world, host, { memoryAvailable: 2 ** 40 });
    world.decided.length = 0;
    settle(world);
    expect(world.decided).toEqual([]);
  });

  it('is one host for a service with named volumes, and no other while that is away', () => {
    const world = worldOf(['a', 'b'], 'volumes: [data:/data]\n');
    const [home] = world.services.get('web')!.hosts;
    expect(world.services.get('web')!.hosts).toHaveLength(1);
    change(world, home!, { volumeServices: ['web'] });
    world.disconnect(home!, false);
    world.now += 10 * HOST_TIMEOUT_MS;
    settle(world);
    expect(world.services.get('web')!.hosts).toEqual([home]);
    const reasons = explain(world.services.get('web')!, world.snapshot(), world.now);
    expect(reasons.hosts.find(({ host }) => host !== home)?.reasons).toContain(`its named volumes are on ${home}`);
  });

  it('is left by a drained host once another serves, and routes say so meanwhile', () => {
    const world = worldOf(['a', 'b'], 'spread: 1\n');
    const [home] = world.services.get('web')!.hosts;
    change(world, home!, { cordoned: true, drainingSince: world.now });
    world.step();
    const [route] = routesOf(world.snapshot(), world.now);
    expect(route?.hosts).toMatchObject([{ host: home, draining: true }]);
    settle(world);
    expect(world.services.get('web')!.hosts).not.toContain(home);
    expect(assignmentAt(world.hosts.get(home!)!, 'web')).toBeUndefined();
    expect(world.decided.filter(({ type }) => type === 'prepare')).toHaveLength(1);
    expect(routesOf(world.snapshot(), world.now)[0]?.hosts.map(({ host }) => host)).toEqual(
      world.services.get('web')!.hosts,
    );
  });

  it('keeps the checkpoint that is being served where it is, and makes it anew only if no host has it', () => {
    const world = worldOf(['a', 'b']);
    world.wipe('a');
    world.connect('a');
    settle(world);
    expect(world.decided.filter(({ type }) => type === 'prepare')).toHaveLength(1);
    expect(world.decided.filter(({ type }) => type === 'copy').at(-1)).toMatchObject({
      host: 'a',
      sources: [{ host: 'b' }],
    });
    for (const host of ['a', 'b']) world.wipe(host);
    for (const host of ['a', 'b']) world.connect(host);
    world.now += 61_000;
    settle(world);
    expect(world.decided.filter(({ type }) => type === 'prepare')).toHaveLength(2);
  });
});

describe('a host that was lost and comes back', () => {
  it('keeps what it serves where its services are placed on it again', () => {
    const world = worldOf(['a', 'b']);
    world.disconnect('b', false);
    world.now += HOST_TIMEOUT_MS;
    settle(world);
    expect(world.services.get('web')!.hosts).toEqual(['a']);
    const before = world.decided.length;
    world.connect('b');
    settle(world);
    expect(world.services.get('web')!.hosts).toEqual(['a', 'b']);
    expect(world.decided.slice(before).map(({ type }) => type)).not.toContain('withdraw');
    expect(most(world)).toEqual([5, 5]);
  });
});
