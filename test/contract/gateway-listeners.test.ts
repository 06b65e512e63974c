import http from 'node:http';
import net from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, expect, test } from 'vitest';
import { freePort } from './free-port.js';
import { eventually, GatewayHarness } from './gateway-harness.js';

let harness: GatewayHarness;
const blockers: net.Server[] = [];
afterEach(async () => {
  await harness?.close();
  for (const blocker of blockers.splice(0)) blocker.close();
});

async function started(gateway: Parameters<typeof GatewayHarness.start>[2] = {}): Promise<GatewayHarness> {
  let address = '';
  harness = await GatewayHarness.start(({ grant }) => void grant('demo-1', address), {}, gateway);
  address = await harness.upstream((req, res) => {
    if (req.url !== '/slow') return void res.end('ok');
    res.write('begun ');
    setTimeout(() => res.end('ended'), 300);
  });
  return harness;
}

async function block(port: number): Promise<net.Server> {
  const blocker = net.createServer((socket) => socket.destroy());
  await new Promise<void>((resolve) => blocker.listen(port, '127.0.0.1', resolve));
  blockers.push(blocker);
  return blocker;
}

test('a service is listened for on IPv4 and IPv6 loopback, and the control plane is told', async () => {
  await started({ listen: ['127.0.0.1', '::1'] });
  expect(harness.hellos).toEqual(['gateway-test']);
  expect(harness.listeners).toMatchObject([{ gateway: 'gateway-test', service: 'demo', listening: true, error: '' }]);
  expect(harness.listeners[0]?.address).toContain(`127.0.0.1:${harness.port}`);
  expect((await harness.ask()).body).toBe('ok');
});

test('a service whose port is taken is reported with the port, tried again, and listened for once it is free', async () => {
  const port = await freePort();
  const blocker = await block(port);
  await started();
  harness.setRoutes([harness.route(), harness.route({ service: 'second', hostPort: port })]);
  await eventually('the report', () => harness.listeners.length === 2);
  expect(harness.listeners.find(({ service }) => service === 'second')).toMatchObject({
    listening: false,
    error: `port ${port} is taken by another program on 127.0.0.1`,
    address: `127.0.0.1:${port}`,
  });
  // It hurts nobody else.
  expect((await harness.ask()).body).toBe('ok');
  await new Promise((resolve) => blocker.close(resolve));
  await harness.listening('second');
  expect((await harness.ask({ port })).body).toBe('ok');
});

test('a service whose port changes moves', async () => {
  await started();
  const before = harness.port;
  harness.port = await freePort();
  harness.setRoutes([harness.route()]);
  await eventually('the new address', () => harness.listeners[0]?.address === `127.0.0.1:${harness.port}`);
  expect((await harness.ask()).body).toBe('ok');
  await expect(harness.ask({ port: before })).rejects.toMatchObject({ code: 'ECONNREFUSED' });
});

test('two services that exchange their ports are both served', async () => {
  await started();
  const [one, two] = [harness.port, await freePort()];
  const table = (first: number, second: number) => [
    harness.route({ hostPort: first }),
    harness.route({ service: 'second', hostPort: second }),
  ];
  harness.setRoutes(table(one, two));
  await harness.listening('second');
  harness.setRoutes(table(two, one));
  await eventually('the exchange', () =>
    harness.listeners.every(
      ({ service, address, listening }) => listening && address.endsWith(`:${service === 'demo' ? two : one}`),
    ),
  );
});

test('a service that is removed takes no more connections; what is in flight ends in order, then its lease', async () => {
  await started();
  const slow = harness.ask({ path: '/slow' });
  const idle = new http.Agent({ keepAlive: true });
  await harness.ask({ agent: idle });
  harness.setRoutes([]);
  await eventually('the report', () => harness.listeners.length === 0);
  await expect(harness.ask()).rejects.toMatchObject({ code: 'ECONNREFUSED' });
  expect((await slow).body).toBe('begun ended');
  await eventually('the lease given back', () => harness.agent.held.size === 0);
  await expect(harness.ask({ agent: idle })).rejects.toMatchObject({ code: /ECONNREFUSED|ECONNRESET/ });
  idle.destroy();
  harness.setRoutes([harness.route()]);
  await harness.listening('demo');
  expect((await harness.ask()).body).toBe('ok');
});

test('what is still in flight at the end of the drain time is cut', async () => {
  await started({ drainMs: 100 });
  await expect(
    Promise.all([harness.ask({ path: '/slow' }), delay(50).then(() => harness.stopGateway())]),
  ).rejects.toMatchObject({ code: 'ECONNRESET' });
});

test('health says that it lives, and that it is ready once it has routes', async () => {
  harness = await GatewayHarness.start(() => {});
  const get = async (path: string) => {
    const { status, body } = await harness.ask({ path, port: harness.httpPort });
    return [status, body];
  };
  expect(await get('/healthz')).toEqual([200, 'ok\n']);
  expect(await get('/readyz')).toEqual([200, 'ready\n']);
  expect((await get('/other'))[0]).toBe(404);
  await harness.stopGateway();
  await harness.crashControlPlane();
  await harness.bootGateway();
  const [status, why] = await get('/readyz');
  expect(status).toBe(503);
  expect(why).toContain('no route table yet');
});

test('a second gateway on the same health port fails and says what to do', async () => {
  await started();
  const { runGateway } = await import('../../gateway/gateway.js');
  const { pino } = await import('pino');
  const options = { controlPlane: '127.0.0.1:1', listen: [], id: 'x', drainMs: 0, log: pino({ level: 'silent' }) };
  await expect(
    runGateway({ ...options, http: { host: '127.0.0.1', port: harness.httpPort } }, new AbortController().signal),
  ).rejects.toMatchObject({ code: 'PORT_TAKEN', nextStep: expect.stringContaining('--http-listen') });
});
