import net from 'node:net';
import { expect, test } from 'vitest';
import { knock } from '../../gateway/knock.js';
import { freePort } from './free-port.js';
import { eventually } from './gateway-harness.js';

test('knocking goes on until somebody accepts, and tells why nobody does', async () => {
  const port = await freePort();
  const refusals: string[] = [];
  const stop = new AbortController();
  const note = (error: Error) => void refusals.push(error.message);
  const answered = knock(`127.0.0.1:${port}`, performance.now(), stop.signal, note);
  await eventually('three attempts', () => refusals.length >= 3);
  expect(refusals.every((message) => message.includes('ECONNREFUSED'))).toBe(true);
  const server = net.createServer((socket) => socket.destroy());
  await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', () => resolve()));
  await answered;
  server.close();
});

test('knocking ends with its signal, in an attempt as in a pause', async () => {
  const reason = new Error('no longer wanted');
  const port = await freePort();
  for (const when of ['before', 'after an attempt']) {
    const stop = new AbortController();
    if (when === 'before') stop.abort(reason);
    const over = knock(`127.0.0.1:${port}`, performance.now(), stop.signal, () => stop.abort(reason));
    await expect(over, when).rejects.toBe(reason);
  }
});
