import http from 'node:http';
import { instances, removeInstance, until } from '../e2e/support.js';

/**
 * Quiet before each request of every kind, milliseconds: what wakes an instance comes after a pause, when caches and CPUs
 * have turned to other things, so what it is compared with has to as well. Shorter than a gateway keeps an unused lease.
 */
const QUIET_MS = 250;

/** Milliseconds from the request to the last byte of a 200. Rejects for anything else. */
export async function timed(agent: http.Agent, port: number, path: string): Promise<number> {
  await new Promise((resolve) => setTimeout(resolve, QUIET_MS));
  const start = performance.now();
  return new Promise((resolve, reject) => {
    const request = http.get({ host: '127.0.0.1', port, path, agent, timeout: 60_000 }, (response) => {
      let body = '';
      response.setEncoding('utf8').on('data', (text: string) => {
        body += text;
      });
      response.on('error', reject);
      response.on('end', () => {
        if (response.statusCode === 200) resolve(performance.now() - start);
        else reject(new Error(`GET :${port}${path}: ${response.statusCode} ${body.slice(0, 300)}`));
      });
    });
    request.on('timeout', () => request.destroy(new Error(`GET :${port}${path}: no answer within 60 s`)));
    request.on('error', reject);
  });
}

/** Removes the running instances of a service and waits until exactly `parked` are parked and nothing else is there. */
export async function settle(service: string, parked: number): Promise<void> {
  await until(
    `${service} to have ${parked} parked and no running instance`,
    async () => {
      const found = await instances(service);
      for (const { id, state } of found) if (state === 'INSTANCE_STATE_RUNNING') await removeInstance(id);
      return found.length === parked && found.every(({ state }) => state === 'INSTANCE_STATE_PARKED');
    },
    60_000,
    50,
  );
}
