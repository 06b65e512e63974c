import type http from 'node:http';
import type net from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, describe, expect, test } from 'vitest';
import { LINGER_MS } from '../../gateway/admission.js';
import type { AskedLease } from './fake-agent.js';
import { FakeAgent } from './fake-agent.js';
import { freePort } from './free-port.js';
import { eventually, GatewayHarness, type Got, routeHost } from './gateway-harness.js';

let harness: GatewayHarness;
const others: FakeAgent[] = [];
afterEach(async () => {
  await harness?.close();
  for (const agent of others.splice(0)) await agent.crash();
});

/** An instance that says its name. */
function sayName(name: string): http.RequestListener {
  return (_req, res) => void res.end(name);
}

/** An instance that answers when it is told to. */
function onCommand(): { handler: http.RequestListener; seen: () => number; release: () => void } {
  const waiting: http.ServerResponse[] = [];
  let seen = 0;
  let open = false;
  return {
    handler: (_req, res) => {
      seen += 1;
      if (open) res.end('done');
      else waiting.push(res);
    },
    seen: () => seen,
    release: () => {
      open = true;
      for (const res of waiting.splice(0)) res.end('done');
    },
  };
}

function errorOf(got: Got): { code: string; message: string; next_step: string } {
  return JSON.parse(got.body).error;
}

describe('a sleeping service', () => {
  test('is woken by one acquire, and its lease is given back a second after the last request', async () => {
    let address = '';
    harness = await GatewayHarness.start(async ({ grant }) => {
      await delay(100);
      grant('demo-1', address);
    });
    address = await harness.upstream(sayName('one'));
    const answers = await Promise.all(Array.from({ length: 20 }, () => harness.ask()));
    const answeredAt = performance.now();
    expect(answers.map(({ body }) => body)).toEqual(Array(20).fill('one'));
    expect(harness.agent.acquires).toHaveLength(1);
    expect(harness.agent.acquires[0]).toMatchObject({ service: 'demo', suspects: [] });
    expect(harness.agent.acquires[0]?.timeoutMs).toBeGreaterThan(4_000);
    expect(harness.agent.acquires[0]?.timeoutMs).toBeLessThanOrEqual(5_000);
    await eventually('the release', () => harness.agent.released.length === 1);
    expect(performance.now() - answeredAt).toBeGreaterThan(900);
    expect(harness.agent.held.size).toBe(0);
    expect(harness.log.find(({ msg }) => msg === 'lease granted')).toMatchObject({
      service: 'demo',
      instance: 'demo-1',
      origin: 'restored',
      found: 'parked',
      ms: expect.any(Number),
    });
    const metrics = await harness.metrics();
    expect(metrics).toContain('initless_gateway_requests_total{service="demo",status="200"} 20\n');
    expect(metrics).toContain('initless_gateway_wakes_total{service="demo",origin="restored",found="parked"} 1\n');
    expect(metrics).toContain('initless_gateway_requests_in_flight{service="demo"} 0\n');
    expect(metrics).toContain('initless_gateway_requests_waiting{service="demo"} 0\n');
  });

  test('has its idle connections closed before its lease is given back', async () => {
    let address = '';
    let open = 0;
    let openAtRelease = -1;
    harness = await GatewayHarness.start(({ grant }) => void grant('demo-1', address));
    address = await harness.upstream(sayName('x'), (server) =>
      server.on('connection', (socket) => {
        open += 1;
        socket.on('close', () => (open -= 1));
      }),
    );
    await harness.ask();
    expect(open).toBe(1);
    await eventually('the release', () => {
      if (harness.agent.released.length === 1 && openAtRelease === -1) openAtRelease = open;
      return openAtRelease !== -1;
    });
    expect(openAtRelease).toBe(0);
  });

  test('is woken by a burst as often as its concurrency needs, and not more', async () => {
    const command = onCommand();
    let address = '';
    let count = 0;
    harness = await GatewayHarness.start(
      async ({ grant }) => {
        await delay(50);
        count += 1;
        grant(`demo-${count}`, address, 10);
      },
      { maxConcurrency: 10 },
    );
    address = await harness.upstream(command.handler);
    const answers = Array.from({ length: 35 }, () => harness.ask());
    await eventually('all requests at instances', () => command.seen() === 35);
    expect(harness.agent.acquires).toHaveLength(4);
    command.release();
    expect((await Promise.all(answers)).every(({ status }) => status === 200)).toBe(true);
    await eventually('all releases', () => harness.agent.released.length === 4);
  });

  test('that 1,000 requests at once reach answers each of them', async () => {
    let address = '';
    let count = 0;
    harness = await GatewayHarness.start(({ grant, deny }) => {
      if (count === 3) return deny('EXHAUSTED', 'all 3 instances are busy', 20);
      count += 1;
      grant(`demo-${count}`, address, 100);
    });
    address = await harness.upstream(async (req, res) => {
      await delay(20);
      res.end(req.url);
    });
    const answers = await Promise.all(Array.from({ length: 1_000 }, (_, index) => harness.ask({ path: `/${index}` })));
    expect(answers.every(({ status, body }, index) => status === 200 && body === `/${index}`)).toBe(true);
    // Ten at first; after the first refusal one at a time.
    expect(harness.agent.acquires.length).toBeLessThan(100);
  });
});

