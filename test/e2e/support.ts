import { execFile } from 'node:child_process';
import { rm } from 'node:fs/promises';
import http from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { AdminServiceDefinition } from '../../proto/gen/initless/v1/admin.js';
import { Event, Instance, Service } from '../../proto/gen/initless/v1/types.js';
import { connect, createRpcClient } from '../../proto/rpc/client.js';
import { sleep } from '../../proto/rpc/deadline.js';

const ABOVE = path.resolve(import.meta.dirname, '../..');
/** The project's folder: sources, `dist` and the launcher. This file may be the source or its compiled form. */
export const ROOT = path.basename(ABOVE) === 'dist' ? path.dirname(ABOVE) : ABOVE;

/** The project that the tests' system runs as, beside whatever else runs on the machine. Another one may run beside it. */
export const PROJECT = process.env.INITLESS_TEST_PROJECT ?? 'initless-test';
/** First of its ports. */
export const PORT_BASE = Number(process.env.INITLESS_TEST_PORT_BASE ?? 7170);
/** Its only host. */
export const HOST = 'test1';
/** The container of that host. */
export const CONTAINER = `${PROJECT}-${HOST}`;
/** Where its control plane answers gRPC. */
export const SERVER = `localhost:${PORT_BASE}`;
/** What the project keeps on the machine. */
export const STATE_DIR = `/var/lib/initless/${PROJECT}`;

/** Folder for all that the tests write; made anew by each run. */
export const WORKSPACE = path.join(tmpdir(), PROJECT);
/** The system's `code_dir`: empty at first. */
export const CODE_DIR = path.join(WORKSPACE, 'code');

/** What a program that ended left behind. */
export interface Ran {
  code: number;
  stdout: string;
  stderr: string;
}

/** How a program is run. */
export interface RunOptions {
  /** Bound, milliseconds; the program is killed then. Default 60,000. */
  timeoutMs?: number;
  cwd?: string;
  env?: NodeJS.ProcessEnv;
  input?: string;
}

/** Runs a program to its end and never throws for its exit code. Rejects when it cannot be run or takes too long. */
export function run(program: string, args: readonly string[], options: RunOptions = {}): Promise<Ran> {
  const { timeoutMs = 60_000, cwd, env, input } = options;
  return new Promise((resolve, reject) => {
    const child = execFile(
      program,
      [...args],
      { timeout: timeoutMs, killSignal: 'SIGKILL', maxBuffer: 64 << 20, cwd, env, encoding: 'utf8' },
      (error, stdout, stderr) => {
        const code = error === null ? 0 : error.code;
        if (typeof code === 'number') resolve({ code, stdout, stderr });
        else if (error?.killed) {
          reject(new Error(`${program} ${args.join(' ')} did not end within ${timeoutMs} ms\n${stdout}\n${stderr}`));
        } else reject(error);
      },
    );
    if (input !== undefined) child.stdin?.end(input);
  });
}

/** The environment of a user of the tests' project; nothing that is set for another one comes in. */
export function projectEnv(project = PROJECT, portBase = PORT_BASE): NodeJS.ProcessEnv {
  const others = Object.entries(process.env).filter(([name]) => !name.startsWith('INITLESS_'));
  return { ...Object.fromEntries(others), INITLESS_PROJECT: project, INITLESS_PORT_BASE: String(portBase) };
}

/** Runs `initless ARGS` through its launcher. */
export function initlessWith(options: RunOptions, ...args: string[]): Promise<Ran> {
  const launcher = path.join(ROOT, 'control-plane/cli/initless.mjs');
  return run(process.execPath, [launcher, ...args], { timeoutMs: 300_000, env: projectEnv(), ...options });
}

/** Runs `initless ARGS` with the usual options. */
export function initless(...args: string[]): Promise<Ran> {
  return initlessWith({}, ...args);
}

/** Runs `initless ARGS` and gives its standard output. Rejects, with all it said, when it fails. */
export async function mustRun(...args: string[]): Promise<string> {
  const ran = await initless(...args);
  if (ran.code !== 0)
    throw new Error(`initless ${args.join(' ')} ended with ${ran.code}\n${ran.stdout}\n${ran.stderr}`);
  return ran.stdout;
}

/** Runs `initless ARGS -o json` and gives what it printed. */
export async function asJson<T>(...args: string[]): Promise<T> {
  return JSON.parse(await mustRun(...args, '-o', 'json')) as T;
}

