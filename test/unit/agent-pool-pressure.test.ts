import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import fc from 'fast-check';
import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Instance } from '../../agent/instance/instance.js';
import { type Candidate, hasRoom, leastUseful, Pressure, shortage } from '../../agent/instance/pressure.js';
import { type MemoryReading, ownMemory, readMemory } from '../../agent/runtime/memory.js';
import { ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import { Origin } from '../../proto/gen/initless/v1/types.js';

const MIB = 2 ** 20;
const machine = (available: number, total = 2_000): MemoryReading => ({
  of: 'the machine',
  total: total * MIB,
  available: available * MIB,
});

describe('memory', () => {
  it('is short below a tenth, and stays short until a quarter more than that is there', () => {
    expect(shortage([machine(201)], false)).toBeUndefined();
    expect(shortage([machine(199)], false)).toEqual(machine(199));
    expect(shortage([machine(249)], true)).toEqual(machine(249));
    expect(shortage([machine(250)], true)).toBeUndefined();
  });

  it('is short on a large machine below 512 MiB', () => {
    expect(shortage([machine(513, 64_000)], false)).toBeUndefined();
    expect(shortage([machine(511, 64_000)], false)).toBeDefined();
  });

  it("is short when the host's own limit is near, however much the machine has", () => {
    const limit = { of: "this host's memory limit", total: 1_000 * MIB, available: 50 * MIB };
    expect(shortage([machine(30_000, 64_000), limit], false)).toBe(limit);
  });

  it('has room only for what leaves it well above the floor', () => {
    expect(hasRoom([machine(300)], 50 * MIB)).toBe(true);
    expect(hasRoom([machine(300)], 51 * MIB)).toBe(false);
  });

  it('that has room for an instance is not short with it', () => {
    fc.assert(
      fc.property(
        fc.nat({ max: 10 ** 11 }),
        fc.nat({ max: 10 ** 11 }),
        fc.nat({ max: 10 ** 10 }),
        (total, some, bytes) => {
          const available = Math.min(some, total);
          const reading = { of: 'the machine', total, available };
          fc.pre(hasRoom([reading], bytes));
          expect(shortage([{ ...reading, available: available - bytes }], true)).toBeUndefined();
        },
      ),
    );
  });
});

describe('the parked instance that goes first', () => {
  const one = (id: string, more: Partial<Candidate>): Candidate => ({
    ...{ id, kind: 'auto', usefulness: 2, lastUse: 10, parkedSince: 10 },
    ...more,
  });

  it('is one too many, then the least useful of automatic pools, then one of a fixed pool, then one that a person parked', () => {
    const all = [
      one('hand', { kind: 'by hand', usefulness: 0 }),
      one('fixed', { kind: 'fixed', usefulness: 0 }),
      one('useful', { usefulness: 4, lastUse: 1 }),
      one('recent', { usefulness: 1, lastUse: 20 }),
      one('older', { usefulness: 1, lastUse: 20, parkedSince: 5 }),
      one('unused', { usefulness: 1, lastUse: 5, parkedSince: 30 }),
      one('surplus', { kind: 'surplus', usefulness: 4, lastUse: 100 }),
    ];
    const order: string[] = [];
    for (let left = all; left.length > 0; left = left.filter(({ id }) => !order.includes(id))) {
      order.push(leastUseful(left)!.id);
    }
    expect(order).toEqual(['surplus', 'unused', 'older', 'recent', 'useful', 'fixed', 'hand']);
  });

  it('is none where none is parked', () => {
    expect(leastUseful([])).toBeUndefined();
  });
});

/** A host whose parked instances hold 30 MiB each. */
class Host {
  readonly list: Instance[] = [];
  readonly assignments: ServiceAssignment[] = [];
  readonly removed: string[] = [];
  available = 1_000;
  memoryOf = 0;
  readonly pressure: Pressure;

  constructor(available: number) {
    this.available = available;
    this.pressure = new Pressure({
      instances: {
        assignments: () => this.assignments,
        list: () => this.list,
        remove: async (id, reason) => {
          const at = this.list.findIndex((one) => one.id === id);
          const [gone] = this.list.splice(at, 1);
          this.available += 30;
          this.removed.push(`${id} ${reason}`);
          return gone!;
        },
      },
      usage: { lastUse: () => 0, memoryOf: () => this.memoryOf * MIB },
      read: () => [machine(this.available)],
      log: pino({ level: 'silent' }),
    });
  }

  /** @param usefulness of its automatic pool; undefined: a pool of a fixed number. */
  serve(service: string, parked: number, usefulness?: number): void {
    const assignment = ServiceAssignment.fromPartial({
      config: {
        serviceName: service,
        preStartPoolSize: usefulness === undefined ? parked : 0,
        preStartPoolAuto: usefulness !== undefined,
      },
      pool: usefulness === undefined ? undefined : { parked, ready: parked, usefulness },
    });
    this.assignments.push(assignment);
    for (let index = 0; index < parked; index++) {
      const instance = new Instance(`${service}-${index}`, assignment, Origin.ORIGIN_RESTORED);
      for (const type of ['start', 'healthy', 'park'] as const) instance.apply({ type });
      instance.parkedSince = index;
      instance.pooled = true;
      this.list.push(instance);
    }
  }
}

describe('a host that runs short of memory', () => {
  it('gives up one parked instance at a time, with a reason, until there is enough', async () => {
    const host = new Host(180);
    host.serve('fixed', 2);
    host.serve('likely', 2, 4);
    host.serve('unlikely', 1, 1);
    const first = host.list.find((one) => one.id === 'unlikely-0')!;
    expect(await host.pressure.look()).toBe(true);
    expect(host.removed).toEqual(['unlikely-0 drained']);
    expect(first.problem).toMatchObject({ code: 'MEMORY_SHORT' });
    expect(first.problem?.message).toBe('unlikely-0 was given up: 180 MiB of 2000 MiB of the machine are available');
    while (await host.pressure.look());
    expect(host.removed).toEqual(['unlikely-0 drained', 'likely-0 drained', 'likely-1 drained']);
    expect(host.available).toBe(270);
  });

  it('never touches what runs, and waits when nothing is parked', async () => {
    const host = new Host(10);
    host.serve('web', 1, 1);
    host.list[0]!.apply({ type: 'thaw' });
    expect(await host.pressure.look()).toBe(false);
    expect(host.removed).toEqual([]);
  });

  it('fills no pool until memory is back, and then only where it is enough', async () => {
    const host = new Host(150);
    expect(host.pressure.mayPark('web')).toBe(false);
    host.available = 240;
    await host.pressure.look();
    expect(host.pressure.mayPark('web')).toBe(false);
    host.available = 260;
    await host.pressure.look();
    expect(host.pressure.mayPark('web')).toBe(true);
    host.memoryOf = 20;
    expect(host.pressure.mayPark('web')).toBe(false);
  });

  it('takes what is beyond its pool first, the longest parked', async () => {
    const host = new Host(180);
    host.serve('web', 2, 4);
    host.serve('other', 2, 1);
    host.assignments[0]!.pool!.parked = 1;
    await host.pressure.look();
    expect(host.removed).toEqual(['web-0 drained']);
  });
});

describe('readings of memory', () => {
  let root: string;
  beforeEach(async () => {
    root = await mkdtemp(join(tmpdir(), 'initless-memory-'));
    await put('proc/meminfo', 'MemTotal:       16000000 kB\nMemFree:         100 kB\nMemAvailable:    4000000 kB\n');
  });
  afterEach(() => rm(root, { recursive: true }));

  async function put(file: string, text: string): Promise<void> {
    await mkdir(dirname(join(root, file)), { recursive: true });
    await writeFile(join(root, file), text);
  }
  const files = () => ({ proc: join(root, 'proc'), cgroups: join(root, 'cgroup') });
  const whole = { of: 'the machine', total: 16_000_000 * 1024, available: 4_000_000 * 1024 };

  it('are those of the machine where the host has no limit', async () => {
    expect(readMemory(files())).toEqual([whole]);
    await put('cgroup/memory.max', 'max\n');
    expect(readMemory(files())).toEqual([whole]);
    await put('cgroup/memory/memory.limit_in_bytes', '9223372036854771712\n');
    expect(readMemory(files())).toEqual([whole]);
  });

  it.each([
    ['2', 'cgroup/memory.max', 'cgroup/memory.current', 'cgroup/memory.stat', 'inactive_file 300\n'],
    [
      '1',
      'cgroup/memory/memory.limit_in_bytes',
      'cgroup/memory/memory.usage_in_bytes',
      'cgroup/memory/memory.stat',
      'inactive_file 7\ntotal_inactive_file 300\n',
    ],
  ])(
    "are also those of the host's limit, its idle page cache left out: cgroups version %s",
    async (_version, limit, used, stat, text) => {
      await put(limit, '4000\n');
      await put(used, '3000\n');
      await put(stat, `anon 1\n${text}`);
      expect(readMemory(files())).toEqual([whole, { of: "this host's memory limit", total: 4_000, available: 1_300 }]);
    },
  );

  it('of processes are what they hold of their own, those that have ended left out', async () => {
    const rollup = (anon: number) =>
      `1-2 ---p 0 00:00 0 [rollup]\nRss: 900 kB\nPss_Anon: ${anon} kB\nPss_Shmem: 1 kB\n`;
    await put('proc/5/smaps_rollup', rollup(10));
    await put('proc/6/smaps_rollup', rollup(20));
    expect(await ownMemory([5, 6, 7], files())).toBe(32 * 1024);
  });

  it('can be had on this machine', async () => {
    const [here] = readMemory();
    expect(here!.available).toBeGreaterThan(0);
    expect(here!.total).toBeGreaterThan(here!.available);
    expect(await ownMemory([process.pid])).toBeGreaterThan(MIB);
  });
});
