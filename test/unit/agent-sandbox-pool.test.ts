import { describe, expect, it } from 'vitest';
import { SPARES } from '../../agent/instance/sandbox-policy.js';
import { SandboxPool } from '../../agent/instance/sandbox-pool.js';
import type { PortRange, Sandbox } from '../../agent/runtime/sandbox.js';
import { Machine, MachineNetns, names, turns } from './agent-sandbox-machine.js';

interface Logged {
  message: string;
  about: Record<string, unknown>;
}

/** A pool on a machine, with a clock that a test moves. */
class World {
  readonly machine = new Machine();
  readonly logged: Logged[] = [];
  readonly stop = new AbortController();
  readonly pool: SandboxPool;
  now = 0;

  constructor(readonly ports: PortRange = { first: 20_000, last: 20_099 }) {
    const note = (about: object, message: string) => {
      this.logged.push({ message, about: about as Record<string, unknown> });
    };
    const log = { info: note, warn: note, error: note } as unknown as ConstructorParameters<typeof SandboxPool>[2];
    const settings = { hostAddress: '172.30.0.2', forbidden: [], ports };
    this.pool = new SandboxPool(new MachineNetns(this.machine), settings, log, () => this.now);
  }

  /** Starts the pool and lets it make its spares. */
  async start(kept: readonly Sandbox[] = []): Promise<this> {
    await this.pool.start(kept, this.stop.signal);
    await turns();
    return this;
  }

  /** Lets some time pass, and the pool look after itself. */
  async pass(ms: number): Promise<void> {
    this.now += ms;
    this.pool.usePorts(this.ports);
    await turns();
  }

  /** Lets a tenant move in and out again; `left` is what stays of him. */
  async lived(servicePort: number, left = ''): Promise<Sandbox> {
    const sandbox = await this.pool.take(servicePort);
    this.machine.left.set(sandbox.index, left);
    this.pool.giveBack(sandbox);
    await turns();
    return sandbox;
  }

  messages(): string[] {
    return this.logged.map(({ message }) => message);
  }
}

describe('ahead of time', () => {
  it('two sandboxes are made, whose ports lead nowhere yet', async () => {
    const { machine, pool } = await new World().start();
    expect(names(machine.namespaces)).toEqual(['il0', 'il1']);
    expect(machine.leases.size).toBe(0);
    expect(pool.counts()).toEqual({ used: 0, spare: 2, changing: 0, ports: 0, free: 98 });
  });

  it('as many as were taken together are made when it is quiet, two at a time', async () => {
    const world = await new World().start();
    const { machine, pool } = world;
    await Promise.all(Array.from({ length: 6 }, () => pool.take(80)));
    await world.pass(SPARES.quietMs);
    expect(pool.counts()).toMatchObject({ used: 6, spare: 6 });
    machine.byHand = true;
    for (let i = 0; i < 10; i++) void pool.take(80);
    await turns();
    expect(machine.running.filter(({ what }) => what.startsWith('make'))).toHaveLength(4 + 2);
  });

  it('those that nobody wants any more are removed after a minute, but for two', async () => {
    const world = await new World().start();
    await Promise.all(Array.from({ length: 6 }, () => world.pool.take(80)));
    await world.pass(SPARES.quietMs);
    await world.pass(SPARES.rememberedMs - SPARES.quietMs - 1);
    expect(world.pool.counts()).toMatchObject({ used: 6, spare: 6 });
    await world.pass(2 * SPARES.quietMs);
    expect(world.pool.counts()).toMatchObject({ used: 6, spare: 2 });
    expect(world.machine.namespaces.size).toBe(8);
  });

  it('a failure is said and followed by a pause that grows; what was half made is removed', async () => {
    const world = new World();
    const { machine, pool } = world;
    machine.fails = (what) => (what.startsWith('make') ? 'fails late' : undefined);
    await world.start();
    expect(pool.counts()).toEqual({ used: 0, spare: 0, changing: 0, ports: 0, free: 100 });
    expect(machine.namespaces.size).toBe(0);
    expect(world.logged.map(({ message, about }) => [message, about.pause])).toEqual([
      ['a spare sandbox could not be made', 1_000],
      ['a spare sandbox could not be made', 2_000],
    ]);
    await world.pass(1_999);
    expect(world.logged).toHaveLength(2);
    machine.fails = () => undefined;
    await world.pass(1);
    expect(pool.counts()).toMatchObject({ spare: 2 });
  });
});

