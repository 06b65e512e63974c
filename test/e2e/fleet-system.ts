import { mkdir, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { AdminServiceDefinition } from '../../proto/gen/initless/v1/admin.js';
import { type Event, type Instance, InstanceState, type Service } from '../../proto/gen/initless/v1/types.js';
import { connect, createRpcClient } from '../../proto/rpc/client.js';
import { initlessWith, PORT_BASE, PROJECT, projectEnv, type Ran, run, until, WORKSPACE } from './support.js';

/** A project of its own beside the other tests' one: two hosts and two gateways. */
export const FLEET = `${PROJECT}-fleet`;
/** First of its ports. */
export const FLEET_PORT_BASE = PORT_BASE + 100;
/** Its hosts. */
export const HOSTS = ['a', 'b'] as const;
/** A host's name. */
export type HostName = (typeof HOSTS)[number];
/** Where its gateways listen. */
export const GATEWAYS = ['127.0.0.1', '127.0.0.2'] as const;

const FOLDER = path.join(WORKSPACE, 'fleet');
/** A host that was cut off for longer than this is replaced. Seconds; short, since a test waits for it. */
const HOST_TIMEOUT_S = 15;
const CUT_TABLE = `${FLEET.replaceAll('-', '_')}_cut`;

/** Runs `initless ARGS` in the fleet's project. */
export function fleet(...args: string[]): Promise<Ran> {
  return initlessWith({ env: projectEnv(FLEET, FLEET_PORT_BASE) }, ...args);
}

/** Runs `initless ARGS` there and gives its standard output. Rejects, with all it said, when it fails. */
export async function mustFleet(...args: string[]): Promise<string> {
  const ran = await fleet(...args);
  if (ran.code !== 0)
    throw new Error(`initless ${args.join(' ')} ended with ${ran.code}\n${ran.stdout}\n${ran.stderr}`);
  return ran.stdout;
}

/** Brings the fleet up. */
export async function fleetUp(): Promise<void> {
  await mustFleet('down');
  await rm(FOLDER, { recursive: true, force: true });
  await mkdir(FOLDER, { recursive: true });
  const settings = path.join(FOLDER, 'settings.yaml');
  await writeFile(
    settings,
    `reserved_ports: [23000, 23999]\nidle_timeout: 5\nqueue_timeout: 30\nhost_timeout: ${HOST_TIMEOUT_S}\n`,
  );
  for (const host of HOSTS) await mustFleet('host', 'up', host);
  await mustFleet('up', '--settings', settings, '--gateways', String(GATEWAYS.length));
  await untilConnected();
  await forgetServices();
}

/** What an earlier run left would be used again: checkpoints are made anew. */
async function forgetServices(): Promise<void> {
  const { services } = await ask((admin, options) => admin.listServices({}, options));
  for (const { config } of services) await mustFleet('service', 'rm', config?.serviceName ?? '');
  await until('nothing of an earlier run to be left', async () => {
    const { hosts } = await ask((admin, options) => admin.listHosts({}, options));
    const { checkpoints } = await ask((admin, options) => admin.listCheckpoints({}, options));
    return checkpoints.length === 0 && hosts.every((host) => host.services === 0);
  });
}

/** Takes it down again. */
export async function fleetDown(): Promise<void> {
  await heal();
  await mustFleet('down');
  await rm(FOLDER, { recursive: true, force: true });
}

type Admin = ReturnType<typeof createRpcClient<typeof AdminServiceDefinition>>;

/** One call to the fleet's control plane, over a channel of its own: tests end control planes. */
export async function ask<T>(work: (admin: Admin, options: { signal: AbortSignal }) => Promise<T>): Promise<T> {
  const channel = connect(`localhost:${FLEET_PORT_BASE}`);
  try {
    return await work(createRpcClient(AdminServiceDefinition, channel), { signal: AbortSignal.timeout(20_000) });
  } finally {
    channel.close();
  }
}

/** Waits until all hosts are connected and none is cordoned. */
export async function untilConnected(): Promise<void> {
  await until(
    'all hosts to be connected',
    async () => {
      const { hosts } = await ask((admin, options) => admin.listHosts({}, options));
      return HOSTS.every((name) => hosts.some((host) => host.name === name && host.connected && host.engine?.ready));
    },
    60_000,
  );
}

/** A service as it is now. */
export async function serviceOf(serviceName: string): Promise<Service> {
  return (await ask((admin, options) => admin.getService({ serviceName }, options))).service!;
}

/** Instances, of a service or of all, as hosts that are connected report them. */
export async function instancesOf(serviceName = ''): Promise<Instance[]> {
  return (await ask((admin, options) => admin.listInstances({ serviceName }, options))).instances;
}

/** Those that run. */
export async function runningOf(serviceName: string): Promise<Instance[]> {
  return (await instancesOf(serviceName)).filter(({ state }) => state === InstanceState.INSTANCE_STATE_RUNNING);
}

/** The last 1,000 events, of a service or of all. */
export function eventsOf(serviceName = ''): Promise<Event[]> {
  return ask(async (admin, options) => {
    const found: Event[] = [];
    for await (const { event } of admin.watchEvents({ serviceName, last: 1000, endAfterLast: true }, options)) {
      if (event) found.push(event);
    }
    return found;
  });
}

/** Deploys a folder and waits until both hosts serve it, each with its share, and both gateways listen. */
export async function deployOnBoth(folder: string, name: string): Promise<void> {
  const ran = await fleet('service', 'apply', folder, '--wait');
  if (ran.code !== 0) throw new Error(`applying ${folder} ended with ${ran.code}\n${ran.stderr}`);
  await untilOnBoth(name);
}

/** Waits until both hosts serve a service, the shares sum to its pool, what is to be parked is, and both gateways listen. */
export async function untilOnBoth(name: string): Promise<void> {
  await until(
    `both hosts to serve ${name}`,
    async () => {
      const { hosts, config, listeners } = await serviceOf(name);
      const sum = hosts.reduce((total, host) => total + host.maxRunning, 0);
      const parked = hosts.every((host) => (host.instances?.parked ?? 0) >= host.parked);
      const ready = hosts.length === HOSTS.length && hosts.every(({ serves, note }) => serves && note === '');
      const heard = new Set(listeners.filter(({ listening }) => listening).map(({ gateway }) => gateway)).size;
      return ready && parked && sum === config?.maxPoolSize && heard === GATEWAYS.length;
    },
    180_000,
  );
}

/** A container's address on the project's network. */
async function addressOf(host: HostName): Promise<string> {
  const format = `{{(index .NetworkSettings.Networks "${FLEET}").IPAddress}}`;
  const { stdout } = await run('docker', ['inspect', '-f', format, `${FLEET}-${host}`]);
  return stdout.trim();
}

/** Cuts a host off from everything on this machine, silently: no connection ends, nothing arrives any more. */
export async function cutOff(host: HostName): Promise<void> {
  const address = await addressOf(host);
  // Before conntrack and the engine's own rules, for what passes through the machine and what is for it.
  const input = `
table ip ${CUT_TABLE} {
  chain in { type filter hook prerouting priority -350; ip saddr ${address} drop; }
  chain out { type filter hook postrouting priority -350; ip daddr ${address} drop; }
}
`;
  const ran = await run('nft', ['-f', '-'], { input });
  if (ran.code !== 0) throw new Error(`cutting ${host} off: ${ran.stderr}`);
}

/** Takes the cut back, if there is one. */
export async function heal(): Promise<void> {
  await run('nft', ['delete', 'table', 'ip', CUT_TABLE]);
}

/** Process id of the agent in a host; 0 while there is none. */
export async function agentPidOf(host: HostName): Promise<number> {
  const script = `
    for dir in /proc/[0-9]*; do
      if tr '\\0' ' ' < $dir/cmdline 2> /dev/null | grep -q '^node .*/dist/agent/main.js'; then basename $dir; fi
    done
  `;
  return Number((await inHost(host, script)).trim());
}

/** Runs a shell script in a host. Rejects when it fails. */
export async function inHost(host: HostName, script: string): Promise<string> {
  const ran = await run('docker', ['exec', '-i', `${FLEET}-${host}`, 'sh', '-e'], { input: script });
  if (ran.code !== 0) throw new Error(`in ${host}: ended with ${ran.code}\n${ran.stderr}`);
  return ran.stdout;
}

/** Kills a part that `initless up` keeps running, and waits until it is back and ready. */
export async function killPartOf(name: string): Promise<void> {
  const parts = async () => {
    const { stdout } = await fleet('status', '-o', 'json');
    return (JSON.parse(stdout) as { parts: { name: string; state: string; pid: number | null }[] }).parts;
  };
  const before = (await parts()).find((part) => part.name === name)?.pid;
  if (!before) throw new Error(`${name} does not run`);
  process.kill(before, 'SIGKILL');
  await until(`another ${name} to be ready`, async () => {
    const now = (await parts()).find((part) => part.name === name);
    return now?.state === 'ready' && now.pid !== before;
  });
}
