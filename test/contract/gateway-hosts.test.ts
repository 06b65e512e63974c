import type http from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, expect, test } from 'vitest';
import type { RouteHost } from '../../proto/gen/initless/v1/routing.js';
import { FakeAgent, Line, type Script } from './fake-agent.js';
import { freePort } from './free-port.js';
import { eventually, GatewayHarness, routeHost } from './gateway-harness.js';

let harness: GatewayHarness;
const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  await harness?.stopGateway();
  // A line that hangs would keep the agent behind it from ending.
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
  await harness?.close();
});

const NEVER: Script = () => {};

async function host(script: Script): Promise<FakeAgent> {
  const agent = await FakeAgent.start(script);
  cleanups.push(() => agent.crash());
  return agent;
}

async function lineTo(address: string): Promise<Line> {
  const line = await Line.to(address);
  cleanups.push(() => line.close());
  return line;
}

/** Makes these the hosts of the route, and waits until all of them are reached. */
async function useHosts(...hosts: RouteHost[]): Promise<void> {
  harness.setRoutes([harness.route({ hosts })]);
  await eventually('all hosts', async () => {
    const metrics = await harness.metrics();
    return hosts.every(({ host }) => metrics.includes(`hosts_left_out{host="${host}"} 0`));
  });
}

const leftOut = (name: string) =>
  eventually(`${name} to be left out`, async () =>
    (await harness.metrics()).includes(`hosts_left_out{host="${name}"} 1`),
  );

/** Waits until the first host is reached, and nothing is held of the second any more: the next request is the first's. */
async function firstAgain(): Promise<void> {
  await eventually(
    'the first host back, and the second at rest',
    async () => {
      const metrics = await harness.metrics();
      return metrics.includes('hosts_left_out{host="one"} 0') && metrics.includes('slots{service="demo",host="two"} 0');
    },
    20_000,
  );
  expect((await harness.ask()).body).toBe('first');
}

const say =
  (text: string): http.RequestListener =>
  (_req, res) =>
    void res.end(text);

/** Two hosts: the first asks `script`, the second grants an instance that says "second". */
async function two(script: Script, first: Partial<RouteHost> = {}, second: Partial<RouteHost> = {}) {
  harness = await GatewayHarness.start(script, { queueTimeoutMs: 20_000 });
  const address = await harness.upstream(say('second'));
  const other = await host(({ grant }) => void grant('demo-2', address));
  const line = await lineTo(harness.agent.address);
  const hosts = [routeHost('one', line.address, first), routeHost('two', other.address, second)];
  await useHosts(...hosts);
  return { other, line, hosts };
}

test('a wake goes to the host that keeps instances parked, and to the others in the order of the route', async () => {
  const { other } = await two(NEVER, {}, { parked: 2 });
  expect((await harness.ask()).body).toBe('second');
  expect(harness.agent.acquires).toEqual([]);
  expect(other.acquires).toHaveLength(1);
});

test('a wake that each host sends elsewhere is asked of all that have a share, and again until one has a slot', async () => {
  harness = await GatewayHarness.start(({ deny }) => deny('ELSEWHERE', 'my share is busy', 50), {
    queueTimeoutMs: 20_000,
  });
  const address = await harness.upstream(say('third'));
  let count = 0;
  const second = await host(({ deny }) => deny('ELSEWHERE', 'my share is busy', 50));
  const third = await host(({ grant, deny }) => {
    count += 1;
    if (count < 4) deny('EXHAUSTED', 'all are busy', 50);
    else grant('demo-3', address);
  });
  const none = await host(NEVER);
  await useHosts(
    routeHost('none', none.address, { maxRunning: 0 }),
    routeHost('one', harness.agent.address),
    routeHost('two', second.address),
    routeHost('three', third.address),
  );
  expect((await harness.ask()).body).toBe('third');
  expect(none.acquires).toEqual([]);
  for (const agent of [harness.agent, second]) {
    expect(agent.acquires.length).toBeGreaterThanOrEqual(1);
    // Every 50 ms at most: three rounds, and not a loop.
    expect(agent.acquires.length).toBeLessThan(10);
  }
  expect(third.acquires).toHaveLength(4);
});

