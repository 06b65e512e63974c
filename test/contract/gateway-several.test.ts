import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, expect, test } from 'vitest';
import { eventually, GatewayHarness } from './gateway-harness.js';

/** Where the second gateway listens. */
const SECOND = '127.0.0.2';

let harness: GatewayHarness;
afterEach(async () => {
  await harness?.close();
});

/** Two gateways over one agent that has one instance with so many slots, and asks for what others do not use. */
async function twoGateways(slots: number): Promise<{ most: () => number }> {
  let address = '';
  harness = await GatewayHarness.start(
    ({ grant, deny }) => {
      const { agent } = harness;
      if (agent.held.size === 0) return void grant('demo-1', address, slots);
      deny('EXHAUSTED', 'all instances are busy', 50);
      for (const lease of agent.held.keys()) agent.recall(lease);
    },
    { maxConcurrency: slots, queueTimeoutMs: 20_000 },
  );
  let now = 0;
  let most = 0;
  address = await harness.upstream(async (_req, res) => {
    now += 1;
    most = Math.max(most, now);
    await delay(5);
    now -= 1;
    res.end('demo');
  });
  await harness.bootGateway({ listen: [SECOND], id: 'gateway-second' });
  await eventually('both gateways at the agent', () => harness.agent.hellos.length === 2);
  await eventually('the second listener', () =>
    harness.ask({ host: SECOND, path: '/ready' }).then(
      () => true,
      () => false,
    ),
  );
  return { most: () => most };
}

test('what one gateway holds without a request is given up for another one, as often as they take turns', async () => {
  await twoGateways(2);
  for (let round = 0; round < 3; round += 1) {
    expect((await harness.ask()).body).toBe('demo');
    expect((await harness.ask({ host: SECOND })).body).toBe('demo');
  }
  // Each time sooner than it would have been given back by itself.
  expect(harness.agent.idleMs.length).toBeGreaterThanOrEqual(5);
  expect(Math.min(...harness.agent.idleMs)).toBeLessThan(900);
});

test('what is only reserved for one gateway is given up for another one', async () => {
  await twoGateways(2);
  await eventually('nothing held', () => harness.agent.held.size === 0);
  const lease = harness.agent.reserve('demo', 'demo-1', '127.0.0.1:1', 2, 'gateway-test');
  await eventually('the reservation', () => harness.log.some(({ msg }) => msg === 'parked instance reserved'));
  expect((await harness.ask({ host: SECOND })).body).toBe('demo');
  expect(harness.agent.released).toContain(lease);
  expect(harness.agent.activated).toEqual([]);
});

test('under load of both, all are answered, and never more are in flight than one instance takes', async () => {
  const { most } = await twoGateways(3);
  const hosts = Array.from({ length: 60 }, (_, index) => (index % 2 === 0 ? '127.0.0.1' : SECOND));
  const answers = await Promise.all(hosts.map((host) => harness.ask({ host })));
  expect(answers.map(({ status }) => status)).toEqual(Array(60).fill(200));
  expect(most()).toBeLessThanOrEqual(3);
});