describe('a request that cannot be served at once', () => {
  test('beyond the queue limit gets 503 with Retry-After at once, and one line of JSON', async () => {
    harness = await GatewayHarness.start(() => {}, { queueLimit: 2 }, { drainMs: 50 });
    const waiting = [harness.ask().catch(() => {}), harness.ask().catch(() => {})];
    await eventually('two that wait', async () => (await harness.metrics()).includes('waiting{service="demo"} 2'));
    const got = await harness.ask({ headers: { 'X-Request-Id': 'mine' } });
    expect(got.status).toBe(503);
    expect(got.headers).toMatchObject({
      'retry-after': '1',
      'content-type': 'application/json',
      'x-request-id': 'mine',
      'content-length': String(got.body.length),
    });
    expect(got.body).toMatch(/^\{.*\}\n$/);
    expect(JSON.parse(got.body)).toEqual({
      error: { code: 'QUEUE_FULL', message: expect.stringContaining('2 requests'), next_step: expect.any(String) },
      request_id: 'mine',
    });
    expect(harness.log.filter(({ msg }) => msg === 'request failed')).toMatchObject([
      { level: 40, service: 'demo', requestId: 'mine', status: 503, code: 'QUEUE_FULL' },
    ]);
    await harness.stopGateway();
    await Promise.all(waiting);
  });

  test('waits for queue_timeout while every instance is busy, then gets 503 with Retry-After', async () => {
    const command = onCommand();
    let address = '';
    let count = 0;
    harness = await GatewayHarness.start(
      ({ grant, deny }) => {
        count += 1;
        if (count === 1) grant('demo-1', address, 1);
        else deny('EXHAUSTED', 'all instances of demo are busy', 50);
      },
      { maxConcurrency: 1, queueTimeoutMs: 400 },
    );
    address = await harness.upstream(command.handler);
    const first = harness.ask();
    await eventually('the first at its instance', () => command.seen() === 1);
    const since = performance.now();
    const second = await harness.ask();
    expect(performance.now() - since).toBeGreaterThan(380);
    expect(second.status).toBe(503);
    expect(second.headers['retry-after']).toBe('1');
    expect(errorOf(second)).toMatchObject({
      code: 'QUEUE_TIMEOUT',
      message: expect.stringMatching(/400 ms; pending was: a free slot of its instance/),
    });
    expect(harness.agent.acquires.length).toBeGreaterThan(3);
    command.release();
    expect((await first).status).toBe(200);
  });

  test('is served first come first served by the slot that becomes free', async () => {
    const order: string[] = [];
    let address = '';
    let count = 0;
    harness = await GatewayHarness.start(
      ({ grant, deny }) => (count++ === 0 ? void grant('demo-1', address, 1) : deny('EXHAUSTED', 'busy', 1_000)),
      { maxConcurrency: 1 },
    );
    address = await harness.upstream(async (req, res) => {
      order.push(req.url ?? '');
      await delay(20);
      res.end();
    });
    const answers: Promise<Got>[] = [];
    for (let index = 0; index < 6; index += 1) {
      answers.push(harness.ask({ path: `/${index}` }));
      await delay(15);
    }
    await Promise.all(answers);
    expect(order).toEqual(['/0', '/1', '/2', '/3', '/4', '/5']);
  });

  test('for which no instance is ready in time gets 503, which says what was pending, and the acquire is cancelled', async () => {
    harness = await GatewayHarness.start(() => {}, { queueTimeoutMs: 300 });
    const got = await harness.ask();
    expect(got.status).toBe(503);
    expect(Number(got.headers['retry-after'])).toBeGreaterThanOrEqual(1);
    expect(errorOf(got).code).toBe('QUEUE_TIMEOUT');
    expect(errorOf(got).message).toMatch(/300 ms; pending was: a lease from host host1/);
    await eventually('the cancel', () => harness.agent.cancelled.length === 1);
  });

  test('gets what the agent says when it has none, with a status of a gateway', async () => {
    harness = await GatewayHarness.start(({ deny }) => deny('HEALTH_TIMEOUT', 'demo did not become healthy'));
    const got = await harness.ask();
    expect(got.status).toBe(504);
    expect(errorOf(got)).toEqual({
      code: 'HEALTH_TIMEOUT',
      message: 'demo did not become healthy',
      next_step: 'do what the test says',
    });
    harness.agent.script = ({ deny }) => deny('NOT_FOUND', 'no such service here');
    const next = await harness.ask({ method: 'HEAD' });
    expect(next).toMatchObject({ status: 503, body: '' });
    expect(next.headers['retry-after']).toBe('5');
  });

  test('gets the reason that the route names when no host serves it', async () => {
    harness = await GatewayHarness.start(() => {}, {
      hosts: [],
      problem: { code: 'BUILD_FAILED', message: 'pip said no', nextStep: 'fix it', outputTail: [] },
    });
    const got = await harness.ask();
    expect(got.status).toBe(503);
    expect(errorOf(got)).toEqual({ code: 'BUILD_FAILED', message: 'pip said no', next_step: 'fix it' });
    harness.setRoutes([harness.route({ hosts: [] })]);
    await eventually('the other reason', async () => errorOf(await harness.ask()).code === 'NO_HOST');
  });

  test('leaves the queue when its client goes, and the acquire is cancelled when nobody else waits', async () => {
    harness = await GatewayHarness.start(() => {}, { queueLimit: 2 });
    const one = await harness.dial();
    const two = await harness.dial();
    for (const { socket } of [one, two]) socket.write('GET / HTTP/1.1\r\nHost: a\r\n\r\n');
    const waiting = (count: number) => async () =>
      (await harness.metrics()).includes(`waiting{service="demo"} ${count}`);
    await eventually('two that wait', waiting(2));
    one.socket.destroy();
    await eventually('one that waits', waiting(1));
    expect(harness.agent.cancelled).toEqual([]);
    two.socket.end();
    await eventually('none that waits', waiting(0));
    await eventually('the cancel', () => harness.agent.cancelled.length === 1);
  });

  test('and is cancelled leaves nothing behind, thousands of times', async () => {
    harness = await GatewayHarness.start(() => {}, { queueLimit: 50 });
    for (let round = 0; round < 40; round += 1) {
      const clients = await Promise.all(Array.from({ length: 50 }, () => harness.dial()));
      for (const { socket } of clients) socket.write('GET / HTTP/1.1\r\nHost: a\r\n\r\n');
      for (const { socket } of clients) socket.destroy();
    }
    await eventually('an empty queue', async () => (await harness.metrics()).includes('waiting{service="demo"} 0'));
    expect(await harness.metrics()).not.toContain('status="503"');
    harness.agent.script = ({ grant }) => void grant('demo-1', address);
    const address = await harness.upstream(sayName('still here'));
    expect((await harness.ask()).body).toBe('still here');
  });

  test('is given the lease that comes too late for another, else it is given back', async () => {
    let asked: AskedLease | undefined;
    harness = await GatewayHarness.start((one) => {
      asked = one;
    });
    const { socket } = await harness.dial();
    socket.write('GET / HTTP/1.1\r\nHost: a\r\n\r\n');
    await eventually('the acquire', () => asked !== undefined);
    socket.destroy();
    await eventually('the cancel', () => harness.agent.cancelled.length === 1);
    const lease = asked?.grant('demo-1', '127.0.0.1:1');
    await eventually('the release', () => harness.agent.released.includes(lease ?? ''), 900);
  });
});

