import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseDocument } from 'yaml';
import type { Service } from '../../../proto/gen/initless/v1/types.js';
import { sleep, withDeadline } from '../../../proto/rpc/deadline.js';
import { InitlessError } from '../../../proto/rpc/errors.js';
import type { Admin } from '../admin.js';
import { bringUp } from '../bring-up.js';
import { type CliContext, EXIT } from '../context.js';
import { formatMs, originWord } from '../format.js';
import { engineClient } from '../machine/engine.js';
import { hostUp } from '../machine/host.js';
import { hostNames } from '../machine/names.js';
import { projectRoot } from '../machine/root.js';
import { renderTable } from '../output.js';
import { outcomeOf } from '../progress.js';
import { requireRoot } from '../require-root.js';
import { isReady, partStatuses } from '../supervisor/control.js';
import { RunFiles } from '../supervisor/files.js';
import { call } from './call.js';
import { type Tally, Traffic } from './traffic.js';
import { built, hostConnected, listening, services } from './wait.js';

const HOSTS = ['host1', 'host2', 'host3'];
/** The host that is killed. */
const VICTIM = 'host2';
const GATEWAYS = 2;
const SERVICE = 'fleet';
const PORT = 8401;
/** Key and value that the sample answers with. */
const QUERY = '/?key=888888';

const CALL_MS = 30_000;
const HTTP_MS = 30_000;
/** Copies of a checkpoint, and what serving it takes. */
const SPREAD_MS = 300_000;
/** Each part of the run has load for this long after what it waits for. */
const QUIET_MS = 5_000;
const CLIENTS_EACH = 4;
/** The load ends by itself, whatever becomes of the rest. */
const LOAD_MS = 15 * 60_000;
/** A host that was killed is lost, and its share with others, after this at the latest. */
const REPLACED_MS = 60_000;
const BACK_MS = 60_000;

/** A part of the run, and what came of its requests. */
interface Phase {
  name: string;
  tally: Tally;
  /** Requests that gateways sent again, to another instance. */
  retried: number;
  /** Requests that the victim's instances were answering when it was killed. */
  inFlight?: number;
}

/**
 * Three hosts, two gateways, control plane and Redis on one machine: a service that is built on one host answers from all;
 * then a host, the control plane and Redis are killed one after the other under load, with a table of what came of the
 * requests. Leaves the system running. Gives the exit code: 0 when nothing was lost but what was in flight on the killed
 * host. Errors: those of the steps.
 */
export async function runFleetDemo(context: CliContext): Promise<number> {
  requireRoot('the demo of a fleet');
  const { project, signal, say } = context;
  say(`==> hosts ${HOSTS.join(', ')}`);
  for (const host of HOSTS) {
    const options = { project: project.name, host, controlPlanePort: project.ports.grpc };
    const up = await hostUp(options, { signal, progress: (line) => say(`  ${line}`) });
    say(`  ${host} is ready at ${up.address} (${up.action})`);
  }
  say(`==> control plane, Redis and ${GATEWAYS} gateways`);
  const codeDir = writeService(project.stateDir);
  const settings = join(project.stateDir, 'demo-settings.yaml');
  writeFileSync(settings, `# Written by 'initless demo --fleet'.\ncode_dir: ${JSON.stringify(codeDir)}\n`);
  const started = await bringUp(context, { settings, codeDir, gateways: GATEWAYS, redis: true });
  say(`  ${started ? 'are up' : 'were up already'}; logs are in ${project.runDir}`);

  return context.withAdmin(async (admin) => {
    for (const host of HOSTS) {
      await hostConnected(context, admin, host);
      await admin.call(`UncordonHost ${host}`, CALL_MS, (client, options) => client.uncordonHost({ host }, options));
    }
    say('==> a service is built on one host and copied to the others');
    const { found, missing } = await services(context, admin, codeDir);
    if (found[0] === undefined) throw new InitlessError('NOT_FOUND', `${missing.join()} was not taken in`);
    const service = await built(context, admin, found[0]);
    const outcome = outcomeOf(service);
    for (const line of outcome.lines) say(`  ${line}`);
    if (outcome.exitCode === EXIT.failed) return outcome.exitCode;
    await spreadOver(context, admin, HOSTS.length);
    await listening(context, admin, SERVICE);
    await answersFromAll(context, admin);
    return await endure(context, admin);
  });
}

