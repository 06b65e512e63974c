import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Pools } from '../../control-plane/fleet/pools.js';
import { FailingStore } from '../../control-plane/store/failing.js';
import { HostReport, ServiceUsage } from '../../proto/gen/initless/v1/fleet.js';
import { World } from '../unit/control-plane-world.js';
import { config, eventually, Harness } from './control-plane-harness.js';
import type { FakeFleetAgent } from './fake-fleet-agent.js';

const share = (agent: FakeFleetAgent) => agent.assignments.get('web')?.pool;

/** The host says that so many instances were taken together. */
function taken(agent: FakeFleetAgent, together: number): void {
  const arrivals = (agent.usage[0]?.foundParked ?? 0) + together;
  const usage = {
    service: 'web',
    foundParked: arrivals,
    idleMs: 10,
    stretch: 1,
    mostInUse: together,
    mostTaken: together,
  };
  agent.usage = [ServiceUsage.fromPartial(usage)];
  agent.report();
}

describe('a service with pre_start_pool_size: auto', () => {
  let harness: Harness;
  let agent: FakeFleetAgent;

  beforeEach(async () => {
    harness = await Harness.start();
    agent = await harness.agent();
    await harness.folder('web', config('web', 8001, 'pre_start_pool_size: auto\n'));
    await harness.apply('web');
    await harness.until('web', 'SERVICE_STATE_READY');
  });
  afterEach(() => harness.stop());

  it('begins with one parked instance, and says why', async () => {
    expect(share(agent)).toMatchObject({ parked: 1, ready: 1 });
    expect((await harness.service('web')).pool).toEqual({
      parked: 1,
      auto: true,
      reason: 'too few pauses seen to know its pattern: parked for 10 min after each use',
    });
  });

  it('has as many as its bursts take, without a new revision', async () => {
    const { current } = await harness.service('web');
    taken(agent, 3);
    await eventually('three to be parked', () => share(agent)?.parked === 3 || undefined);
    expect(share(agent)).toMatchObject({ parked: 3, ready: 3 });
    expect((await harness.service('web')).current?.id).toBe(current?.id);
    expect(agent.received('prepare')).toHaveLength(1);
  });

  it('has no more than max_pool_size, and the number that is configured once it is one, without a new revision', async () => {
    taken(agent, 5);
    await harness.folder('web', config('web', 8001, 'pre_start_pool_size: auto\nmax_pool_size: 2\n'));
    await harness.apply('web');
    await eventually('two to be parked', () => share(agent)?.parked === 2 || undefined);
    await harness.folder('web', config('web', 8001, 'pre_start_pool_size: 4\n'));
    await harness.apply('web');
    await eventually(
      'the fixed number',
      () => agent.assignments.get('web')?.config?.preStartPoolSize === 4 || undefined,
    );
    expect(share(agent)).toBeUndefined();
    expect((await harness.service('web')).pool).toEqual({ parked: 4, auto: false, reason: '' });
    expect(agent.received('prepare')).toHaveLength(1);
  });

  it('has no more than there is memory for on its host', async () => {
    taken(agent, 3);
    await eventually('three to be parked', () => share(agent)?.parked === 3 || undefined);
    agent.memoryAvailable = 1.5 * 2 ** 30;
    agent.usage[0]!.parkedMemory = 300 * 2 ** 20;
    agent.report();
    await eventually('one to be parked', () => share(agent)?.parked === 1 || undefined);
    expect((await harness.service('web')).pool?.reason).toMatch(/; 3 wanted on host1, but it has memory for 1$/);
  });

  describe('after a restart of the control plane', () => {
    /** The control plane comes back, and then a host that knows as little of its use as after a restart of its agent. */
    async function restart(prepare: (agent: FakeFleetAgent) => void): Promise<FakeFleetAgent> {
      taken(agent, 3);
      await eventually('three to be parked', () => share(agent)?.parked === 3 || undefined);
      await harness.halt();
      await agent.kill();
      await harness.boot();
      const again = harness.stranger('host1');
      again.checkpoints.push(...agent.checkpoints);
      again.usageEpoch = 'second';
      prepare(again);
      await again.connect();
      return again;
    }

    it('has the number that its history says', async () => {
      const again = await restart(() => {});
      await eventually('it to be served', () => share(again));
      expect(share(again)).toMatchObject({ parked: 3, ready: 3 });
      expect(again.received('assign').map((assignment) => assignment.pool?.parked)).toEqual([3]);
    });

    it('is not touched where the host has kept its share', async () => {
      const again = await restart((host) => host.assignments.set('web', agent.assignments.get('web')!));
      await harness.until('web', 'SERVICE_STATE_READY');
      // Two rounds of decisions at least.
      await new Promise((resolve) => setTimeout(resolve, 2_500));
      expect(again.received('assign')).toEqual([]);
      expect((await harness.service('web')).pool).toMatchObject({ parked: 3, auto: true });
    });
  });
});

describe('the history of use', () => {
  it('that cannot be stored is told and kept, and stops nothing', async () => {
    const errors: string[] = [];
    const pools = new Pools({ store: new FailingStore(), onError: (what) => errors.push(what) }, new Map());
    const usage = [ServiceUsage.fromPartial({ service: 'web', foundParked: 1, idleMs: 10 })];
    pools.observe('h', HostReport.fromPartial({ usage, usageEpoch: 'e' }), Date.now());
    await pools.stop();
    await pools.stop();
    expect(errors).toEqual(['storing how services are used', 'storing how services are used']);
  });

  it.each<[string, unknown]>([
    ['that was damaged', { lastUse: 'long ago' }],
    ['of another form', 7],
  ])('%s begins anew', (_what, history) => {
    const world = new World(['host1']);
    world.apply('web', '1', 'pre_start_pool_size: auto\n');
    const pools = new Pools({ store: new FailingStore(), onError: () => {} }, new Map([['web', history]]));
    pools.refresh(world.snapshot().services, world.snapshot().hosts, Date.now());
    expect(pools.plans().get('web')).toMatchObject({ parked: 1, ready: 1 });
  });
});