describe('a sandbox that is taken', () => {
  it('is a spare, and costs one command: its lease', async () => {
    const { machine, pool } = await new World().start();
    const before = machine.done.length;
    const sandbox = await pool.take(80);
    expect(machine.done.slice(before, before + 1)).toEqual(['bind 0']);
    expect(sandbox).toEqual({
      index: 0,
      port: 20_000,
      servicePort: 80,
      netns: '/run/netns/il0',
      address: '172.30.0.2:20000',
    });
    expect(machine.leases.get(20_000)).toBe('10.200.0.1 . 80');
  });

  it('costs none when its port leads to the same service port since an earlier tenant', async () => {
    const world = await new World().start();
    const first = await world.lived(80);
    await world.lived(8080);
    const before = world.machine.done.length;
    expect(await world.pool.take(80)).toEqual(first);
    expect(world.machine.done).toHaveLength(before);
  });

  it('is made at once when there is no spare: namespace and lease side by side', async () => {
    const world = await new World().start();
    const { machine, pool } = world;
    machine.byHand = true;
    void pool.take(80);
    void pool.take(80);
    const third = pool.take(8080);
    await turns();
    expect(machine.running.map(({ what }) => what)).toEqual(expect.arrayContaining(['make 2', 'bind 2']));
    for (const command of [...machine.running]) command.end();
    expect(await third).toMatchObject({ index: 2, port: 20_002 });
  });

  it.each(['make 0', 'bind 0'])(
    'is given back whole when its %s fails half-way: nothing is left, its port is free',
    async (step) => {
      const world = new World({ first: 20_000, last: 20_000 });
      world.machine.fails = (what) => (what === step ? 'fails late' : undefined);
      const taken = world.pool.take(80);
      await expect(taken).rejects.toThrow(`${step} failed late`);
      expect(world.pool.counts()).toMatchObject({ used: 0, changing: 1 });
      world.machine.fails = () => undefined;
      await world.start();
      expect(world.machine.leases.size).toBe(0);
      expect(await world.pool.take(80)).toMatchObject({ index: 0, port: 20_000 });
    },
  );

  it('is not had when the start that wants it is stopped, at any of its steps', async () => {
    const already = await new World().start();
    await expect(already.pool.take(80, AbortSignal.abort(new Error('stopped')))).rejects.toThrow('stopped');
    expect(already.pool.counts()).toMatchObject({ used: 0, spare: 2 });
    for (const spares of [2, 0]) {
      const world = await new World().start();
      const { machine, pool } = world;
      for (let i = spares; i < 2; i++) await pool.take(80);
      machine.byHand = true;
      const stop = new AbortController();
      const taken = pool.take(8080, stop.signal);
      stop.abort(new Error('stopped'));
      await expect(taken).rejects.toThrow('stopped');
      machine.byHand = false;
      for (const command of [...machine.running]) command.end();
      await turns();
      expect(pool.counts()).toMatchObject({ used: 2 - spares });
      expect([...machine.leases.values()].filter((to) => to.endsWith('. 8080'))).toEqual([]);
      expect(machine.namespaces.size).toBe(pool.counts().used + pool.counts().spare);
    }
  });
});

