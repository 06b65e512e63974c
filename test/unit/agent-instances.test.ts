import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Instance } from '../../agent/instance/instance.js';
import { Instances } from '../../agent/instance/instances.js';
import { Pool, upkeep } from '../../agent/instance/pool.js';
import type { ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import type { ServiceConfig } from '../../proto/gen/initless/v1/types.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { FILLER, runningInstance, webRevision } from './agent-instance-fixture.js';

/** An agent's instances whose starts, places and freezer are this object's; the processes are this test's own. */
class World {
  cleared: string[] = [];
  frozen = new Set<string>();
  states: string[] = [];
  revoked: string[] = [];
  granted: string[] = [];
  fillsEnded: string[] = [];
  starts = 0;
  /** What ends an instance's process, by instance. */
  readonly end = new Map<string, () => void>();
  /** What ends the fill of an instance's memory, by instance. */
  readonly endFill = new Map<string, (failure: InitlessError | undefined) => void>();
  /** Whether instances are still to be filled when they run, unless they are to be parked. */
  filling = false;
  failure: Error | undefined;
  thawFailure: Error | undefined;
  /** Lets a start go on; starts wait only while there is one. */
  gate: Promise<void> | undefined;
  readonly instances: Instances;
  readonly stop = new AbortController();

  constructor() {
    this.instances = new Instances({
      log: pino({ level: 'silent' }),
      starter: {
        start: async (assignment, _onlyRestored, _signal, filled) => {
          const number = ++this.starts;
          await this.gate;
          if (this.failure) throw this.failure;
          const id = `${assignment.config?.serviceName}-${number}`;
          const instance = runningInstance(id, assignment, `host:${20_000 + number}`);
          if (this.filling && !filled) instance.filler = FILLER;
          this.instances.track(instance);
          return instance;
        },
      },
      places: { clear: async (place) => void this.cleared.push(place.id) },
      freezer: {
        freeze: async (id) => void this.frozen.add(id),
        thaw: async (id) => {
          if (this.thawFailure) throw this.thawFailure;
          this.frozen.delete(id);
        },
        wasOutOfMemory: async () => false,
      },
      exits: {
        watch: (id, _process, onEnd) => {
          this.end.set(id, onEnd);
          return () => this.end.delete(id);
        },
        statusOf: async () => 'exit code 3',
      },
      lazy: {
        watch: (id, _folder, _filler, onEnd) => {
          this.endFill.set(id, onEnd);
          return () => this.endFill.delete(id);
        },
      },
      onState: (instance) => {
        this.states.push(`${instance.id} ${instance.state}${instance.reason ? ` ${instance.reason}` : ''}`);
        this.instances.track(instance);
      },
      onGranted: (service, found) => this.granted.push(`${service} ${found}`),
      onFillEnded: (instance, leases, failure) => {
        this.fillsEnded.push(`${instance.id} ${leases.length} ${failure?.message ?? 'right'}`);
      },
      onRevoked: (leases, reason) => this.revoked.push(...leases.map((lease) => `${lease} ${reason}`)),
    });
    void this.instances.watch(this.stop.signal);
  }

  serve(more: Partial<ServiceConfig> = {}, revision = 'r1'): ServiceAssignment {
    const assignment = webRevision(more, revision);
    this.instances.assign([assignment]);
    return assignment;
  }
}

async function until(what: string, holds: () => boolean): Promise<void> {
  const end = performance.now() + 5_000;
  while (!holds()) {
    if (performance.now() > end) throw new Error(`waited 5 s for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

describe('the instances of a host', () => {
  let world: World;
  beforeEach(() => {
    world = new World();
  });
  afterEach(() => world.stop.abort());

  it('are started when nothing runs, and leased with all of their slots', async () => {
    world.serve();
    const lease = await world.instances.acquire('web', [], 'g');
    expect(lease).toMatchObject({ slots: 2, found: undefined });
    expect(world.starts).toBe(1);
  });

  it('are leased again once given back, without another start', async () => {
    world.serve();
    world.instances.release((await world.instances.acquire('web', [], 'g')).id);
    expect((await world.instances.acquire('web', [], 'g')).found).toBe('running');
    expect(world.starts).toBe(1);
  });

  it('never give a lease without a slot, also to two who ask at the same moment', async () => {
    world.serve();
    await world.instances.wake('web');
    const leases = await Promise.all([
      world.instances.acquire('web', [], 'g'),
      world.instances.acquire('web', [], 'g'),
    ]);
    expect(leases.map((lease) => lease.slots)).toEqual([2, 2]);
    expect(new Set(leases.map((lease) => lease.instance.id)).size).toBe(2);
  });

  it('stop at max_pool_size, counting starts under way', async () => {
    world.serve();
    let open = () => {};
    world.gate = new Promise((resolve) => {
      open = resolve;
    });
    const both = [world.instances.acquire('web', [], 'g'), world.instances.acquire('web', [], 'g')];
    await expect(world.instances.acquire('web', [], 'g')).rejects.toMatchObject({ code: 'EXHAUSTED' });
    open();
    await Promise.all(both);
    await expect(world.instances.acquire('web', [], 'g')).rejects.toMatchObject({ code: 'EXHAUSTED' });
  });

  it('free their place in the pool when a start fails', async () => {
    world.serve({ maxPoolSize: 1 });
    world.failure = new Error('no');
    await expect(world.instances.acquire('web', [], 'g')).rejects.toThrow('no');
    world.failure = undefined;
    await world.instances.acquire('web', [], 'g');
  });

  it('are frozen and thawed by hand, but never under a lease', async () => {
    world.serve();
    const lease = await world.instances.acquire('web', [], 'g');
    const { id } = lease.instance;
    await expect(world.instances.park(id)).rejects.toMatchObject({ code: 'LEASE_HELD' });
    world.instances.release(lease.id);
    expect((await world.instances.park(id)).state).toBe('parked');
    expect(world.frozen.has(id)).toBe(true);
    await expect(world.instances.park(id)).rejects.toMatchObject({ code: 'NOT_ALLOWED' });
    expect((await world.instances.thaw(id)).state).toBe('running');
    expect(world.frozen.has(id)).toBe(false);
  });

  it('are taken from parked before a new one is started', async () => {
    world.serve();
    const { id } = await world.instances.wake('web');
    await world.instances.park(id);
    expect(await world.instances.acquire('web', [], 'g')).toMatchObject({ found: 'parked' });
    await until('it to be thawed', () => !world.frozen.has(id));
    expect(world.starts).toBe(1);
  });

  it('that cannot be thawed are taken back from whoever leased them, and removed', async () => {
    world.serve();
    const { id } = await world.instances.wake('web');
    await world.instances.park(id);
    world.thawFailure = new Error('no such group');
    const lease = await world.instances.acquire('web', [], 'g');
    await until('the lease to be revoked', () => world.revoked.length === 1);
    expect(world.revoked).toEqual([`${lease.id} crashed`]);
    await until('it to go', () => world.cleared.includes(id));
  });

  it('are removed after idle_timeout, but not while a lease is held', async () => {
    world.serve({ idleTimeoutMs: 50 });
    const lease = await world.instances.acquire('web', [], 'g');
    await new Promise((resolve) => setTimeout(resolve, 600));
    expect(world.cleared).toEqual([]);
    world.instances.release(lease.id);
    await until('the idle instance to go', () => world.cleared.length === 1);
    await until('its last event', () => world.states.includes('web-1 gone idle'));
    expect(world.instances.list()).toEqual([]);
  });

  it('are replaced when their process ended, and the leases on them are revoked', async () => {
    world.serve();
    const lease = await world.instances.acquire('web', [], 'g');
    world.end.get(lease.instance.id)?.();
    await until('the lease to be revoked', () => world.revoked.length === 1);
    expect(world.revoked).toEqual([`${lease.id} crashed`]);
    expect(lease.instance.problem?.message).toMatch(/ended: exit code 3/);
    expect((await world.instances.acquire('web', [], 'g')).instance.id).toBe('web-2');
  });

  it('are looked at first when a gateway suspects them', async () => {
    world.serve();
    const { instance } = await world.instances.acquire('web', [], 'g');
    instance.process = { pid: process.pid, startedAt: 'another process' };
    const lease = await world.instances.acquire('web', [instance.id], 'g');
    expect(lease.instance.id).toBe('web-2');
  });

  it('of another revision go when they are not leased, and after their last lease when they are', async () => {
    world.serve();
    const lease = await world.instances.acquire('web', [], 'g');
    world.serve({}, 'r2');
    expect((await world.instances.acquire('web', [], 'g')).instance.id).toBe('web-2');
    expect(world.cleared).toEqual([]);
    world.instances.release(lease.id);
    await until('the old revision to go', () => world.states.includes('web-1 gone superseded'));
  });

  it('that hang are replaced, with the reason, and those that were parked meanwhile are not', async () => {
    world.serve();
    const lease = await world.instances.acquire('web', [], 'g');
    const why = new InitlessError('INSTANCE_LOST', 'web-1 hangs');
    await world.instances.hung(lease.instance, why);
    expect(world.revoked).toEqual([`${lease.id} health_timeout`]);
    expect(world.states).toContain('web-1 gone health_timeout');
    expect(lease.instance.problem?.message).toBe('web-1 hangs');
    const { id } = await world.instances.wake('web');
    await world.instances.park(id);
    await world.instances.hung(world.instances.get(id), why);
    expect(world.instances.get(id).state).toBe('parked');
  });

  it('take a change of configuration over without a restart', async () => {
    world.serve({ maxConcurrency: 1 });
    const lease = await world.instances.acquire('web', [], 'g');
    world.serve({ maxConcurrency: 3 });
    expect(await world.instances.acquire('web', [], 'g')).toMatchObject({ instance: lease.instance, slots: 2 });
    expect(world.starts).toBe(1);
  });

  it('of a new revision are ready before those of the old one go', async () => {
    const old = world.serve({ preStartPoolSize: 2 });
    await world.instances.startParked(old);
    const { id } = await world.instances.wake('web');
    const next = webRevision({ preStartPoolSize: 2 }, 'r2');
    let open = () => {};
    world.gate = new Promise((resolve) => {
      open = resolve;
    });
    const prepared = world.instances.prepare(next);
    await until('the first start', () => world.starts === 2);
    // The old one serves while the new one is brought up.
    const lease = await world.instances.acquire('web', [], 'g');
    expect(lease.instance.id).toBe(id);
    world.instances.release(lease.id);
    open();
    await prepared;
    expect(world.cleared).toEqual([]);
    expect(world.instances.parked(next)).toHaveLength(2);
    world.instances.assign([next]);
    await until('the old one to go', () => world.states.includes('web-1 gone superseded'));
    expect(await world.instances.acquire('web', [], 'g')).toMatchObject({ found: 'parked', instance: { id: 'web-2' } });
    expect(world.starts).toBe(3);
  });

  it('of a new revision are parked in the number that an automatic pool wants', async () => {
    world.serve();
    await world.instances.wake('web');
    const pool = { parked: 1, ready: 2, usefulness: 1, maxRunning: 10, elsewhere: false };
    const next = { ...webRevision({ preStartPoolAuto: true }, 'r2'), pool };
    await world.instances.prepare(next);
    expect(world.instances.parked(next)).toHaveLength(1);
    expect(world.starts).toBe(2);
  });

  it('of a new revision that cannot be started leave the old one serving', async () => {
    world.serve();
    const { id } = await world.instances.wake('web');
    world.failure = new Error('no');
    await expect(world.instances.prepare(webRevision({}, 'r2'))).rejects.toThrow('no');
    world.failure = undefined;
    expect((await world.instances.acquire('web', [], 'g')).instance.id).toBe(id);
  });

  it('of a new revision are not brought up where none of the old one is', async () => {
    world.serve();
    await world.instances.prepare(webRevision({ preStartPoolSize: 2 }, 'r2'));
    expect(world.starts).toBe(0);
  });

  it('of a new revision replace the old ones at once where the host has no room for both', async () => {
    world.serve();
    await world.instances.wake('web');
    world.failure = new InitlessError('PORTS_EXHAUSTED', 'all leased ports are in use');
    await world.instances.prepare(webRevision({}, 'r2'));
  });

  it('go when their service is withdrawn', async () => {
    world.serve();
    await world.instances.wake('web');
    world.instances.assign([]);
    await until('it to go', () => world.cleared.length === 1);
    await expect(world.instances.acquire('web', [], 'g')).rejects.toMatchObject({ code: 'NOT_READY' });
  });

  it('are kept parked in the number that is wanted, and replaced when taken', async () => {
    const assignment = world.serve({ preStartPoolSize: 2 });
    void new Pool(world.instances, pino({ level: 'silent' })).run(world.stop.signal);
    await until('two parked instances', () => world.instances.parked(assignment).length === 2);
    const lease = await world.instances.acquire('web', [], 'g');
    expect(lease.found).toBe('parked');
    await until('the third', () => world.instances.parked(assignment).length === 2);
    expect(world.starts).toBe(3);
    world.serve({ preStartPoolSize: 0 });
    await until('the pool to be emptied', () => world.instances.parked(assignment).length === 0);
    expect(world.instances.list().map((instance) => instance.id)).toEqual([lease.instance.id]);
  });

  it('are parked again when idle only where the service allows reuse', async () => {
    world.serve({ idleTimeoutMs: 20, preStartPoolSize: 1, reuse: true });
    world.instances.release((await world.instances.acquire('web', [], 'g')).id);
    await until('it to be parked', () => world.states.includes('web-1 parked'));
    world.serve({ idleTimeoutMs: 20, preStartPoolSize: 1, reuse: false });
    world.instances.release((await world.instances.acquire('web', [], 'g')).id);
    await until('it to go', () => world.states.includes('web-1 gone idle'));
  });

  it('are parked again when idle, as an automatic pool wants it', async () => {
    const assignment = world.serve({ idleTimeoutMs: 20, reuse: true });
    assignment.pool = { parked: 1, ready: 1, usefulness: 4, maxRunning: 10, elsewhere: false };
    world.instances.release((await world.instances.acquire('web', [], 'g')).id);
    await until('it to be parked', () => world.states.includes('web-1 parked'));
    assignment.pool = { parked: 0, ready: 0, usefulness: 0, maxRunning: 10, elsewhere: false };
    world.instances.release((await world.instances.acquire('web', [], 'g')).id);
    await until('it to go', () => world.states.includes('web-1 gone idle'));
    expect(world.starts).toBe(1);
  });

  it('that are still being filled serve, and are not frozen or idle before they are filled', async () => {
    world.filling = true;
    world.serve({ idleTimeoutMs: 20, preStartPoolSize: 1, reuse: true });
    const lease = await world.instances.acquire('web', [], 'g');
    expect(lease.instance.filling).toBe(true);
    world.instances.release(lease.id);
    await expect(world.instances.park('web-1')).rejects.toMatchObject({ code: 'NOT_ALLOWED' });
    await new Promise((resolve) => setTimeout(resolve, 600));
    expect(world.states).toEqual([]);
    world.endFill.get('web-1')?.(undefined);
    expect(lease.instance.filling).toBe(false);
    expect(world.fillsEnded).toEqual(['web-1 0 right']);
    await until('it to be parked', () => world.states.includes('web-1 parked'));
  });

  it('whose fill fails go at once, whoever uses them', async () => {
    world.filling = true;
    world.serve();
    const lease = await world.instances.acquire('web', [], 'g');
    world.endFill.get('web-1')?.(new InitlessError('RESTORE_FAILED', 'the daemon was killed'));
    await until('it to go', () => world.states.includes('web-1 gone restore_failed'));
    expect(world.fillsEnded).toEqual(['web-1 1 the daemon was killed']);
    expect(world.revoked).toEqual([`${lease.id} restore_failed`]);
    expect(lease.instance.problem?.message).toBe('the daemon was killed');
    expect(world.cleared).toEqual(['web-1']);
    expect((await world.instances.acquire('web', [], 'g')).instance.id).toBe('web-2');
  });

  it('that end before they are filled leave answers behind that must not be used', async () => {
    world.filling = true;
    world.serve();
    await world.instances.acquire('web', [], 'g');
    world.end.get('web-1')?.();
    await until('it to go', () => world.states.includes('web-1 gone crashed'));
    expect(world.fillsEnded).toEqual([expect.stringMatching(/^web-1 1 .* ended: exit code 3/)]);
    await world.instances.acquire('web', [], 'g');
    await world.instances.remove('web-2', 'operator');
    expect(world.fillsEnded[1]).toMatch(/^web-2 1 instance web-2 was removed before/);
    expect(world.endFill.size).toBe(0);
  });

  it('are parked for a pool, or made ready in place of another revision, only with all of their memory', async () => {
    world.filling = true;
    const assignment = world.serve({ preStartPoolSize: 1 });
    await world.instances.startParked(assignment);
    await world.instances.prepare(webRevision({ preStartPoolSize: 1 }, 'r2'));
    expect(world.states).toEqual(['web-1 parked', 'web-2 parked']);
  });

  it('are counted by what each lease found', async () => {
    world.serve();
    const { id, instance } = await world.instances.acquire('web', [], 'g');
    world.instances.release(id);
    world.instances.release((await world.instances.acquire('web', [], 'g')).id);
    await world.instances.park(instance.id);
    await world.instances.acquire('web', [], 'g');
    expect(world.granted).toEqual(['web undefined', 'web running', 'web parked']);
  });

  it('of a pool are not started again at once when a start failed', async () => {
    world.serve({ preStartPoolSize: 1 });
    world.failure = new Error('no');
    const pool = new Pool(world.instances, pino({ level: 'silent' }));
    for (let i = 0; i < 20; i++) {
      pool.look();
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    expect(world.starts).toBe(1);
  });
});

describe('the upkeep of a pool', () => {
  const parked = (pooled: boolean, parkedSince: number) => ({ pooled, parkedSince }) as Instance;

  it('counts what is on its way', () => {
    expect(upkeep(3, [parked(true, 1)], 1).missing).toBe(1);
    expect(upkeep(1, [parked(true, 1)], 3).missing).toBe(0);
  });

  it('takes the longest parked first, and never one that a person parked', () => {
    const old = parked(true, 1);
    const hand = parked(false, 0);
    expect(upkeep(1, [parked(true, 2), old, hand], 0).surplus).toEqual([
      old,
      expect.objectContaining({ parkedSince: 2 }),
    ]);
    expect(upkeep(0, [hand], 0).surplus).toEqual([]);
  });
});