/** The Flask sample under a name and a port of its own, with a parked instance for each host. */
function writeService(stateDir: string): string {
  const codeDir = join(stateDir, 'fleet-services');
  const folder = join(codeDir, SERVICE);
  mkdirSync(codeDir, { recursive: true, mode: 0o700 });
  cpSync(join(projectRoot(), 'sample/flask'), folder, { recursive: true });
  const file = join(folder, 'config.yaml');
  const config = parseDocument(readFileSync(file, 'utf8'));
  const changes = {
    ...{ service_name: SERVICE, image_name: SERVICE, checkpoint_name: SERVICE, host_port: PORT },
    ...{ pre_start_pool_size: HOSTS.length, max_pool_size: 2 * HOSTS.length, max_concurrency: 2, idle_timeout: 1 },
  };
  for (const [key, value] of Object.entries(changes)) config.set(key, value);
  writeFileSync(file, config.toString());
  return codeDir;
}

async function serviceOf(admin: Admin): Promise<Service> {
  const { service } = await admin.call(`GetService ${SERVICE}`, CALL_MS, (client, options) =>
    client.getService({ serviceName: SERVICE }, options),
  );
  if (service === undefined) throw new InitlessError('INTERNAL', 'the control plane answered without the service');
  return service;
}

/** Waits until so many hosts serve, and their shares sum to the pool's targets. */
async function spreadOver(context: CliContext, admin: Admin, count: number, ms = SPREAD_MS): Promise<void> {
  await withDeadline(
    ms,
    `${count} hosts to serve ${SERVICE}, with a parked instance each`,
    context.signal,
    async (bound) => {
      for (;;) {
        const { hosts, config } = await serviceOf(admin);
        const serving = hosts.filter((host) => host.serves);
        const sum = serving.reduce((total, host) => total + host.maxRunning, 0);
        const parked = serving.every(
          ({ parked, instances }) => (instances?.parked ?? 0) + (instances?.running ?? 0) >= parked,
        );
        if (serving.length === count && hosts.length === count && sum === config?.maxPoolSize && parked) return;
        await sleep(250, bound);
      }
    },
  );
}

/** One instance of each host is woken and asked where gateways would reach it. */
async function answersFromAll({ say, signal }: CliContext, admin: Admin): Promise<void> {
  for (const host of HOSTS) {
    const { instance } = await admin.call(`WakeService ${SERVICE} on ${host}`, CALL_MS, (client, options) =>
      client.wakeService({ serviceName: SERVICE, host }, options),
    );
    const { status, body, ms } = await call(`http://${instance?.address}${QUERY}`, HTTP_MS, signal);
    const how = originWord(instance?.origin ?? 0);
    say(`  ${host}: ${instance?.id} (${how}) answers ${status} in ${formatMs(ms)}: ${body.trim()}`);
    if (status !== 200) throw new InitlessError('UPSTREAM_FAILED', `${host} answered ${status}`, { subject: SERVICE });
  }
}

const gatewayAddress = (index: number) => `127.0.0.${index + 1}`;

