import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { assignmentAt } from '../../control-plane/core/hosts.js';
import { isEnabled } from '../../control-plane/core/model.js';
import { routesOf } from '../../control-plane/core/routes.js';
import { type Decision, schedule } from '../../control-plane/core/schedule.js';
import { serviceView } from '../../control-plane/core/view.js';
import { ServiceState } from '../../proto/gen/initless/v1/types.js';
import { type Ending, HOST_TIMEOUT_MS, World } from './control-plane-world.js';

/** Lets everything go its way until nothing is decided any more; every build ends as told. */
function calm(world: World, ending: Ending = 'made'): void {
  for (let round = 0; round < 300; round++) {
    const decisions = world.step();
    const building = world.work.some((work) => work.kind === 'prepare');
    if (building) world.endBuild(ending);
    world.now += 1_000;
    if (decisions === 0 && !building && round > 120) return;
  }
  throw new Error(`still deciding: ${JSON.stringify(world.decided.slice(-5).map((decision) => decision.type))}`);
}

function ofType<Type extends Decision['type']>(world: World, type: Type) {
  return world.decided.filter((decision): decision is Extract<Decision, { type: Type }> => decision.type === type);
}

const state = (world: World, name: string) => serviceView(world.services.get(name)!, world.snapshot(), []).state;

