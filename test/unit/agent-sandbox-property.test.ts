import fc from 'fast-check';
import { expect, it } from 'vitest';
import { SandboxPool } from '../../agent/instance/sandbox-pool.js';
import { outerAddress, type Sandbox } from '../../agent/runtime/sandbox.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { Machine, MachineNetns } from './agent-sandbox-machine.js';

const RANGES = [
  { first: 20_000, last: 20_005 },
  { first: 20_003, last: 20_008 },
  { first: 20_000, last: 20_001 },
  { first: 30_000, last: 30_009 },
];
const LOG = { info() {}, warn() {}, error() {} } as unknown as ConstructorParameters<typeof SandboxPool>[2];

const at = fc.nat(30);
const event = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({ do: fc.constant('take' as const), servicePort: fc.constantFrom(80, 443, 8080) }),
  },
  { weight: 6, arbitrary: fc.record({ do: fc.constant('give' as const), at, dirty: fc.boolean() }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('give again' as const), at }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('lease' as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('return' as const), at }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('abort' as const), at }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('resize' as const), range: fc.constantFrom(...RANGES) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('wait' as const), ms: fc.constantFrom(300, 5_000, 70_000) }) },
  {
    weight: 16,
    arbitrary: fc.record({
      do: fc.constant('end' as const),
      at,
      how: fc.constantFrom('well', 'well', 'well', 'well', 'fails', 'fails late' as const),
    }),
  },
);
type PoolEvent = typeof event extends fc.Arbitrary<infer E> ? E : never;

/** Much cheaper than `expect`, which is asked for a hundred thousand states. */
function must(holds: boolean, what: string): void {
  if (!holds) throw new Error(`does not hold: ${what}`);
}

/** A pool and all who want something of it, with what each has. */
class World {
  readonly machine = new Machine();
  readonly pool: SandboxPool;
  readonly stop = new AbortController();
  readonly held: Sandbox[] = [];
  readonly given: Sandbox[] = [];
  readonly ports: { index: number; port: number }[] = [];
  /** Those who wait, by how they can stop. */
  readonly wanting = new Set<AbortController>();
  readonly surprises: unknown[] = [];
  range = RANGES[0] as (typeof RANGES)[number];
  now = 0;

  constructor() {
    const settings = { hostAddress: '172.30.0.2', forbidden: [], ports: this.range };
    this.pool = new SandboxPool(new MachineNetns(this.machine), settings, LOG, () => this.now);
  }

  want<T>(ask: (signal: AbortSignal) => Promise<T>, got: (found: T) => void): void {
    const stop = new AbortController();
    this.wanting.add(stop);
    void ask(stop.signal)
      .then(got)
      .catch((error: unknown) => {
        const known = error instanceof InitlessError && ['PORTS_EXHAUSTED', 'INTERNAL'].includes(error.code);
        if (!known && error !== 'stopped') this.surprises.push(error);
      })
      .finally(() => this.wanting.delete(stop));
  }

  apply(next: PoolEvent): void {
    const { machine, pool } = this;
    const pick = <T>(all: readonly T[], index: number): T | undefined => all[index % Math.max(1, all.length)];
    switch (next.do) {
      case 'take':
        this.want(
          (signal) => pool.take(next.servicePort, signal),
          (sandbox) => {
            this.moveIn(sandbox);
            must(sandbox.servicePort === next.servicePort, 'he has the port that he asked for');
          },
        );
        break;
      case 'give': {
        const sandbox = pick(this.held, next.at);
        if (sandbox) this.moveOut(sandbox, next.dirty);
        break;
      }
      case 'give again': {
        const sandbox = pick(this.given, next.at);
        if (sandbox) pool.giveBack(sandbox);
        break;
      }
      case 'lease':
        this.want(
          (signal) => pool.leasePort(signal),
          (lease) => this.ports.push(lease),
        );
        break;
      case 'return': {
        const lease = pick(this.ports, next.at);
        if (lease) this.ports.splice(this.ports.indexOf(lease), 1);
        if (lease) pool.returnPort(lease.index);
        break;
      }
      case 'abort':
        pick([...this.wanting], next.at)?.abort('stopped');
        break;
      case 'resize':
        this.range = next.range;
        pool.usePorts(next.range);
        break;
      case 'wait':
        this.now += next.ms;
        pool.usePorts(this.range);
        break;
      case 'end': {
        const command = pick(machine.running, next.at);
        // A kernel that has never forgotten a sandbox's connections, both those to it and from it, is taken for one
        // that cannot.
        const forgets = machine.done.filter((what) => what.startsWith('forget'));
        const first = command?.what.startsWith('forget') && new Set(forgets).size === forgets.length;
        command?.end(first ? 'well' : (next.how as 'well' | 'fails' | 'fails late'));
      }
    }
  }