/** A shell script inside the host container; `set -e` is on. Rejects when it fails. */
export async function onHost(script: string, timeoutMs = 60_000): Promise<string> {
  const ran = await run('docker', ['exec', '-i', CONTAINER, 'sh', '-e'], { timeoutMs, input: script });
  if (ran.code !== 0)
    throw new Error(`in ${CONTAINER}: ended with ${ran.code}\n${script}\n${ran.stdout}\n${ran.stderr}`);
  return ran.stdout;
}

/** An HTTP answer. */
export interface Answer {
  status: number;
  headers: http.IncomingHttpHeaders;
  body: string;
}

/** One HTTP request on a connection of its own. Rejects when no answer comes. */
export function request(
  url: string,
  options: { method?: string; headers?: http.OutgoingHttpHeaders; body?: string; timeoutMs?: number } = {},
): Promise<Answer> {
  const { method = 'GET', headers, body, timeoutMs = 60_000 } = options;
  return new Promise((resolve, reject) => {
    const asked = http.request(url, { method, headers, agent: false }, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (piece: string) => {
        text += piece;
      });
      response.on('end', () => {
        clearTimeout(timer);
        resolve({ status: response.statusCode ?? 0, headers: response.headers, body: text });
      });
      response.on('error', reject);
    });
    const timer = setTimeout(
      () => asked.destroy(new Error(`${method} ${url}: no answer within ${timeoutMs} ms`)),
      timeoutMs,
    );
    asked.on('error', (error) => {
      clearTimeout(timer);
      reject(error);
    });
    asked.end(body);
  });
}

/** GET; the body of a 200 as JSON. Rejects, with what came, for any other status. */
export async function getJson<T = Record<string, unknown>>(url: string, timeoutMs?: number): Promise<T> {
  const answer = await request(url, { timeoutMs });
  if (answer.status !== 200) throw new Error(`GET ${url}: ${answer.status} ${answer.body}`);
  return JSON.parse(answer.body) as T;
}

/**
 * Looks again and again until what it finds is neither undefined nor false. Rejects after `ms` with what was waited for and
 * the last error, if looking failed.
 */
export async function until<T>(
  what: string,
  look: () => Promise<T | undefined | false>,
  ms = 30_000,
  pauseMs = 200,
): Promise<T> {
  const end = Date.now() + ms;
  let last: unknown;
  for (;;) {
    try {
      const answer = await look();
      if (answer !== undefined && answer !== false) return answer;
      last = undefined;
    } catch (error) {
      last = error;
    }
    if (Date.now() > end) throw new Error(`after ${ms} ms still waiting for ${what}`, { cause: last });
    await sleep(pauseMs);
  }
}

/**
 * One call to the control plane, without the half second that a start of the CLI takes: what is asked for again and again
 * is asked for so. The channel is a new one each time, since tests end control planes.
 */
async function ask<T>(work: (client: ReturnType<typeof adminClient>) => Promise<T>): Promise<T> {
  const channel = connect(SERVER);
  try {
    return await work(adminClient(channel));
  } finally {
    channel.close();
  }
}

function adminClient(channel: ReturnType<typeof connect>) {
  return createRpcClient(AdminServiceDefinition, channel);
}

/** A signal for a call that answers at once, if at all. */
function soon(): { signal: AbortSignal } {
  return { signal: AbortSignal.timeout(10_000) };
}

/** What went wrong, as JSON shows it. */
export interface ProblemRow {
  code: string;
  message: string;
  nextStep?: string;
  outputTail?: string[];
}

/** An instance as `initless instance ls -o json` prints it; what has its default value is left out there. */
export interface InstanceRow {
  id: string;
  service: string;
  revision: string;
  state: string;
  origin: string;
  address: string;
  pid: number;
  leases?: number;
  problem?: ProblemRow;
  /** How its memory was filled: "MEMORY_MODE_MAPPED" and the like; none when it was started cold. */
  memory?: string;
}

/** Instances, of one service or of all. */
export async function instances(serviceName = ''): Promise<InstanceRow[]> {
  const { instances } = await ask((client) => client.listInstances({ serviceName }, soon()));
  return instances.map((instance) => Instance.toJSON(instance) as InstanceRow);
}

/** A service as `initless service inspect -o json` prints it. */
export interface ServiceRow {
  config: { serviceName: string; hostPort: number };
  state: string;
  current?: { id: string; imageId: string; createdAt: string; problem?: ProblemRow };
  pending?: { id: string; problem?: ProblemRow };
  problem?: ProblemRow;
  listeners?: { listening?: boolean; error?: string; address: string }[];
}