describe('what is decided', () => {
  it('is to build on the host that is there, then to serve there', () => {
    const world = new World(['host1', 'host2']);
    world.connect('host2');
    world.apply('a', '1');
    calm(world);
    expect(world.decided.map((decision) => decision.type)).toEqual(['place', 'prepare', 'assign']);
    expect(world.services.get('a')).toMatchObject({ host: 'host2', current: { host: 'host2' } });
    expect(state(world, 'a')).toBe(ServiceState.SERVICE_STATE_READY);
  });

  it('is nothing while no host is there', () => {
    const world = new World(['host1']);
    world.apply('a', '1');
    expect(world.step()).toBe(0);
    expect(state(world, 'a')).toBe(ServiceState.SERVICE_STATE_PENDING);
  });

  it('spreads services over hosts', () => {
    const world = new World(['host1', 'host2']);
    world.connect('host1');
    world.connect('host2');
    for (const name of ['a', 'b', 'c', 'd']) {
      world.apply(name, '1');
      calm(world);
    }
    expect([...world.services.values()].filter((record) => record.host === 'host1')).toHaveLength(2);
  });

  it('leaves a service on its host for the grace period, then makes it elsewhere', () => {
    const world = new World(['host1', 'host2']);
    world.connect('host1');
    world.apply('a', '1', 'spread: 1\n');
    calm(world);
    world.connect('host2');
    world.disconnect('host1', false);
    world.now += HOST_TIMEOUT_MS - 1;
    expect(world.step()).toBe(0);
    expect(routesOf(world.snapshot(), world.now)[0]?.hosts[0]?.host).toBe('host1');
    world.now += 1;
    calm(world);
    expect(world.services.get('a')?.current?.host).toBe('host2');
    expect(routesOf(world.snapshot(), world.now)[0]?.hosts[0]?.host).toBe('host2');
    world.connect('host1');
    calm(world);
    expect(world.hosts.get('host1')).toMatchObject({ assignments: [], checkpoints: [] });
    expect(ofType(world, 'prepare')).toHaveLength(2);
  });

  it('goes back to the host that returns before another one has made the revision', () => {
    const world = new World(['host1', 'host2']);
    world.connect('host1');
    world.apply('a', '1');
    calm(world);
    world.connect('host2');
    world.disconnect('host1', true);
    world.now += HOST_TIMEOUT_MS;
    while (world.work.length === 0) world.step();
    world.connect('host1');
    for (let steps = 0; steps < 3; steps++) world.step();
    expect(world.work[0]).toMatchObject({ host: 'host2', cancelled: true });
    calm(world);
    expect(world.services.get('a')?.current?.host).toBe('host1');
    expect(ofType(world, 'copy').at(-1)).toMatchObject({ host: 'host2', sources: [{ host: 'host1' }] });
  });

  it('retries a build that lost its host three times, each time later, then gives up', () => {
    const world = new World(['host1']);
    world.apply('a', '1');
    const begun: number[] = [];
    for (let round = 0; round < 200; round++) {
      world.connect('host1');
      world.step();
      if (world.work.length > 0) {
        begun.push(world.now);
        world.disconnect('host1', true);
      }
      world.now += 1_000;
      if (world.services.get('a')?.pending?.making.kind === 'failed') break;
    }
    const pauses = begun.slice(1).map((at, index) => at - begun[index]!);
    expect(pauses).toEqual([2_000, 10_000, 30_000]);
    expect(world.services.get('a')?.pending?.making).toMatchObject({ kind: 'failed', problem: { code: 'AGENT_DOWN' } });
    world.now += 1_000;
    world.connect('host1');
    calm(world);
    expect(state(world, 'a')).toBe(ServiceState.SERVICE_STATE_READY);
  });

  it('is never more than two builds on a host', () => {
    const world = new World(['host1']);
    world.connect('host1');
    for (const name of ['a', 'b', 'c', 'd']) world.apply(name, '1');
    for (let round = 0; round < 5; round++) world.step();
    expect(world.work).toHaveLength(2);
    calm(world);
    expect([...world.services.values()].every((record) => record.current !== undefined)).toBe(true);
  });

  it('keeps the revision before, and removes older ones from the host', () => {
    const world = new World(['host1']);
    world.connect('host1');
    for (const content of ['1', '2', '3']) {
      world.apply('a', content);
      calm(world);
    }
    const record = world.services.get('a')!;
    const held = world.hosts.get('host1')!.checkpoints.map((one) => one.revision);
    expect(held.sort()).toEqual([record.current!.id, record.previous[0]!.id].sort());
  });

  it('needs no build after a reconnect, and none of the Docker engine, when the checkpoint is there', () => {
    const world = new World(['host1']);
    world.connect('host1');
    world.apply('a', '1');
    calm(world);
    world.disconnect('host1', true);
    world.hosts.set('host1', { ...world.hosts.get('host1')!, engine: undefined });
    world.now += 100_000;
    world.connect('host1');
    calm(world);
    expect(ofType(world, 'prepare')).toHaveLength(1);
    expect(ofType(world, 'assign')).toHaveLength(2);
  });

  it('leaves what a host holds of a service that nobody knows, but has it serve no more', () => {
    const world = new World(['host1']);
    world.connect('host1');
    world.apply('a', '1');
    calm(world);
    world.services.clear();
    calm(world);
    expect(world.hosts.get('host1')?.checkpoints).toHaveLength(1);
    expect(world.hosts.get('host1')?.assignments).toEqual([]);
    // And when it comes back with the same content, nothing is removed and nothing built in vain.
    world.apply('a', '1');
    while (world.work.length === 0) world.step();
    expect(world.hosts.get('host1')?.checkpoints).toHaveLength(1);
  });
});

/** Something that happens to services and hosts. */
const happening = fc.oneof(
  fc.record({
    kind: fc.constant('apply'),
    service: fc.integer({ min: 0, max: 2 }),
    content: fc.integer({ min: 0, max: 3 }),
  }),
  fc.record({
    kind: fc.constant('idle'),
    service: fc.integer({ min: 0, max: 2 }),
    content: fc.integer({ min: 1, max: 9 }),
  }),
  fc.record({
    kind: fc.constantFrom('disable', 'remove'),
    service: fc.integer({ min: 0, max: 2 }),
    content: fc.constant(0),
  }),
  fc.record({
    kind: fc.constantFrom('connect', 'disconnect', 'restart', 'wipe'),
    service: fc.integer({ min: 0, max: 2 }),
    content: fc.constant(0),
  }),
  fc.record({
    kind: fc.constantFrom('made', 'failed', 'uncheckpointed', 'step', 'time'),
    service: fc.constant(0),
    content: fc.integer({ min: 0, max: 3 }),
  }),
);

