import { pino } from 'pino';
import { beforeEach, describe, expect, it } from 'vitest';
import { Instance } from '../../agent/instance/instance.js';
import type { Instances } from '../../agent/instance/instances.js';
import { Pool, parkedWanted } from '../../agent/instance/pool.js';
import { Usage } from '../../agent/instance/usage.js';
import { PoolShare, ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import { Origin } from '../../proto/gen/initless/v1/types.js';

const assignment = (pool?: Partial<PoolShare>, preStartPoolSize = 0, revision = 'r1'): ServiceAssignment =>
  ServiceAssignment.fromPartial({
    config: { serviceName: 'web', preStartPoolSize, preStartPoolAuto: pool !== undefined },
    revision,
    pool: pool && PoolShare.fromPartial(pool),
  });

let number = 0;
function instance(state: 'running' | 'parked', of = assignment()): Instance {
  const made = new Instance(`web-${++number}`, of, Origin.ORIGIN_RESTORED);
  made.apply({ type: 'start' });
  made.apply({ type: 'healthy' });
  if (state === 'parked') made.apply({ type: 'park' });
  made.pooled = state === 'parked';
  return made;
}

describe('what a pool wants parked', () => {
  it('is pre_start_pool_size where that is a number, whatever runs', () => {
    expect(parkedWanted(assignment(undefined, 3), [instance('running')])).toBe(3);
  });

  it('is the share of an automatic pool, less what runs once that and the parked ones together are enough', () => {
    const share = assignment({ parked: 2, ready: 3 });
    const running = (count: number) => Array.from({ length: count }, () => instance('running'));
    expect([0, 1, 2, 3, 4].map((count) => parkedWanted(share, running(count)))).toEqual([2, 2, 1, 0, 0]);
  });

  it('is not lessened by instances of another revision, or by parked ones', () => {
    const share = assignment({ parked: 1, ready: 1 });
    const others = [instance('running', assignment(undefined, 0, 'r0')), instance('parked')];
    expect(parkedWanted(share, others)).toBe(1);
  });
});

describe('an automatic pool', () => {
  let list: Instance[] = [];
  let served = assignment();
  let started = 0;
  const retired: string[] = [];
  const instances = {
    assignments: () => [served],
    list: () => list,
    parked: () => list.filter((one) => one.state === 'parked'),
    startParked: async () => void started++,
    retire: (one: Instance, reason: string) => retired.push(`${one.id} ${reason}`),
  } as unknown as Instances;
  const pool = (mayPark: () => boolean) => new Pool(instances, pino({ level: 'silent' }), mayPark);

  beforeEach(() => {
    list = [];
    started = 0;
    retired.length = 0;
  });

  it('does not replace the one that was taken while it runs, and does when it has gone', () => {
    served = assignment({ parked: 1, ready: 1 });
    list = [instance('running')];
    pool(() => true).look();
    expect(started).toBe(0);
    list = [];
    pool(() => true).look();
    expect(started).toBe(1);
  });

  it('gives up what is not wanted any more as idle', () => {
    served = assignment({ parked: 0, ready: 0 });
    list = [instance('parked')];
    pool(() => true).look();
    expect(retired).toEqual([`${list[0]?.id} idle`]);
  });

  it('is not filled without memory for it', () => {
    served = assignment({ parked: 2, ready: 2 });
    pool(() => false).look();
    expect(started).toBe(0);
  });
});

describe('the use of a service', () => {
  const report = (usage: Usage, now: number, list: Instance[] = []) => usage.report(['web'], list, now)[0]!;

  it('is told of one that nobody has called yet', () => {
    expect(report(new Usage(), 10)).toMatchObject({
      service: 'web',
      foundRunning: 0,
      inUse: 0,
      idleMs: 0,
      mostTaken: 0,
    });
  });

  it('is counted by what was found, and only grows', () => {
    const usage = new Usage();
    usage.granted('web', 'running', 1, 10);
    usage.granted('web', 'parked', 2, 20);
    usage.granted('web', undefined, 3, 30);
    const first = report(usage, 40);
    expect(first).toMatchObject({ foundRunning: 1, foundParked: 1, started: 1, mostInUse: 3, idleMs: 10 });
    expect(report(usage, 41)).toEqual({ ...first, idleMs: 11 });
  });

  it('is idle only once no lease is held', () => {
    const usage = new Usage();
    usage.granted('web', 'running', 1, 10);
    const used = instance('running');
    used.leases.set('lease', { id: 'lease', gateway: 'g', slots: 1 });
    expect(report(usage, 5_000, [used])).toMatchObject({ inUse: 1, idleMs: 0 });
    expect(report(usage, 8_000)).toMatchObject({ inUse: 0, idleMs: 3_000 });
  });

  it('counts as taken together what is taken within five seconds, from the pool or by a start', () => {
    const usage = new Usage();
    usage.granted('web', 'parked', 1, 10_000);
    usage.granted('web', undefined, 2, 12_000);
    usage.granted('web', 'running', 2, 12_500);
    usage.granted('web', 'parked', 3, 16_000);
    expect(report(usage, 17_000)).toMatchObject({ mostTaken: 2, mostInUse: 3 });
  });

  it('begins a new stretch after a minute, but not before the figures of the last were told', () => {
    const usage = new Usage();
    report(usage, 0);
    usage.granted('web', 'parked', 4, 70_000);
    expect(report(usage, 71_000)).toMatchObject({ stretch: 1, mostTaken: 1, mostInUse: 4 });
    expect(report(usage, 72_000)).toMatchObject({ stretch: 2, mostTaken: 0, mostInUse: 0, foundParked: 1 });
    expect(report(usage, 131_000)).toMatchObject({ stretch: 2 });
    expect(report(usage, 131_001)).toMatchObject({ stretch: 3 });
  });

  it('is told with the memory that a parked instance holds, once it was measured', () => {
    const usage = new Usage();
    usage.measured('web', 5_000_000, 1);
    expect(report(usage, 2).parkedMemory).toBe(5_000_000);
    expect(usage.memoryOf('other')).toBe(0);
  });

  it('is forgotten when the service is not served any more', () => {
    const usage = new Usage();
    usage.granted('web', 'running', 1, 10);
    expect(usage.report([], [], 20)).toEqual([]);
    expect(report(usage, 30)).toMatchObject({ foundRunning: 0 });
  });
});
