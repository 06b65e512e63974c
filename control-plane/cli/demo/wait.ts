import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { type Service, ServiceState } from '../../../proto/gen/initless/v1/types.js';
import { sleep, withDeadline } from '../../../proto/rpc/deadline.js';
import { InitlessError } from '../../../proto/rpc/errors.js';
import type { Admin } from '../admin.js';
import type { CliContext } from '../context.js';
import { followBuild } from '../progress.js';
import { Narrator, stillAtIt } from './narrator.js';

const CALL_MS = 10_000;
const POLL_MS = 200;
const CONNECT_MS = 60_000;
const TAKEN_IN_MS = 5_000;
const APPLY_MS = 60_000;
const LISTEN_MS = 20_000;
/** A step that says nothing worth telling for this long is told about all the same. */
const QUIET_MS = 15_000;

/** Waits until a host's agent has connected to the control plane. Errors: AGENT_DOWN. */
export async function hostConnected(context: CliContext, admin: Admin, name: string): Promise<void> {
  const poll = async (signal: AbortSignal) => {
    for (;;) {
      const { hosts } = await admin.call('ListHosts', CALL_MS, (client, options) => client.listHosts({}, options));
      if (hosts.some((host) => host.name === name && host.connected)) return;
      await sleep(POLL_MS, signal);
    }
  };
  try {
    await withDeadline(CONNECT_MS, `the agent of ${name} to connect to the control plane`, context.signal, poll);
  } catch (cause) {
    if (context.signal.aborted || (cause as InitlessError).code !== 'DEADLINE') throw cause;
    throw new InitlessError('AGENT_DOWN', (cause as InitlessError).message, {
      subject: name,
      nextStep: `'docker logs ${context.project.name}-${name}' shows what the agent says; 'initless doctor' looks at the machine`,
      cause,
    });
  }
}

/**
 * The enabled services of the folders below `codeDir`, once the control plane has read them, and the folders that it has
 * not taken in by then, such as one whose configuration is not valid. Errors: NOT_FOUND, when there are no folders.
 */
export async function services(
  context: CliContext,
  admin: Admin,
  codeDir: string,
): Promise<{ found: Service[]; missing: string[] }> {
  const folders = readdirSync(codeDir).filter((name) => existsSync(join(codeDir, name, 'config.yaml')));
  if (folders.length === 0) {
    throw new InitlessError('NOT_FOUND', `${codeDir} holds no folder with a config.yaml`, { subject: codeDir });
  }
  for (const until = Date.now() + TAKEN_IN_MS; ; ) {
    const answer = await admin.call('ListServices', CALL_MS, (client, options) => client.listServices({}, options));
    const found = answer.services.filter(({ folder }) => folders.includes(folder));
    const missing = folders.filter((name) => !found.some(({ folder }) => folder === name));
    if (missing.length === 0 || Date.now() > until) {
      return { found: found.filter(({ state }) => state !== ServiceState.SERVICE_STATE_DISABLED), missing };
    }
    await sleep(POLL_MS, context.signal);
  }
}

/**
 * Waits until the work on a service has ended, and tells of it meanwhile. What an earlier demo could not make, or not
 * checkpoint, is tried again: the reason may be gone.
 */
export async function built(context: CliContext, admin: Admin, service: Service): Promise<Service> {
  const name = service.config?.serviceName ?? '';
  if (isReady(service)) return service;
  if (!isUnderWay(service)) await again(admin, service);
  const narrator = new Narrator(name);
  const startedAt = Date.now();
  let last = { stage: '', line: '' };
  const heartbeat = setInterval(() => context.say(stillAtIt(name, startedAt, Date.now(), last)), QUIET_MS);
  try {
    const ended = await followBuild(context, admin, name, (output) => {
      last = output;
      const line = narrator.tell(output);
      if (line === undefined) return;
      context.say(line);
      heartbeat.refresh();
    });
    return ended ?? service;
  } finally {
    clearInterval(heartbeat);
  }
}

function isReady({ state, pending }: Service): boolean {
  return state === ServiceState.SERVICE_STATE_READY && pending === undefined;
}

function isUnderWay({ state, pending }: Service): boolean {
  const begun = state === ServiceState.SERVICE_STATE_PENDING || state === ServiceState.SERVICE_STATE_BUILDING;
  return pending === undefined ? begun : pending.problem === undefined;
}

async function again(admin: Admin, { folder }: Service): Promise<void> {
  const request = async function* () {
    yield { source: { $case: 'folder' as const, value: folder } };
  };
  await admin.call(`ApplyService ${folder}`, APPLY_MS, (client, options) => client.applyService(request(), options));
}

/** Waits until a gateway listens for a service. Errors: PORT_TAKEN with what the gateway says, DEADLINE. */
export async function listening(context: CliContext, admin: Admin, name: string): Promise<void> {
  await withDeadline(LISTEN_MS, `the gateway to listen for ${name}`, context.signal, async (signal) => {
    for (;;) {
      const { service } = await admin.call(`GetService ${name}`, CALL_MS, (client, options) =>
        client.getService({ serviceName: name }, options),
      );
      if (service?.listeners.some((listener) => listener.listening)) return;
      const refused = service?.listeners.find(({ error }) => error !== '');
      if (refused) {
        throw new InitlessError('PORT_TAKEN', `the gateway cannot listen for ${name}: ${refused.error}`, {
          subject: refused.address,
          nextStep: "end the program that has the port ('ss -ltnp' shows it), or change host_port in the config.yaml",
        });
      }
      await sleep(POLL_MS, signal);
    }
  });
}