test('a host without a share is asked where no other has one', async () => {
  await two(NEVER, { maxRunning: 0 }, { maxRunning: 0, parked: 1 });
  expect((await harness.ask()).body).toBe('second');
});

test('a host that refuses connections is left out at once, and used again when it is back', async () => {
  let first = '';
  const { other } = await two(({ grant }) => void grant('demo-1', first, 1), { parked: 1 });
  first = await harness.upstream(say('first'));
  expect((await harness.ask()).body).toBe('first');
  await eventually('the release', () => harness.agent.released.length === 1);
  await harness.agent.crash();
  await leftOut('one');
  expect((await harness.ask()).body).toBe('second');
  await eventually('the release there', () => other.released.length === 1);
  await harness.agent.boot();
  await firstAgain();
});

test('what waits at a host that dies is asked of another one', async () => {
  const { other } = await two(NEVER, { parked: 1 });
  const answers = [harness.ask(), harness.ask({ method: 'POST', body: 'x' })];
  await eventually('the acquire', () => harness.agent.acquires.length === 1);
  expect(other.acquires).toEqual([]);
  await harness.agent.crash();
  expect((await Promise.all(answers)).map(({ body }) => body)).toEqual(['second', 'second']);
});

test('a host that hangs is left out after a moment, also for what waits there, and used again when it answers', async () => {
  let first = '';
  const { line } = await two(({ grant }) => void grant('demo-1', first), { parked: 1 });
  first = await harness.upstream(say('first'));
  line.hang(true);
  const since = performance.now();
  expect((await harness.ask({ method: 'POST', body: 'x' })).body).toBe('second');
  // Far less than the connection's own end would take.
  expect(performance.now() - since).toBeLessThan(5_000);
  await leftOut('one');
  line.hang(false);
  await firstAgain();
});

test('what a hanging host has reserved is not used, and a GET that was sent there before is served elsewhere', async () => {
  const { line } = await two(NEVER, { parked: 1 });
  let seen = 0;
  // Frozen: nobody has it thawed.
  const frozen = await harness.rawUpstream((socket) =>
    socket.on('data', () => {
      seen += 1;
    }),
  );
  harness.agent.reserve('demo', 'demo-1', frozen);
  harness.agent.reserve('demo', 'demo-3', frozen);
  await eventually('the reservations', () => harness.log.filter(({ msg }) => /reserved/.test(msg)).length === 2);
  line.hang(true);
  const before = harness.ask();
  await eventually('the request at the frozen instance', () => seen === 1);
  expect((await before).body).toBe('second');
  await leftOut('one');
  expect((await harness.ask({ method: 'POST', body: 'x' })).body).toBe('second');
  expect(seen).toBe(1);
});

test('an instance that serves goes on while its agent hangs', async () => {
  let first = '';
  let finish = () => {};
  const { line, other } = await two(({ grant }) => void grant('demo-1', first, 2), { parked: 1 });
  first = await harness.upstream((req, res) => {
    if (req.url !== '/slow') return void res.end('first');
    finish = () => res.end('slow');
  });
  expect((await harness.ask()).body).toBe('first');
  const slow = harness.ask({ path: '/slow' });
  await delay(100);
  line.hang(true);
  await leftOut('one');
  expect((await harness.ask()).body).toBe('first');
  finish();
  expect((await slow).body).toBe('slow');
  expect(other.acquires).toEqual([]);
});

