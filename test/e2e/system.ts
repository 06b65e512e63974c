import { once } from 'node:events';
import { mkdir, writeFile } from 'node:fs/promises';
import net from 'node:net';
import path from 'node:path';
import {
  asJson,
  CODE_DIR,
  clearWorkspace,
  HOST,
  mustRun,
  PROJECT,
  type ServiceRow,
  until,
  WORKSPACE,
} from './support.js';

/**
 * The system that the tests look at, brought up as a user would: a host, then control plane and gateway. An earlier run
 * may have been killed at any point, so what it left is taken down first; images and build caches stay, checkpoints are
 * made anew. With INITLESS_TEST_KEEP=1 a system that is up is used, and left up.
 */
const KEEP = process.env.INITLESS_TEST_KEEP === '1';

/** Short, so that idle instances go while a test watches; services that must stay longer say so themselves. */
const SETTINGS = `# The tests' system.
code_dir:
  ${CODE_DIR}
reserved_ports:
  - 21000
  - 21999
idle_timeout:
  0.1 # minutes
queue_timeout:
  60
`;

/** Vitest's global set-up. Gives the tear-down. */
export default async function setup(): Promise<() => Promise<void>> {
  const turn = await ourTurn();
  if (!KEEP) await mustRun('down');
  await clearWorkspace();
  await mkdir(CODE_DIR, { recursive: true });
  const settings = path.join(WORKSPACE, 'settings.yaml');
  await writeFile(settings, SETTINGS);
  await mustRun('host', 'up', HOST);
  await mustRun('up', '--settings', settings);
  await until(`the agent of ${HOST} to connect`, async () => {
    const hosts = await asJson<{ name: string; host?: { connected?: boolean } }[]>('host', 'ls');
    return hosts.some(({ name, host }) => name === HOST && host?.connected);
  });
  await forgetServices();
  return async () => {
    if (!KEEP) {
      await mustRun('down');
      await clearWorkspace();
    }
    turn.close();
  };
}

/** One run at a time on a machine: the holder of a socket that ends with its process, however it ends. */
async function ourTurn(): Promise<net.Server> {
  return until(
    'another run of these tests to end',
    async () => {
      const server = net.createServer().listen(`\0${PROJECT}`);
      await once(server, 'listening');
      return server;
    },
    1_800_000,
    1_000,
  );
}

/** Services that an earlier run left would answer in place of those that are made now. */
async function forgetServices(): Promise<void> {
  for (const { config } of await asJson<ServiceRow[]>('service', 'ls')) {
    await mustRun('service', 'rm', config.serviceName);
  }
}