function happen(world: World, { kind, service, content }: { kind: string; service: number; content: number }): void {
  const name = 'abc'[service]!;
  const host = `host${service}`;
  switch (kind) {
    case 'apply':
      world.apply(name, String(content));
      break;
    case 'idle':
      if (world.services.has(name)) world.apply(name, '0', `idle_timeout: ${content}\n`, false);
      break;
    case 'disable':
      world.apply(name, '0', 'is_enabled: false\n');
      break;
    case 'remove':
      world.remove(name);
      break;
    case 'connect':
      world.connect(host);
      break;
    case 'disconnect':
    case 'restart':
      world.disconnect(host, kind === 'restart');
      break;
    case 'wipe':
      world.wipe(host);
      break;
    case 'step':
      world.step();
      break;
    case 'time':
      world.now += [10, 1_000, 20_000, 70_000][content]!;
      break;
    default:
      world.endBuild(kind as Ending);
  }
}

/** Never two builds of one service at a time, whatever happens. */
function checkBuilds(world: World): void {
  const builds = world.work.filter((work) => work.kind === 'prepare').map((work) => work.service);
  expect(new Set(builds).size).toBe(builds.length);
}

/** `npm run test:full` has many more. */
const RUNS = Number(process.env.INITLESS_PROPERTY_RUNS ?? 3_500);

describe('whatever happens', { timeout: 3_600_000 }, () => {
  it('never builds a service twice at once, comes to rest, and then every service is served by its hosts, whose shares sum to the whole', () => {
    fc.assert(
      fc.property(fc.array(happening, { maxLength: 60 }), (happenings) => {
        const world = new World(['host0', 'host1', 'host2']);
        for (const one of happenings) {
          happen(world, one);
          world.step();
          checkBuilds(world);
        }
        for (const host of world.hosts.keys()) world.connect(host);
        world.now += 61_000;
        calm(world);
        checkBuilds(world);
        for (const record of world.services.values()) {
          const serving = [...world.hosts.values()].filter((host) =>
            host.assignments.some((one) => one.config?.serviceName === record.name),
          );
          expect(record.removed).toBe(false);
          if (!isEnabled(record) || record.current === undefined) {
            expect(serving).toEqual([]);
            if (isEnabled(record)) expect(record.pending?.making.kind).toBe('failed');
            continue;
          }
          expect(serving.map((host) => host.name)).toEqual([...record.hosts].sort());
          const assignments = serving.map((host) => assignmentAt(host, record.name)!);
          for (const assignment of assignments) {
            expect(assignment.revision).toBe(record.current.id);
            expect(assignment.config?.idleTimeoutMs).toBe(record.config.idleTimeoutMs);
          }
          const most = assignments.map(({ pool, config }) => pool?.maxRunning ?? config!.maxPoolSize);
          expect(most.reduce((sum, count) => sum + count, 0)).toBe(record.config.maxPoolSize);
        }
      }),
      // Some 30 events each: 100,000 in all.
      { numRuns: RUNS },
    );
  });

  it('decides the same for the same, and changes nothing of what it is given', () => {
    fc.assert(
      fc.property(fc.array(happening, { maxLength: 40 }), (happenings) => {
        const world = new World(['host0', 'host1']);
        for (const one of happenings)
          if (!(one.service > 1 && /connect|restart|wipe/.test(one.kind))) happen(world, one);
        const snapshot = world.snapshot();
        const before = structuredClone(snapshot);
        expect(schedule(snapshot, world.now)).toEqual(schedule(before, world.now));
        expect(snapshot).toEqual(before);
      }),
      { numRuns: 20 },
    );
  });
});