describe('a sandbox that comes back', () => {
  it('is used again once it looks as new and its connections are forgotten', async () => {
    const world = await new World().start();
    world.machine.tracked.add('10.200.0.1');
    const before = world.machine.done.length;
    await world.lived(80);
    const after = world.machine.done.slice(before).filter((what) => !what.startsWith('make'));
    expect(after).toEqual(['bind 0', 'pids 0', 'look 0', 'forget 10.200.0.1', 'forget 10.200.0.1']);
    expect(world.machine.tracked.size).toBe(0);
    expect(world.pool.counts()).toMatchObject({ used: 0, spare: 2 });
  });

  it('takes none of the time of whoever gives it back', async () => {
    const { machine, pool } = await new World().start();
    const sandbox = await pool.take(80);
    machine.byHand = true;
    expect(pool.giveBack(sandbox)).toBeUndefined();
    expect(machine.running.map(({ what }) => what)).toEqual(['pids 0']);
  });

  it('is removed when something of its tenant is left, and what it is is said', async () => {
    const world = await new World().start();
    await world.lived(80, 'tcp TIME_WAIT');
    expect(names(world.machine.namespaces)).not.toContain('il0');
    expect(world.machine.leases.size).toBe(0);
    expect(world.logged).toEqual([
      {
        message: 'a sandbox is not used again: it is not as it was when it was new',
        about: { sandbox: 0, found: ['+ tcp TIME_WAIT'] },
      },
    ]);
  });

  it.each(['pids 0', 'look 0'])('is removed when it cannot be looked at: %s fails', async (step) => {
    const world = await new World().start();
    world.machine.fails = (what) => (what === step ? 'fails' : undefined);
    await world.lived(80);
    expect(world.machine.done).toContain('destroy 0');
    expect(world.messages()).toEqual(['a sandbox is not used again: it could not be looked at']);
  });

  it('is removed when there are twice as many spares as wanted', async () => {
    const world = await new World().start();
    const taken: Sandbox[] = [];
    for (let i = 0; i < 4; i++) {
      taken.push(await world.pool.take(80));
      await world.pass(SPARES.togetherMs + 1);
    }
    for (const sandbox of taken) world.pool.giveBack(sandbox);
    await turns();
    expect(world.pool.counts()).toMatchObject({ used: 0, spare: 4, changing: 0 });
    expect(world.machine.namespaces.size).toBe(4);
  });

  it('is compared anew after one was not as it should be: the machine itself may have changed', async () => {
    const world = await new World().start();
    const sandbox = await world.pool.take(80);
    await world.pass(SPARES.quietMs);
    world.machine.left.set(sandbox.index, 'link tunl0');
    world.pool.giveBack(sandbox);
    await turns();
    const looks = world.machine.done.filter((what) => what.startsWith('look'));
    await world.pool.take(80);
    await world.pool.take(80);
    await world.pass(SPARES.quietMs);
    expect(world.machine.done.filter((what) => what.startsWith('look')).length).toBeGreaterThan(looks.length);
  });

  it('a second time, does not take its number from the next tenant', async () => {
    const world = await new World({ first: 20_000, last: 20_000 }).start();
    const first = await world.lived(80);
    const second = await world.pool.take(80);
    expect(second).toEqual(first);
    world.pool.giveBack(first);
    await turns();
    expect(world.pool.counts()).toMatchObject({ used: 1, spare: 0 });
  });

  it('and cannot be removed keeps its port until it can; that is said, and tried again after a pause', async () => {
    const world = await new World({ first: 20_000, last: 20_000 }).start();
    world.machine.fails = (what) => (what.startsWith('destroy') ? 'fails' : undefined);
    await world.lived(80, 'a socket');
    expect(world.messages().at(-1)).toBe('a sandbox could not be removed');
    await expect(world.pool.take(80)).rejects.toMatchObject({ code: 'PORTS_EXHAUSTED' });
    world.machine.fails = () => undefined;
    await world.pass(SPARES.firstPauseMs);
    expect(await world.pool.take(80)).toMatchObject({ port: 20_000 });
  });

  it('is removed on a kernel that cannot forget connections; that is said once, and its port is free', async () => {
    const world = await new World({ first: 20_000, last: 20_001 }).start();
    world.machine.fails = (what) => (what.startsWith('forget') ? 'fails' : undefined);
    for (let i = 0; i < 3; i++) await world.lived(80);
    expect(world.messages()).toEqual(['connections of past instances cannot be forgotten']);
    expect(world.pool.counts()).toMatchObject({ used: 0, changing: 0 });
  });
});

describe('when all leased ports are in use', () => {
  it('the error says so, with the range and what to do', async () => {
    const world = await new World({ first: 20_000, last: 20_002 }).start();
    for (let i = 0; i < 3; i++) await world.pool.take(80);
    await expect(world.pool.take(80)).rejects.toMatchObject({
      code: 'PORTS_EXHAUSTED',
      message: 'all 3 leased ports 20000-20002 are in use',
      nextStep: expect.stringContaining('reserved_ports'),
    });
    await expect(world.pool.leasePort()).rejects.toMatchObject({ code: 'PORTS_EXHAUSTED' });
  });

  it('one that is on its way back is waited for', async () => {
    const world = await new World({ first: 20_000, last: 20_000 }).start();
    const sandbox = await world.pool.take(80);
    world.machine.byHand = true;
    world.machine.left.set(0, 'a socket');
    world.pool.giveBack(sandbox);
    let taken: Sandbox | undefined;
    const waiting = world.pool.take(8080).then((found) => {
      taken = found;
    });
    await turns();
    expect(taken).toBeUndefined();
    world.machine.byHand = false;
    for (const command of [...world.machine.running]) command.end();
    await waiting;
    expect(taken).toMatchObject({ port: 20_000, servicePort: 8080 });
    expect(world.machine.leases.get(20_000)).toBe('10.200.0.1 . 8080');
  });

  it('who waits for one can stop waiting', async () => {
    const world = await new World({ first: 20_000, last: 20_000 }).start();
    const sandbox = await world.pool.take(80);
    world.machine.byHand = true;
    world.pool.giveBack(sandbox);
    const stop = new AbortController();
    const waiting = world.pool.take(80, stop.signal);
    await turns();
    stop.abort(new Error('stopped'));
    await expect(waiting).rejects.toThrow('stopped');
  });

  it('a spare makes room for a port that is wanted without a sandbox, and comes back when the port does', async () => {
    const world = await new World({ first: 20_000, last: 20_001 }).start();
    const ports = [await world.pool.leasePort(), await world.pool.leasePort()];
    expect(ports.map(({ port }) => port).sort()).toEqual([20_000, 20_001]);
    expect(world.machine.namespaces.size).toBe(0);
    expect(world.pool.counts()).toEqual({ used: 0, spare: 0, changing: 0, ports: 2, free: 0 });
    for (const { index } of ports) world.pool.returnPort(index);
    await turns();
    expect(world.pool.counts()).toMatchObject({ ports: 0, spare: 2 });
  });
});