describe('an instance that cannot be reached', () => {
  test('is named as a suspect, and the request is sent to another, whatever its method', async () => {
    let address = '';
    const dead = `127.0.0.1:${await freePort()}`;
    harness = await GatewayHarness.start(({ acquire, grant }) => {
      if (acquire.suspects.length === 0) grant('demo-dead', dead);
      else grant('demo-alive', address);
    });
    let body = '';
    address = await harness.upstream(async (req, res) => {
      for await (const chunk of req) body += chunk;
      res.end('alive');
    });
    const got = await harness.ask({ method: 'POST', body: 'precious' });
    expect(got).toMatchObject({ status: 200, body: 'alive' });
    expect(body).toBe('precious');
    expect(harness.agent.acquires.map(({ suspects }) => suspects)).toEqual([[], ['demo-dead']]);
    expect(harness.agent.released).toHaveLength(1);
    expect(await harness.metrics()).toContain('retries_total{service="demo"} 1');
  });

  test('is tried three times at most', async () => {
    const dead = `127.0.0.1:${await freePort()}`;
    let count = 0;
    harness = await GatewayHarness.start(({ grant }) => void grant(`demo-${++count}`, dead));
    const got = await harness.ask();
    expect(got.status).toBe(502);
    expect(errorOf(got)).toMatchObject({ code: 'UPSTREAM_FAILED', message: expect.stringContaining('demo-3') });
    expect(harness.agent.acquires.map(({ suspects }) => suspects)).toEqual([[], ['demo-1'], ['demo-2']]);
  });

  /** An instance that reads a request and then closes, some times, before it answers. */
  function breaking(times: number): { onConnection: (socket: net.Socket) => void; requests: string[] } {
    const requests: string[] = [];
    const onConnection = (socket: net.Socket) =>
      socket.on('data', (chunk) => {
        requests.push(chunk.toString());
        if (requests.length <= times) socket.destroy();
        else socket.end('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok');
      });
    return { onConnection, requests };
  }

  test('after it was sent a GET is no reason not to send it again', async () => {
    const { onConnection, requests } = breaking(2);
    let address = '';
    harness = await GatewayHarness.start(({ grant }) => void grant('demo-1', address));
    address = await harness.rawUpstream(onConnection);
    expect(await harness.ask()).toMatchObject({ status: 200, body: 'ok' });
    expect(requests).toHaveLength(3);
    expect(harness.agent.acquires.at(-1)?.suspects).toEqual(['demo-1']);
  });

  test.each([
    ['POST', 'abc'],
    ['PUT', 'abc'],
    ['PATCH', undefined],
  ])('after it was sent a %s with body %s is a 502, and it is not sent again', async (method, body) => {
    const { onConnection, requests } = breaking(1);
    let address = '';
    harness = await GatewayHarness.start(({ grant }) => void grant('demo-1', address));
    address = await harness.rawUpstream(onConnection);
    expect((await harness.ask({ method, body })).status).toBe(502);
    expect(requests).toHaveLength(1);
  });

  test('after a part of its answer came is a 502 also for a GET', async () => {
    let count = 0;
    let address = '';
    harness = await GatewayHarness.start(({ grant }) => void grant('demo-1', address));
    address = await harness.rawUpstream((socket) =>
      socket.on('data', () => {
        count += 1;
        socket.end('HTTP/1.1 200 O');
      }),
    );
    expect((await harness.ask()).status).toBe(502);
    expect(count).toBe(1);
  });

  test('over an old connection that it has just closed is reached over a new one, and not suspected', async () => {
    let connections = 0;
    let address = '';
    harness = await GatewayHarness.start(({ grant }) => void grant('demo-1', address));
    address = await harness.rawUpstream((socket) => {
      connections += 1;
      let requests = 0;
      socket.on('data', () => {
        requests += 1;
        // A server whose idle time ends in the very moment of the next request.
        if (requests > 1) socket.destroy();
        else socket.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok');
      });
    });
    expect((await harness.ask()).status).toBe(200);
    expect((await harness.ask()).status).toBe(200);
    expect(connections).toBe(2);
    expect(harness.agent.acquires).toHaveLength(1);
  });
});

