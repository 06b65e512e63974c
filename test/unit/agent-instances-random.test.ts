import fc from 'fast-check';
import { pino } from 'pino';
import { describe, expect, it } from 'vitest';
import type { Instance } from '../../agent/instance/instance.js';
import { Instances } from '../../agent/instance/instances.js';
import type { ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import { runningInstance, webRevision } from './agent-instance-fixture.js';

const SLOTS = 2;
const MOST = 3;
const GATEWAYS = ['one', 'two'];

type Op =
  | { do: 'acquire' | 'prepare'; pick: number }
  | { do: 'release' | 'shrink' | 'park' | 'thaw' | 'remove' | 'exit' | 'hang' | 'retire'; pick: number }
  | {
      do: 'reserve' | 'activate' | 'wake' | 'startParked' | 'failStarts' | 'failThaws' | 'revise' | 'withdraw' | 'pass';
      pick: number;
    };

const OP: fc.Arbitrary<Op> = fc.record({
  do: fc.oneof(
    { weight: 6, arbitrary: fc.constantFrom('acquire' as const) },
    { weight: 4, arbitrary: fc.constantFrom('release' as const) },
    {
      weight: 10,
      arbitrary: fc.constantFrom(
        ...(['shrink', 'park', 'thaw', 'remove', 'exit', 'hang', 'retire', 'wake', 'startParked', 'pass'] as const),
        ...(['reserve', 'activate'] as const),
      ),
    },
    {
      weight: 2,
      arbitrary: fc.constantFrom(...(['failStarts', 'failThaws', 'revise', 'withdraw', 'prepare'] as const)),
    },
  ),
  pick: fc.nat(11),
});

/** Instances whose starts, freezes and removals take a turn of the event loop or two, and may fail. */
class World {
  readonly instances: Instances;
  readonly ends = new Map<string, () => void>();
  readonly gone = new Set<string>();
  readonly cleared: string[] = [];
  readonly frozen = new Set<string>();
  readonly leases: string[] = [];
  readonly work = new Set<Promise<unknown>>();
  failStarts = false;
  failThaws = false;
  #revision = 1;
  #count = 0;

  constructor() {
    this.instances = new Instances({
      log: pino({ level: 'silent' }),
      starter: { start: (assignment) => this.#start(assignment) },
      places: {
        clear: async ({ id }) => {
          await turn();
          this.cleared.push(id);
        },
      },
      freezer: {
        freeze: async (id) => {
          await turn();
          this.frozen.add(id);
        },
        thaw: async (id) => {
          if (this.failThaws) throw new Error('thaw failed');
          this.frozen.delete(id);
        },
        wasOutOfMemory: async () => false,
      },
      lazy: { watch: () => () => {} },
      exits: {
        watch: (id, _process, onEnd) => {
          this.ends.set(id, onEnd);
          return () => this.ends.delete(id);
        },
        statusOf: async () => undefined,
      },
      onState: (instance) => {
        // Nothing leaves gone.
        expect(this.gone).not.toContain(instance.id);
        if (instance.state === 'gone') this.gone.add(instance.id);
        this.instances.track(instance);
      },
      onRevoked: (leases) => {
        for (const lease of leases) this.#forget(lease);
      },
    });
    this.serve();
  }

  async #start(assignment: ServiceAssignment): Promise<Instance> {
    const id = `web-${++this.#count}`;
    await turn();
    if (this.failStarts) throw new Error('start failed');
    const instance = runningInstance(id, assignment, id);
    this.instances.track(instance);
    return instance;
  }

  #assignment(): ServiceAssignment {
    const long = { idleTimeoutMs: 3_600_000, preStartTimeoutMs: 3_600_000 };
    const limits = { maxConcurrency: SLOTS, maxPoolSize: MOST, preStartPoolSize: 1 };
    return webRevision({ ...limits, ...long }, `r${this.#revision}`);
  }

  serve(): void {
    this.instances.assign([this.#assignment()]);
  }

  #forget(lease: string): void {
    const at = this.leases.indexOf(lease);
    if (at >= 0) this.leases.splice(at, 1);
  }

  /** Work that may fail for a reason that a caller is told, such as a state that has changed. */
  #try(work: Promise<unknown>): void {
    const done = work.catch(() => {}).finally(() => this.work.delete(done));
    this.work.add(done);
  }

  do({ do: what, pick }: Op): void {
    const { instances } = this;
    const all = instances.list();
    const one = all[pick % Math.max(1, all.length)];
    const lease = this.leases[pick % Math.max(1, this.leases.length)];
    switch (what) {
      case 'acquire':
        this.#try(
          instances.acquire('web', [], GATEWAYS[pick % 2] as string).then(({ id }) => {
            // It may have been revoked in the same turn.
            if (instances.list().some((instance) => instance.leases.has(id))) this.leases.push(id);
          }),
        );
        break;
      case 'release':
        if (lease === undefined) break;
        this.#forget(lease);
        instances.release(lease);
        break;
      case 'shrink':
        if (lease) instances.shrink(lease, 1);
        break;
      case 'park':
        if (one) this.#try(instances.park(one.id));
        break;
      case 'thaw':
        if (one) this.#try(instances.thaw(one.id));
        break;
      case 'remove':
        if (one) this.#try(instances.remove(one.id, 'operator'));
        break;
      case 'retire':
        if (one && (one.state === 'parked' || (one.state === 'running' && one.leases.size === 0)))
          instances.retire(one, 'idle');
        break;
      case 'exit':
        if (one) this.ends.get(one.id)?.();
        break;
      case 'hang':
        if (one) this.#try(instances.hung(one, Object.assign(new Error('hangs')) as never));
        break;
      case 'reserve':
        for (const parked of instances.reservable()) {
          this.leases.push(instances.reserve(parked, GATEWAYS[pick % 2] as string).id);
        }
        break;
      case 'activate':
        if (lease) instances.activate(lease);
        break;
      case 'wake':
        this.#try(instances.wake('web'));
        break;
      case 'startParked':
        for (const assignment of instances.assignments()) this.#try(instances.startParked(assignment));
        break;
      case 'failStarts':
        this.failStarts = !this.failStarts;
        break;
      case 'failThaws':
        this.failThaws = !this.failThaws;
        break;
      case 'prepare':
        this.#revision += 1;
        this.#try(instances.prepare(this.#assignment()).then(() => this.serve()));
        break;
      case 'revise':
        this.#revision += 1;
        this.serve();
        break;
      case 'withdraw':
        instances.assign([]);
        break;
      case 'pass':
        if (instances.assignments().length === 0) this.serve();
        break;
    }
  }

  /** What holds at every moment. */
  check(): void {
    const current = this.instances.assignments()[0]?.revision;
    const list = this.instances.list();
    for (const instance of list) {
      const slots = [...instance.leases.values()].reduce((sum, lease) => sum + lease.slots, 0);
      expect(slots, instance.id).toBeLessThanOrEqual(SLOTS);
      expect(instance.state).not.toBe('gone');
    }
    // Those that are parked do not count, nor those of another revision that finish their requests.
    const running = list.filter(({ state, assignment }) => state === 'running' && assignment.revision === current);
    expect(running.length).toBeLessThanOrEqual(MOST);
  }
}

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

describe('the instances of a host, whatever happens', () => {
  it('keep the limits, never come back from gone, and all go when nothing is served and no lease is held', {
    timeout: 300_000,
  }, async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(OP, { minLength: 10, maxLength: 60 }), async (ops) => {
        const world = new World();
        for (const op of ops) {
          world.do(op);
          world.check();
          if (op.pick % 2 === 0) await turn();
          world.check();
        }
        world.failStarts = true;
        world.failThaws = false;
        while (world.work.size > 0) await Promise.all(world.work);
        world.instances.assign([]);
        for (const lease of world.leases.splice(0)) world.instances.release(lease);
        for (let turns = 0; turns < 50 && world.instances.list().length > 0; turns++) await turn();
        expect(world.instances.list().map(({ id, state }) => `${id} ${state}`)).toEqual([]);
        expect(new Set(world.cleared).size).toBe(world.cleared.length);
        expect([...world.gone].sort()).toEqual([...world.cleared].sort());
      }),
      { numRuns: 3_000 },
    );
  });
});
