import { afterEach, expect, test } from 'vitest';
import type { WatchRoutesResponse } from '../../proto/gen/initless/v1/routing.js';
import { freePort } from './free-port.js';
import { eventually, GatewayHarness } from './gateway-harness.js';

let harness: GatewayHarness;
afterEach(async () => {
  await harness?.close();
});

/** Starts a gateway whose first table is version 3 of the table "T", with the one route of the harness. */
async function startAtThree(): Promise<string> {
  harness = await GatewayHarness.start(({ grant }) => void grant('demo-1', address));
  const address = await harness.upstream((_req, res) => void res.end('demo'));
  harness.say(message({ version: 3, isChange: false, routes: harness.routes }));
  await eventually('version 3', () => harness.log.some(({ msg, version }) => msg === 'route table' && version === 3));
  return address;
}

function message(changes: Partial<WatchRoutesResponse>): WatchRoutesResponse {
  return { routes: [], table: 'T', version: 0, isChange: true, removed: [], ...changes };
}

test('a change of the table leaves every route in place that it does not name', async () => {
  await startAtThree();
  const port = await freePort();
  harness.say(message({ version: 4, routes: [harness.route({ service: 'other', hostPort: port })] }));
  await harness.listening('other');
  expect((await harness.ask()).body).toBe('demo');
  expect((await harness.ask({ port })).body).toBe('demo');
  harness.say(message({ version: 5, removed: ['other'] }));
  await eventually('the end of the other listener', () => harness.listeners.length === 1);
  expect((await harness.ask()).body).toBe('demo');
  expect(harness.hellos).toHaveLength(1);
});

test('a gateway that connects again names what it has, and a change of several versions at once goes onto it', async () => {
  await startAtThree();
  const port = await freePort();
  harness.firstResponse = () => message({ version: 9, routes: [harness.route({ service: 'other', hostPort: port })] });
  await harness.crashControlPlane();
  await harness.bootControlPlane();
  await harness.listening('other');
  expect(harness.tables).toEqual([' 0', 'T 3']);
  expect((await harness.ask()).body).toBe('demo');
});

test('a gateway that has the whole of it is sent nothing, reports its listeners and serves on', async () => {
  await startAtThree();
  harness.firstResponse = () => undefined;
  await harness.crashControlPlane();
  harness.listeners = [];
  await harness.bootControlPlane();
  await harness.listening('demo');
  expect((await harness.ask()).body).toBe('demo');
});

test.each([
  ['of another table', { table: 'U', version: 4 }],
  ['of a version that it already has', { version: 3 }],
])('a change %s ends the stream, the whole is asked for, and meanwhile the last one stands', async (_, changes) => {
  await startAtThree();
  harness.say(message({ ...changes, removed: ['demo'] }));
  await eventually('the next stream', () => harness.hellos.length === 2);
  expect(harness.tables).toEqual([' 0', ' 0']);
  expect((await harness.ask()).body).toBe('demo');
});