async function endure(context: CliContext, admin: Admin): Promise<number> {
  const { project, say, signal } = context;
  const addresses = Array.from({ length: GATEWAYS }, (_, index) => gatewayAddress(index));
  say(`==> load on both gateways; then ${VICTIM}, the control plane and Redis are killed, one after the other`);
  const traffic = new Traffic(
    addresses.map((address) => `http://${address}:${PORT}${QUERY}`),
    CLIENTS_EACH,
    LOAD_MS,
    signal,
  );
  const phases: Phase[] = [];
  let retriedBefore = await metric(context, addresses, 'retries_total', `service="${SERVICE}"`);
  const phase = async (name: string, work: () => Promise<number | undefined>) => {
    say(`  ${name}`);
    const inFlight = await work();
    await sleep(QUIET_MS, signal);
    const retried = await metric(context, addresses, 'retries_total', `service="${SERVICE}"`);
    phases.push({
      name,
      tally: traffic.take(),
      retried: retried - retriedBefore,
      ...(inFlight !== undefined && { inFlight }),
    });
    retriedBefore = retried;
  };
  const part = (name: string) => async () => {
    await killPart(context, name);
    return undefined;
  };
  try {
    await phase('nothing is killed', async () => undefined);
    await phase(`${VICTIM} is killed`, async () => {
      const inFlight = await metric(context, addresses, 'host_requests_in_flight', `host="${VICTIM}"`);
      await engineClient().getContainer(hostNames(project.name, VICTIM).container).kill({ signal: 'SIGKILL' });
      await spreadOver(context, admin, HOSTS.length - 1, REPLACED_MS);
      return inFlight;
    });
    await phase('the control plane is killed', part('control-plane'));
    await phase('Redis is killed', part('redis'));
    await phase(`${VICTIM} comes back`, async () => {
      const options = { project: project.name, host: VICTIM, controlPlanePort: project.ports.grpc };
      await hostUp(options, { signal, progress: (line) => say(`    ${line}`) });
      await spreadOver(context, admin, HOSTS.length);
      return undefined;
    });
  } finally {
    await traffic.stop();
  }
  context.stdout.write(`\n${table(phases)}\n`);
  return verdict(context, phases);
}

/** Kills a part that the supervisor keeps running, and waits until it is back. */
async function killPart(context: CliContext, name: string): Promise<void> {
  const files = new RunFiles(context.project.runDir);
  const before = (await partStatuses(files)).find((one) => one.name === name)?.process;
  if (before === undefined) throw new InitlessError('NOT_READY', `${name} does not run`, { subject: name });
  process.kill(before.pid, 'SIGKILL');
  await withDeadline(BACK_MS, `${name} to be back`, context.signal, async (bound) => {
    for (;;) {
      const now = (await partStatuses(files)).find((one) => one.name === name);
      if (now?.ready && now.process?.pid !== before.pid) break;
      await sleep(100, bound);
    }
    const control = `http://127.0.0.1:${context.project.ports.http}/readyz`;
    while (!(await isReady(control))) await sleep(100, bound);
  });
}

/** The sum of a gateway metric's series with a label, over all gateways. */
async function metric(context: CliContext, addresses: readonly string[], name: string, label: string): Promise<number> {
  const texts = await Promise.all(
    addresses.map(async (address) => {
      const url = `http://${address}:${context.project.ports.gatewayHttp}/metrics`;
      return (await call(url, CALL_MS, context.signal)).body;
    }),
  );
  return texts
    .flatMap((text) => text.split('\n'))
    .filter((line) => line.startsWith(`initless_gateway_${name}{`) && line.includes(label))
    .reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' '))), 0);
}

const lostOf = ({ lost }: Tally) => [...lost.values()].reduce((sum, count) => sum + count, 0);

function table(phases: readonly Phase[]): string {
  return renderTable(
    ['WHAT HAPPENS', 'ASKED', 'ANSWERED', 'RETRIED', 'LOST', 'IN FLIGHT ON IT', 'SLOWEST'],
    phases.map(({ name, tally, retried, inFlight }) => [
      name,
      String(tally.asked),
      String(tally.answered),
      String(retried),
      String(lostOf(tally)),
      inFlight === undefined ? '' : String(inFlight),
      formatMs(tally.slowest),
    ]),
  );
}

/** Nothing may be lost but what was in flight on the killed host; each client has one request in flight. */
function verdict(context: CliContext, phases: readonly Phase[]): number {
  const most = CLIENTS_EACH * GATEWAYS;
  const bad = phases.filter(({ tally, inFlight }) => lostOf(tally) > (inFlight === undefined ? 0 : most));
  for (const { name, tally } of phases) {
    for (const [why, count] of tally.lost) context.say(`${name}: lost ${count}: ${why}`);
  }
  if (bad.length === 0) {
    context.stdout.write(`nothing was lost but what was in flight on ${VICTIM} when it was killed\n`);
    return EXIT.ok;
  }
  context.say(`more was lost than was in flight on the killed host: ${bad.map(({ name }) => name).join('; ')}`);
  return EXIT.failed;
}
