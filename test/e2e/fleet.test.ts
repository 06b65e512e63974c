import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import WebSocket from 'ws';
import { HostPhase, Origin } from '../../proto/gen/initless/v1/types.js';
import { copyOf } from './deploy.js';
import {
  agentPidOf,
  ask,
  cutOff,
  deployOnBoth,
  eventsOf,
  fleet,
  fleetDown,
  fleetUp,
  GATEWAYS,
  HOSTS,
  type HostName,
  heal,
  inHost,
  instancesOf,
  killPartOf,
  mustFleet,
  runningOf,
  serviceOf,
  untilConnected,
  untilOnBoth,
} from './fleet-system.js';
import { echo, Load } from './load.js';
import { getJson, until } from './support.js';

/** A service with an instance parked on each host, and one that speaks WebSocket. */
const STATE = { name: 'fleet_state', port: 8471 };
const STREAM = { name: 'fleet_stream', port: 8472 };
const at = (gateway: string, port: number) => `http://${gateway}:${port}`;

const kinds = async (kind: string, service = '') => (await eventsOf(service)).filter((event) => event.kind === kind);

/** Load on both gateways that asks the state service; what fails is told when it is stopped. */
function load(clients = 3) {
  const loads = GATEWAYS.map((gateway) => new Load(at(gateway, STATE.port), clients));
  return {
    progress: () => Promise.all(loads.map((one) => one.progress())),
    stop: async () => {
      const outcomes = await Promise.all(loads.map((one) => one.stop()));
      return {
        answered: outcomes.reduce((sum, { answered }) => sum + answered, 0),
        failures: outcomes.flatMap(({ failures }) => failures),
      };
    },
  };
}

/** The phase in which the control plane sees a host. */
const phaseOf = async (name: HostName) => {
  const { hosts } = await ask((admin, options) => admin.listHosts({}, options));
  return hosts.find((host) => host.name === name)?.phase;
};

beforeAll(async () => {
  await fleetUp();
  const pool = { pre_start_pool_size: 2, max_pool_size: 4, max_concurrency: 10 };
  await deployOnBoth(await copyOf('state', { service_name: STATE.name, host_port: STATE.port, ...pool }), STATE.name);
  const names = { image_name: STREAM.name, checkpoint_name: STREAM.name };
  const stream = { service_name: STREAM.name, host_port: STREAM.port, max_pool_size: 2, ...names };
  await deployOnBoth(await copyOf('sample/node_stream', stream), STREAM.name);
});
afterEach(() => heal());
afterAll(() => fleetDown());

describe('a checkpoint that was made on one host', () => {
  it('is restored on the other too: what it kept in memory before the dump is the same on both', async () => {
    const tokens: string[] = [];
    for (const host of HOSTS) {
      const { instance } = await ask((admin, options) => admin.wakeService({ serviceName: STATE.name, host }, options));
      expect(instance).toMatchObject({ host, origin: Origin.ORIGIN_RESTORED });
      const { token } = await getJson<{ token: string }>(`http://${instance?.address}/`);
      tokens.push(token);
    }
    expect(tokens[0]).toMatch(/^[0-9a-f]{32}$/);
    expect(tokens[1]).toBe(tokens[0]);
    const { checkpoints } = await ask((admin, options) => admin.listCheckpoints({ serviceName: STATE.name }, options));
    expect(checkpoints.map(({ host }) => host).sort()).toEqual([...HOSTS]);
    expect(await kinds('checkpoint.sealed', STATE.name)).toHaveLength(1);
    expect(await kinds('checkpoint.copied', STATE.name)).toHaveLength(1);
  });

  it('passes every digest on the host that has the copy', async () => {
    const copy = (await kinds('checkpoint.copied', STATE.name))[0]!.host;
    const { stdout, code } = await fleet('checkpoint', 'inspect', STATE.name, '--host', copy, '--verify');
    expect(stdout).toContain(copy);
    expect(code).toBe(0);
  });

  it('is explained', async () => {
    const text = await mustFleet('service', 'explain', STATE.name);
    for (const host of HOSTS) expect(text).toMatch(new RegExp(`^${host}: placed; 1 parked, 2 running at most$`, 'm'));
  });
});