describe('a lease', () => {
  test('that is revoked serves no new request; the one in flight goes on, and then it is given back', async () => {
    const command = onCommand();
    const addresses: string[] = [];
    let count = 0;
    harness = await GatewayHarness.start(({ grant }) => void grant(`demo-${count + 1}`, addresses[count++] ?? ''));
    addresses.push(await harness.upstream(command.handler), await harness.upstream(sayName('two')));
    const first = harness.ask();
    await eventually('the first at its instance', () => command.seen() === 1);
    harness.agent.revoke('lease-1');
    await eventually('an answer from the second', async () => (await harness.ask()).body === 'two', 1_000);
    expect(command.seen()).toBe(1);
    expect(harness.agent.released).toEqual([]);
    command.release();
    expect((await first).body).toBe('done');
    await eventually('the release', () => harness.agent.released.includes('lease-1'), 500);
  });

  test('outlives its stream: warm requests notice nothing of an agent that is restarted', async () => {
    const command = onCommand();
    let address = '';
    harness = await GatewayHarness.start(({ grant }) => void grant('demo-1', address, 3));
    address = await harness.upstream((req, res) => (req.url === '/slow' ? command.handler(req, res) : res.end('warm')));
    const slow = harness.ask({ path: '/slow' });
    await eventually('the slow one at its instance', () => command.seen() === 1);
    await harness.agent.crash();
    await eventually('the loss', () => harness.log.some(({ msg }) => /lease stream|cannot be reached/.test(msg)));
    for (let index = 0; index < 5; index += 1) expect((await harness.ask()).body).toBe('warm');
    await harness.agent.boot();
    await eventually('the gateway back', () => harness.agent.hellos.length === 2);
    expect(harness.agent.hellos).toEqual(['gateway-test', 'gateway-test']);
    expect(harness.agent.named).toEqual([[], [{ leaseId: 'lease-1', instance: 'demo-1', slots: 3, asleep: false }]]);
    expect((await harness.ask()).body).toBe('warm');
    expect(harness.agent.acquires).toHaveLength(1);
    expect(harness.agent.released).toEqual([]);
    command.release();
    expect((await slow).body).toBe('done');
    await eventually('the release', () => harness.agent.released.length === 1);
    expect(harness.agent.released).toEqual(['lease-1']);
    expect(await harness.metrics()).not.toMatch(/requests_total\{service="demo",status="5/);
  });

  test('that the agent does not confirm takes no more requests, those in flight go on, and it is not given back', async () => {
    const command = onCommand();
    const addresses: string[] = [];
    let count = 0;
    harness = await GatewayHarness.start(({ grant }) => void grant(`demo-${count + 1}`, addresses[count++] ?? ''));
    addresses.push(await harness.upstream(command.handler), await harness.upstream(sayName('two')));
    const first = harness.ask();
    await eventually('the first at its instance', () => command.seen() === 1);
    await harness.agent.crash();
    harness.agent.held.clear();
    await harness.agent.boot();
    await eventually('its answer', () => harness.log.some(({ msg, lost }) => msg === 'leases resumed' && lost === 1));
    expect((await harness.ask()).body).toBe('two');
    command.release();
    expect((await first).body).toBe('done');
    await eventually('the release of the other', () => harness.agent.released.length === 1);
    expect(harness.agent.released).toEqual(['lease-2']);
  });

  test('that is done with while the agent is away is not named when it is back, and its connections are closed', async () => {
    let address = '';
    let open = 0;
    harness = await GatewayHarness.start(({ grant }) => void grant('demo-1', address));
    address = await harness.upstream(sayName('one'), (server) =>
      server.on('connection', (socket) => {
        open += 1;
        socket.on('close', () => (open -= 1));
      }),
    );
    expect((await harness.ask()).body).toBe('one');
    await harness.agent.crash();
    // While the agent is away its instances are looked at, which takes a connection for a moment.
    await eventually('no connection but the one that is kept', () => open === 1);
    await eventually('the connection to be closed with the lease', () => open === 0);
    await harness.agent.boot();
    await eventually('the gateway back', () => harness.agent.hellos.length === 2);
    expect(harness.agent.named[1]).toEqual([]);
    expect(harness.agent.released).toEqual([]);
  });

  test('that was resumed has its idle connections closed before it is given back', async () => {
    let address = '';
    let open = 0;
    let openAtRelease = -1;
    harness = await GatewayHarness.start(({ grant }) => void grant('demo-1', address));
    address = await harness.upstream(sayName('x'), (server) =>
      server.on('connection', (socket) => {
        open += 1;
        socket.on('close', () => (open -= 1));
      }),
    );
    await harness.ask();
    await harness.agent.crash();
    await harness.agent.boot();
    await eventually('the lease resumed', () => harness.log.some(({ msg }) => msg === 'leases resumed'));
    await harness.ask();
    await eventually('the release', () => {
      if (harness.agent.released.length === 1 && openAtRelease === -1) openAtRelease = open;
      return openAtRelease !== -1;
    });
    expect(openAtRelease).toBe(0);
    expect(harness.agent.acquires).toHaveLength(1);
  });

  test('that was asked for when the stream broke is asked for again, first come first served', async () => {
    const order: string[] = [];
    let address = '';
    harness = await GatewayHarness.start(() => {}, { maxConcurrency: 1 });
    address = await harness.upstream(async (req, res) => {
      order.push(req.url ?? '');
      await delay(20);
      res.end();
    });
    const answers: Promise<Got>[] = [];
    for (let index = 0; index < 3; index += 1) {
      answers.push(harness.ask({ path: `/${index}` }));
      await eventually('its acquire', () => harness.agent.acquires.length === index + 1);
    }
    await harness.agent.crash();
    let granted = 0;
    harness.agent.script = ({ grant, deny }) =>
      granted++ === 0 ? void grant('demo-1', address, 1) : deny('EXHAUSTED', 'busy', 5_000);
    await harness.agent.boot();
    expect((await Promise.all(answers)).map(({ status }) => status)).toEqual([200, 200, 200]);
    expect(order).toEqual(['/0', '/1', '/2']);
    const again = harness.agent.acquires.slice(3);
    expect(again.every(({ timeoutMs }) => timeoutMs < 5_000 && timeoutMs > 3_000)).toBe(true);
  });

  test('gives idle slots back that others need, and serves on with the rest', async () => {
    const command = onCommand();
    let address = '';
    harness = await GatewayHarness.start(({ grant }) => void grant('demo-1', address, 10));
    address = await harness.upstream((req, res) =>
      req.url === '/slow' ? command.handler(req, res) : res.end('quick'),
    );
    const slow = [harness.ask({ path: '/slow' }), harness.ask({ path: '/slow' })];
    await eventually('both at the instance', () => command.seen() === 2);
    harness.agent.recall('lease-1');
    await eventually('the slots', () => harness.agent.shrunk.length === 1);
    expect(harness.agent.shrunk).toEqual(['lease-1 2']);
    command.release();
    await Promise.all(slow);
    harness.agent.recall('lease-1');
    await eventually('the release', () => harness.agent.released.length === 1, 900);
    expect(harness.agent.idleMs[0]).toBeLessThan(900);
  });

  test('costs no round trip while it is held: ten requests in a row are one acquire', async () => {
    let address = '';
    harness = await GatewayHarness.start(({ grant }) => void grant('demo-1', address));
    address = await harness.upstream(sayName('warm'));
    for (let index = 0; index < 10; index += 1) {
      expect((await harness.ask()).body).toBe('warm');
      await delay(50);
    }
    expect(harness.agent.acquires).toHaveLength(1);
    await eventually('the release', () => harness.agent.released.length === 1);
    expect(harness.agent.idleMs[0]).toBeGreaterThanOrEqual(LINGER_MS);
  });

  test('serves on while the control plane is away, and a new one is had too', async () => {
    let address = '';
    harness = await GatewayHarness.start(({ grant }) => void grant('demo-1', address));
    address = await harness.upstream(sayName('warm'));
    await harness.crashControlPlane();
    expect((await harness.ask()).body).toBe('warm');
    await eventually('the release', () => harness.agent.released.length === 1);
    expect((await harness.ask()).body).toBe('warm');
    expect(harness.agent.acquires).toHaveLength(2);
    await harness.bootControlPlane();
    await eventually('the gateway back', () => harness.hellos.length === 2);
    await eventually('its report', () => harness.listeners.length === 1);
  });

  test('is given back when the gateway stops, after the requests in flight', async () => {
    const command = onCommand();
    let address = '';
    harness = await GatewayHarness.start(({ grant }) => void grant('demo-1', address));
    address = await harness.upstream(command.handler);
    const first = harness.ask();
    await eventually('the first at its instance', () => command.seen() === 1);
    const stopped = harness.stopGateway();
    await delay(100);
    await expect(harness.ask()).rejects.toMatchObject({ code: 'ECONNREFUSED' });
    command.release();
    expect((await first).body).toBe('done');
    await stopped;
    expect(harness.agent.released).toEqual(['lease-1']);
    expect(harness.agent.held.size).toBe(0);
  });
});

describe('a reserved lease', () => {
  /** An instance that is frozen: it accepts connections, takes what comes, and answers nothing. */
  async function frozen(): Promise<{ address: string; text: () => string }> {
    let text = '';
    const address = await harness.rawUpstream((socket) =>
      socket.on('data', (chunk) => {
        text += chunk.toString('latin1');
      }),
    );
    return { address, text: () => text };
  }

  /** Reserves an instance for the gateway, once that is connected. */
  const reserve = async (...given: Parameters<typeof harness.agent.reserve>) => {
    await eventually('the gateway', () => harness.agent.hellos.length > 0);
    return harness.agent.reserve(...given);
  };

  const reservedIs = (instance: string) =>
    eventually('the reservation', () =>
      harness.log.some((line) => line.msg === 'parked instance reserved' && line.instance === instance),
    );

  test('serves without an acquire: the agent is told, and the bytes go out without a word from it', async () => {
    harness = await GatewayHarness.start(() => {});
    const leaseId = await reserve('demo', 'demo-1', await harness.upstream(sayName('one')));
    await reservedIs('demo-1');
    const metrics = await harness.metrics();
    expect(metrics).not.toContain('wakes_total{');
    const answers = await Promise.all(Array.from({ length: 20 }, () => harness.ask()));
    expect(answers.map(({ body }) => body)).toEqual(Array(20).fill('one'));
    await eventually('the message', () => harness.agent.activated.length > 0);
    expect(harness.agent.activated).toEqual([leaseId]);
    expect(harness.agent.acquires).toEqual([]);
    expect(await harness.metrics()).toContain(
      'initless_gateway_wakes_total{service="demo",origin="restored",found="parked"} 1\n',
    );
    expect(harness.log.filter(({ msg }) => msg === 'lease granted')).toMatchObject([
      { service: 'demo', instance: 'demo-1', found: 'parked', origin: 'restored' },
    ]);
    await eventually('the release', () => harness.agent.released.includes(leaseId));
  });

  test('of a service that no route leads to yet is kept until one does', async () => {
    harness = await GatewayHarness.start(() => {});
    const address = await harness.upstream(sayName('late'));
    const leaseId = await reserve('late', 'late-1', address);
    await reservedIs('late-1');
    const hostPort = await freePort();
    harness.setRoutes([harness.route(), harness.route({ service: 'late', hostPort })]);
    await harness.listening('late');
    expect((await harness.ask({ port: hostPort })).body).toBe('late');
    expect(harness.agent.activated).toEqual([leaseId]);
    expect(harness.agent.acquires).toEqual([]);
  });

  test('is given back when its service is withdrawn', async () => {
    harness = await GatewayHarness.start(() => {});
    const leaseId = await reserve('demo', 'demo-1', '127.0.0.1:1');
    await reservedIs('demo-1');
    harness.setRoutes([]);
    await eventually('the release', () => !harness.agent.held.has(leaseId));
  });

  test.each([
    ['with a short body', 'abc', 200],
    ['with more of a body than is kept', 'x'.repeat(100_000), 502],
  ])(
    'whose instance never ran costs no answer: a POST %s is sent to another instance as it was',
    async (_, body, status) => {
      let address = '';
      harness = await GatewayHarness.start(({ grant }) => void grant('demo-2', address));
      address = await harness.upstream((req, res) => void req.pipe(res));
      const first = await frozen();
      const leaseId = await reserve('demo', 'demo-1', first.address);
      await reservedIs('demo-1');
      const answer = harness.ask({ method: 'POST', body });
      await eventually('the request at the frozen instance', () => first.text().endsWith(body));
      expect(harness.agent.acquires).toEqual([]);
      harness.agent.revoke(leaseId, true);
      const got = await answer;
      expect(got.status).toBe(status);
      if (status === 200) expect(got.body).toBe(body);
      expect(harness.agent.acquires).toHaveLength(status === 200 ? 1 : 0);
    },
  );

  test('whose instance never ran costs no answer while the body is still on its way', async () => {
    let address = '';
    harness = await GatewayHarness.start(({ grant }) => void grant('demo-2', address));
    address = await harness.upstream((req, res) => void req.pipe(res));
    const first = await frozen();
    const leaseId = await reserve('demo', 'demo-1', first.address);
    await reservedIs('demo-1');
    const client = await harness.dial();
    client.socket.write('POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 6\r\n\r\nabc');
    await eventually('the beginning at the frozen instance', () => first.text().endsWith('abc'));
    harness.agent.revoke(leaseId, true);
    await eventually('another instance', () => harness.agent.acquires.length === 1);
    client.socket.write('def');
    await client.ended;
    expect(client.text()).toMatch(/^HTTP\/1\.1 200 .*\r\n(3\r\nabc\r\n3\r\ndef|6\r\nabcdef)\r\n0\r\n/s);
  });

  test('that ends otherwise is a 502 for a POST whose bytes were sent, once its connection breaks', async () => {
    harness = await GatewayHarness.start(() => {});
    const connections: net.Socket[] = [];
    const address = await harness.rawUpstream((socket) => {
      connections.push(socket);
      socket.resume();
    });
    const leaseId = await reserve('demo', 'demo-1', address);
    await reservedIs('demo-1');
    const answer = harness.ask({ method: 'POST', body: 'abc' });
    await eventually('the message', () => harness.agent.activated.length === 1 && connections.length === 1);
    harness.agent.revoke(leaseId);
    for (const socket of connections) socket.destroy();
    expect((await answer).status).toBe(502);
    expect(harness.agent.acquires).toEqual([]);
  });

  test('outlives a restart of the agent: it is named as asleep, and used afterwards', async () => {
    harness = await GatewayHarness.start(() => {});
    const address = await harness.upstream(sayName('one'));
    const leaseId = await reserve('demo', 'demo-1', address, 3);
    await reservedIs('demo-1');
    await harness.agent.crash();
    await eventually('the loss', () => harness.log.some(({ msg }) => /lease stream|cannot be reached/.test(msg)));
    const answer = harness.ask();
    await harness.agent.boot();
    expect((await answer).body).toBe('one');
    expect(harness.agent.named).toEqual([[], [{ leaseId, instance: 'demo-1', slots: 3, asleep: true }]]);
    expect(harness.agent.activated).toEqual([leaseId]);
    expect(harness.agent.acquires).toEqual([]);
  });

  test('that the agent no longer knows after its restart is not used', async () => {
    let address = '';
    harness = await GatewayHarness.start(({ grant }) => void grant('demo-2', address));
    address = await harness.upstream(sayName('two'));
    await reserve('demo', 'demo-1', '127.0.0.1:1');
    await reservedIs('demo-1');
    await harness.agent.crash();
    harness.agent.held.clear();
    await harness.agent.boot();
    expect((await harness.ask()).body).toBe('two');
    expect(harness.agent.activated).toEqual([]);
  });
});

describe('several hosts', () => {
  test('are tried in order; a refusal by one leads to the next', async () => {
    const second = await FakeAgent.start(({ grant }) => void grant('demo-2', address));
    others.push(second);
    harness = await GatewayHarness.start(({ deny }) => deny('RESTORE_FAILED', 'not here'));
    const address = await harness.upstream(sayName('from the second'));
    const hosts = [routeHost('host1', harness.agent.address), routeHost('host2', second.address)];
    harness.setRoutes([harness.route({ hosts })]);
    await eventually('both agents', () => second.hellos.length === 1);
    expect((await harness.ask()).body).toBe('from the second');
    expect(harness.agent.acquires).toHaveLength(1);
    expect((await harness.ask()).body).toBe('from the second');
    expect(second.acquires).toHaveLength(1);
  });
});