/** One service. Rejects when there is none of that name. */
export async function inspect(serviceName: string): Promise<ServiceRow> {
  const { service } = await ask((client) => client.getService({ serviceName }, soon()));
  if (service === undefined) throw new Error(`the control plane answered without the service ${serviceName}`);
  return Service.toJSON(service) as ServiceRow;
}

/** All services. */
export async function services(): Promise<ServiceRow[]> {
  const { services } = await ask((client) => client.listServices({}, soon()));
  return services.map((service) => Service.toJSON(service) as ServiceRow);
}

/** An event as `initless events -o json` prints it. */
export interface EventRow {
  sequence: string;
  kind: string;
  service?: string;
  revision?: string;
  instance?: string;
  origin?: string;
  message: string;
  goneReason?: string;
  problem?: ProblemRow;
}

/** The last 1,000 events of a service. */
export function events(serviceName: string): Promise<EventRow[]> {
  return ask(async (client) => {
    const found: EventRow[] = [];
    for await (const { event } of client.watchEvents({ serviceName, last: 1000, endAfterLast: true }, soon())) {
      if (event) found.push(Event.toJSON(event) as EventRow);
    }
    return found;
  });
}

/** The event that tells of an instance's end, as soon as there is one. */
export function goneOf(service: string, instance: string): Promise<EventRow> {
  return until(`the end of ${instance} to be told`, async () =>
    (await events(service)).find((event) => event.instance === instance && event.kind === 'instance.gone'),
  );
}

/** Removes an instance, and waits until it is gone; one that went by itself in between is no error. */
export async function removeInstance(id: string): Promise<void> {
  await ask((client) => client.removeInstance({ instance: id }, soon())).catch((error: Error) => {
    if (!/no instance/.test(error.message)) throw error;
  });
}

/** Lets a parked instance run. Rejects when it is not parked. */
export async function thawInstance(id: string): Promise<void> {
  await ask((client) => client.thawInstance({ instance: id }, soon()));
}

/** Leases that the gateway was granted for a service since it started, by the state in which the instance was found. */
export async function gatewayWakes(service: string): Promise<{ running: number; parked: number; restored: number }> {
  const { body } = await request(`http://localhost:${PORT_BASE + 4}/metrics`);
  const count = (labels: string) => {
    const at = `initless_gateway_wakes_total{service="${service}",origin="restored",found="${labels}"} `;
    return Number(
      body
        .split('\n')
        .find((line) => line.startsWith(at))
        ?.slice(at.length) ?? 0,
    );
  };
  return { running: count('running'), parked: count('parked'), restored: count('none') };
}

/** Milliseconds that one `docker run` of a service takes until it is healthy. */
export function dockerRun(serviceName: string): Promise<number> {
  return ask(async (client) => {
    const options = { signal: AbortSignal.timeout(300_000) };
    let ms: number | undefined;
    for await (const { measurement } of client.testService({ serviceName, rounds: 1 }, options)) {
      if (measurement?.kind === 'docker_run') ms = measurement.ms;
    }
    if (ms === undefined) throw new Error(`${serviceName} was not started by docker run`);
    return ms;
  });
}

/** Removes every instance of a service, so that its next request has to wake one; also one that was just being brought up. */
export async function sleepService(service: string): Promise<void> {
  const asked = new Set<string>();
  await until(`${service} to have no instance`, async () => {
    const found = await instances(service);
    for (const { id } of found.filter((instance) => !asked.has(instance.id))) {
      asked.add(id);
      await removeInstance(id);
    }
    return found.length === 0;
  });
}

/**
 * Has a sleeping service woken by `call`, and gives what it gave with the one instance that answered. Rejects when the
 * instance was not restored, with the reason: whatever a test says of a restore, it must not be true of a cold start.
 */
export async function wokenBy<T>(
  service: string,
  call: () => Promise<T>,
): Promise<{ answer: T; instance: InstanceRow }> {
  await sleepService(service);
  const answer = await call();
  // Agents report a little later than they act.
  const [instance, ...more] = await until(`an instance of ${service} to be reported as running`, async () => {
    const found = await instances(service);
    return found.some(({ state }) => state === 'INSTANCE_STATE_RUNNING') && found;
  });
  if (instance === undefined || more.length > 0)
    throw new Error(`${service} has ${more.length + 1} instances, not one`);
  if (instance.origin !== 'ORIGIN_RESTORED') {
    throw new Error(`${instance.id} was not restored: ${instance.origin} ${JSON.stringify(instance.problem)}`);
  }
  return { answer, instance };
}

/** Removes the tests' own files. */
export async function clearWorkspace(): Promise<void> {
  await rm(WORKSPACE, { recursive: true, force: true });
}