test('a host that is cut off with its instances gets no requests: those not sent yet, and GETs, are served elsewhere', async () => {
  let first = '';
  const { line } = await two(({ grant }) => void grant('demo-1', first), { parked: 1 });
  const hanging: http.ServerResponse[] = [];
  const server = await new Promise<http.Server>((resolve) => {
    void harness
      .upstream(
        (req, res) => (req.url === '/quick' ? void res.end('first') : void hanging.push(res)),
        (made) => resolve(made),
      )
      .then((address) => {
        first = address;
      });
  });
  await eventually('the instance', () => first !== '');
  expect((await harness.ask({ path: '/quick' })).body).toBe('first');
  const get = harness.ask();
  await eventually('the GET there', () => hanging.length === 1);
  line.hang(true);
  server.close();
  expect((await get).body).toBe('second');
  expect((await harness.ask({ method: 'POST', path: '/quick', body: 'x' })).body).toBe('second');
});

test('requests that find the instances of a whole host dead cost no answer, though there are many', async () => {
  const dead = `127.0.0.1:${await freePort()}`;
  let count = 0;
  harness = await GatewayHarness.start(({ grant }) => void grant(`demo-1-${count++}`, first, 1), {
    maxConcurrency: 1,
    queueTimeoutMs: 20_000,
  });
  let first = '';
  const held: http.ServerResponse[] = [];
  let close = () => {};
  first = await harness.upstream(
    (_req, res) => void held.push(res),
    (server) => {
      close = () => {
        server.close();
        server.closeAllConnections();
      };
    },
  );
  const address = await harness.upstream(say('second'));
  let more = 0;
  const other = await host(({ grant }) => void grant(`demo-2-${more++}`, address, 1));
  await useHosts(routeHost('one', harness.agent.address, { parked: 1 }), routeHost('two', other.address));
  const warm = Array.from({ length: 8 }, () => harness.ask());
  await eventually('all at the first host', () => held.length === 8);
  for (const res of held) res.end('first');
  await Promise.all(warm);
  // The instances die with their host; its agent just before them.
  first = dead;
  await harness.agent.crash();
  close();
  const answers = await Promise.all(Array.from({ length: 8 }, () => harness.ask({ method: 'POST', body: 'x' })));
  expect(answers.map(({ body }) => body)).toEqual(Array(8).fill('second'));
});

test('a host that is drained gets no new requests, and what it has open goes on', async () => {
  let first = '';
  const { hosts } = await two(({ grant }) => void grant('demo-1', first), { parked: 1 });
  let finish = () => {};
  first = await harness.upstream((_req, res) => {
    res.write('begun ');
    finish = () => res.end('and ended');
  });
  const open = harness.ask();
  await eventually('the stream', async () =>
    (await harness.metrics()).includes('host_requests_in_flight{service="demo",host="one"} 1'),
  );
  const [one, other] = hosts as [RouteHost, RouteHost];
  harness.setRoutes([harness.route({ hosts: [{ ...one, draining: true }, other] })]);
  await eventually('an answer from the other', async () => (await harness.ask()).body === 'second');
  expect((await harness.ask()).body).toBe('second');
  finish();
  expect((await open).body).toBe('begun and ended');
});

test('the view over all hosts says what is in flight, allowed and free on each', async () => {
  let first = '';
  const { line } = await two(({ grant }) => void grant('demo-1', first, 3), { parked: 1 });
  let finish = () => {};
  first = await harness.upstream((_req, res) => {
    finish = () => res.end('x');
  });
  const open = harness.ask();
  await eventually('the request', async () => {
    const metrics = await harness.metrics();
    return [
      'host_requests_in_flight{service="demo",host="one"} 1',
      'host_slots{service="demo",host="one"} 3',
      'host_free_slots{service="demo",host="one"} 2',
      'host_slots{service="demo",host="two"} 0',
      'hosts_left_out{host="one"} 0',
    ].every((line) => metrics.includes(`initless_gateway_${line}\n`));
  });
  line.hang(true);
  await leftOut('one');
  finish();
  await open;
});