describe('when the range of ports changes', () => {
  it('spares with other ports are removed, sandboxes in use keep theirs until they end', async () => {
    const world = await new World({ first: 20_000, last: 20_009 }).start();
    const used = await world.pool.take(80);
    await world.pass(SPARES.quietMs);
    world.pool.usePorts({ first: 21_000, last: 21_001 });
    await turns();
    expect(world.pool.counts()).toMatchObject({ used: 1, spare: 2, free: 0 });
    expect(world.machine.leases.get(20_000)).toBe('10.200.0.1 . 80');
    expect(world.machine.namespaces.size).toBe(3);
    const taken = await Promise.all([world.pool.take(80), world.pool.take(80)]);
    expect(taken.map(({ port }) => port)).toEqual([21_000, 21_001]);
    await expect(world.pool.take(80)).rejects.toMatchObject({ code: 'PORTS_EXHAUSTED' });
    world.pool.giveBack(used);
    await turns();
    expect(world.machine.namespaces.has(used.index)).toBe(false);
  });

  it('one that is just being made with another port is removed when it is there', async () => {
    const world = new World();
    world.machine.byHand = true;
    const started = world.pool.start([], world.stop.signal);
    world.machine.running[0]?.end();
    await started;
    world.pool.usePorts({ first: 30_000, last: 30_009 });
    world.machine.byHand = false;
    for (const command of [...world.machine.running]) command.end();
    await turns();
    expect(world.pool.counts()).toEqual({ used: 0, spare: 2, changing: 0, ports: 0, free: 8 });
    expect(world.machine.namespaces.size).toBe(2);
  });
});

describe('at the start of an agent', () => {
  const kept: Sandbox = {
    index: 5,
    port: 20_007,
    servicePort: 80,
    netns: '/run/netns/il5',
    address: '172.30.0.2:20007',
  };

  it('the sandboxes of instances that it takes over stay, all others of the earlier one are removed', async () => {
    const world = new World();
    for (const index of [0, 3, 5]) world.machine.namespaces.add(index);
    world.machine.marks.add(0).add(3);
    world.machine.leases.set(20_000, '10.200.0.1 . 80');
    world.machine.held.add(5);
    await world.start([kept]);
    expect(world.machine.done[0]).toBe('rules');
    expect([...world.machine.leases]).toEqual([[20_007, '10.200.0.6 . 80']]);
    expect(world.machine.done).toEqual(expect.arrayContaining(['destroy 0', 'destroy 3']));
    expect(names(world.machine.namespaces)).toEqual(['il0', 'il1', 'il5']);
    expect(world.pool.counts()).toMatchObject({ used: 1, spare: 2, changing: 0 });
    expect(world.machine.faults).toEqual([]);
  });

  it('no port or number of an instance that it takes over is given to another', async () => {
    const world = await new World({ first: 20_007, last: 20_008 }).start([kept]);
    const other = await world.pool.take(80);
    expect(other).toMatchObject({ index: 0, port: 20_008 });
    await expect(world.pool.take(80)).rejects.toMatchObject({ code: 'PORTS_EXHAUSTED' });
  });

  it('an instance that it took over gives its sandbox back like any other', async () => {
    const world = new World();
    world.machine.namespaces.add(5);
    world.machine.left.set(5, '');
    await world.start([kept]);
    world.pool.giveBack(kept);
    await turns();
    expect(world.pool.counts()).toMatchObject({ used: 0, spare: 3 });
    expect(world.machine.marks).toEqual(world.machine.namespaces);
  });
});

it('spares are noted, also while they are looked at, and those in use are not', async () => {
  const { machine, pool } = await new World().start();
  expect(names(machine.marks)).toEqual(['il0', 'il1']);
  const sandbox = await pool.take(80);
  expect(names(machine.marks)).not.toContain('il0');
  pool.giveBack(sandbox);
  expect(names(machine.marks)).toContain('il0');
});

it('nothing is under way when it has stopped', async () => {
  const world = await new World().start();
  const sandbox = await world.pool.take(80);
  world.machine.byHand = true;
  world.pool.giveBack(sandbox);
  const running = world.pool.run(world.stop.signal);
  world.stop.abort(new Error('the agent stops'));
  await running;
  expect(world.machine.running).toEqual([]);
  expect(world.logged).toEqual([]);
});