describe('under load', () => {
  it('the control plane is killed and comes back: no request fails, nothing is restored in vain', async () => {
    const running = load();
    await running.progress();
    const before = new Set((await instancesOf(STATE.name)).map(({ id }) => id));
    await killPartOf('control-plane');
    await untilConnected();
    await running.progress();
    await until('the hosts to have reported', async () => (await instancesOf(STATE.name)).length >= before.size);
    await delay(3_000);
    expect(await running.stop()).toMatchObject({ failures: [] });
    const after = await instancesOf(STATE.name);
    expect(after.filter(({ id }) => !before.has(id))).toEqual([]);
    expect(await kinds('service.placed')).toEqual([]);
  });

  it('an agent is killed and comes back: its instances have gone on and are taken over', async () => {
    await fleet('host', 'cordon', 'b');
    const running = load();
    await running.progress();
    const before = (await runningOf(STATE.name)).map(({ id }) => id).sort();
    const pid = await agentPidOf('a');
    await inHost('a', `kill -KILL ${pid}`);
    await until('another agent of a', async () => ![0, pid].includes(await agentPidOf('a')));
    await untilConnected();
    await running.progress();
    const { failures, answered } = await running.stop();
    expect(failures).toEqual([]);
    expect(answered).toBeGreaterThan(20);
    const after = (await instancesOf(STATE.name)).map(({ id }) => id);
    expect(after).toEqual(expect.arrayContaining(before));
    await fleet('host', 'uncordon', 'b');
  });

  it('a host is cut off for 5 seconds: requests are answered by the other, and nothing is replaced', async () => {
    await untilOnBoth(STATE.name);
    const placed = (await kinds('service.placed')).length;
    const before = (await instancesOf(STATE.name)).map(({ id }) => id).sort();
    const running = load();
    await running.progress();
    await cutOff('b');
    await delay(5_000);
    await heal();
    await running.progress();
    await until('b to be ready', async () => (await phaseOf('b')) === HostPhase.HOST_PHASE_READY);
    await delay(2_000);
    // What was in flight on b when it was cut off may be answered late; it must not be lost.
    expect(await running.stop()).toMatchObject({ failures: [] });
    expect((await kinds('service.placed')).length).toBe(placed);
    expect(await kinds('host.lost')).toEqual([]);
    const after = (await instancesOf(STATE.name)).map(({ id }) => id);
    expect(after).toEqual(expect.arrayContaining(before));
  });

  it('a host is cut off for 60 seconds: replaced once, and kept on one side when it is back', async () => {
    await untilOnBoth(STATE.name);
    const restored = async () => (await kinds('instance.running', STATE.name)).length;
    const running = load();
    await running.progress();
    await cutOff('b');
    await until('b to be lost', async () => (await phaseOf('b')) === HostPhase.HOST_PHASE_LOST, 40_000);
    await until('a to have all of the pool', async () => {
      const { hosts } = await serviceOf(STATE.name);
      return hosts.length === 1 && hosts[0]!.maxRunning === 4 && (hosts[0]!.instances?.parked ?? 0) >= 2;
    });
    const replaced = await restored();
    await delay(35_000);
    expect((await kinds('host.lost')).map(({ host }) => host)).toEqual(['b']);
    expect(await restored()).toBe(replaced);
    await running.progress();
    await heal();
    await untilConnected();
    await untilOnBoth(STATE.name);
    await running.progress();
    const { answered, failures } = await running.stop();
    expect(answered).toBeGreaterThan(100);
    // Only what was in flight on b at the moment of the cut: one request of each client at most.
    expect(failures.length).toBeLessThanOrEqual(6);
    const { hosts } = await serviceOf(STATE.name);
    const parked = hosts.reduce((sum, host) => sum + (host.instances?.parked ?? 0), 0);
    const ran = hosts.reduce((sum, host) => sum + (host.instances?.running ?? 0), 0);
    expect(parked).toBeLessThanOrEqual(2 + ran);
    expect(ran).toBeLessThanOrEqual(4);
  }, 240_000);

  it('a host is drained with an open WebSocket: nothing is cut, and the drain ends when the socket does', async () => {
    await untilOnBoth(STREAM.name);
    const socket = new WebSocket(`ws://${GATEWAYS[0]}:${STREAM.port}/ws`);
    await new Promise((resolve, reject) => socket.once('open', resolve).once('error', reject));
    const say = (text: string) =>
      new Promise<string>((resolve, reject) => {
        socket.once('message', (data) => resolve(String(data)));
        socket.once('close', () => reject(new Error('the socket was closed')));
        socket.send(text);
      });
    expect(await say('one')).toBe('one');
    const held = await until('the instance that has the socket', async () =>
      (await runningOf(STREAM.name)).find(({ leases }) => leases > 0),
    );
    const running = load();
    await running.progress();
    let ended = false;
    const drain = fleet('host', 'drain', held.host, '--deadline', '120').then((ran) => {
      ended = true;
      return ran;
    });
    await until('the other host to have all of the services', async () => {
      const all = await Promise.all([serviceOf(STATE.name), serviceOf(STREAM.name)]);
      return all.every(({ hosts }) => hosts.length === 1 && hosts[0]!.host !== held.host);
    });
    await running.progress();
    expect(await say('two')).toBe('two');
    expect(ended).toBe(false);
    socket.close();
    const { code, stdout } = await drain;
    expect(stdout).toContain(`${held.host} is empty`);
    expect(code).toBe(0);
    await running.progress();
    expect(await running.stop()).toMatchObject({ failures: [] });
    expect((await instancesOf()).filter(({ host }) => host === held.host)).toEqual([]);
    await mustFleet('host', 'uncordon', held.host);
    await untilOnBoth(STATE.name);
    expect(await echo(at(GATEWAYS[1], STATE.port), 'after')).toBeUndefined();
  }, 240_000);
});

describe('an earlier revision', () => {
  it('is served again by both hosts after a rollback, without a build', async () => {
    await untilOnBoth(STATE.name);
    const first = (await serviceOf(STATE.name)).current!.id;
    const pool = { pre_start_pool_size: 2, max_pool_size: 4, max_concurrency: 10 };
    const changes = { service_name: STATE.name, host_port: STATE.port, ...pool, env: { RELEASE: 'two' } };
    await deployOnBoth(await copyOf('state', changes), STATE.name);
    const release = async () => (await getJson<{ release?: string }>(`${at(GATEWAYS[0], STATE.port)}/`)).release;
    expect(await release()).toBe('two');
    const built = (await kinds('revision.building', STATE.name)).length;
    await mustFleet('service', 'rollback', STATE.name);
    await untilOnBoth(STATE.name);
    await until('the first revision to answer', async () => (await release()) === undefined);
    expect((await serviceOf(STATE.name)).current?.id).toBe(first);
    expect((await kinds('revision.building', STATE.name)).length).toBe(built);
  });
});