  moveIn(sandbox: Sandbox): void {
    const { machine } = this;
    const { index, port, servicePort } = sandbox;
    // Whoever moves in finds a whole namespace, nothing of anybody else, and his port leads to him.
    must(machine.namespaces.has(index), 'his namespace is there');
    must(machine.left.get(index) === '', 'nothing of an earlier tenant is in it');
    must(machine.leases.get(port) === `${outerAddress(index)} . ${servicePort}`, 'his port leads to him');
    must(!machine.tracked.has(outerAddress(index)), 'connections of an earlier tenant are forgotten');
    must(!machine.marks.has(index), 'he is not noted as spare');
    this.held.push(sandbox);
    machine.held.add(index);
    machine.tracked.add(outerAddress(index));
  }

  moveOut(sandbox: Sandbox, dirty: boolean): void {
    this.held.splice(this.held.indexOf(sandbox), 1);
    this.given.push(sandbox);
    this.machine.held.delete(sandbox.index);
    if (dirty) this.machine.left.set(sandbox.index, 'a socket');
    this.pool.giveBack(sandbox);
  }

  /** What must be true at any moment. */
  check(): void {
    const { machine, held, ports } = this;
    must(machine.faults.length === 0, machine.faults.join());
    if (this.surprises.length > 0) throw this.surprises[0];
    const all = [...held, ...ports];
    must(new Set(all.map(({ port }) => port)).size === all.length, 'no port has two owners');
    must(new Set(all.map(({ index }) => index)).size === all.length, 'no number has two owners');
    for (const { index, port, servicePort } of held) {
      must(machine.namespaces.has(index), 'a tenant keeps his namespace');
      must(machine.leases.get(port) === `${outerAddress(index)} . ${servicePort}`, 'a tenant keeps his port');
    }
    const counts = this.pool.counts();
    must(counts.ports === ports.length, 'the leased ports are counted');
    must(counts.used >= held.length, 'all who have a sandbox are counted');
    must(counts.used <= held.length + this.wanting.size, 'nobody else is counted');
    must(counts.spare <= 32, 'there are no more spares than allowed');
    must(counts.free >= 0, 'no port is counted twice');
    must(machine.running.length <= 2 + 2 * this.wanting.size, 'no more is done at a time than allowed');
  }
}

/** Lets all that follows from what has just happened come about. */
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

it('whatever happens, no port and no number has two owners, no tenant loses his, and in the end nothing is left', {
  timeout: 120_000,
}, async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(event, { minLength: 50, maxLength: 50 }), async (events) => {
      const world = new World();
      const { machine, pool } = world;
      machine.byHand = true;
      const started = pool.start([], world.stop.signal);
      machine.running[0]?.end();
      await started;
      for (const next of events) {
        world.apply(next);
        await turn();
        world.check();
      }
      // Everybody leaves, and nothing fails any more.
      for (const stop of world.wanting) stop.abort('stopped');
      await turn();
      machine.byHand = false;
      for (const command of [...machine.running]) command.end();
      for (const sandbox of [...world.held]) world.moveOut(sandbox, false);
      for (const { index } of world.ports.splice(0)) pool.returnPort(index);
      for (let i = 0; i < 4; i++) {
        world.now += 70_000;
        pool.usePorts(world.range);
        for (let turns = 0; turns < 4; turns++) await turn();
      }
      world.check();
      const size = world.range.last - world.range.first + 1;
      const spare = Math.min(2, size);
      expect(pool.counts()).toEqual({ used: 0, spare, changing: 0, ports: 0, free: size - spare });
      expect(machine.namespaces.size).toBe(spare);
      expect(machine.marks).toEqual(machine.namespaces);
      const owned = [...machine.leases.values()].map((to) => to.split(' ')[0]);
      const outer = [...machine.namespaces].map(outerAddress);
      for (const address of owned) expect(outer).toContain(address);
      expect(new Set(owned).size).toBe(owned.length);
    }),
    { numRuns: 2_000 },
  );
});
