import { join } from 'node:path';
import {
  type Instance,
  InstanceState,
  Origin,
  type Service,
  ServiceState,
} from '../../../proto/gen/initless/v1/types.js';
import { sleep } from '../../../proto/rpc/deadline.js';
import { InitlessError, toInitlessError } from '../../../proto/rpc/errors.js';
import type { Admin } from '../admin.js';
import { type CliContext, EXIT } from '../context.js';
import { formatMs, originWord } from '../format.js';
import { measure, resultTable, type TestResult } from '../measure.js';
import { outcomeOf } from '../progress.js';
import { reportError } from '../report-error.js';
import { call } from './call.js';
import { built, listening, services } from './wait.js';

const CALL_MS = 30_000;
/** Long enough for a cold start, should a restore fail. */
const HTTP_MS = 150_000;
const REPORT_MS = 3_000;
const SHOWN_LENGTH = 60;

/**
 * Follows the services of `codeDir` until their checkpoints are made, calls each while it sleeps, times their starts,
 * and says how to go on. Gives the exit code: 1 when one of them could not be made, called or timed.
 */
export async function showServices(
  context: CliContext,
  admin: Admin,
  codeDir: string,
  rounds: number,
): Promise<number> {
  const { say } = context;
  say(`==> services in ${codeDir}: image, start, checkpoint (the first time takes minutes)`);
  const { found, missing } = await services(context, admin, codeDir);
  if (missing.length > 0) await sayWhyMissing(context, admin, missing);
  const settled = await Promise.all(found.map((service) => built(context, admin, service)));
  const failed = settled.filter((service) => tellOutcome(context, service) === EXIT.failed);
  const able = settled.filter((service) => !failed.includes(service));

  if (able.length === 0) return EXIT.failed;
  say('==> one call to each, while it sleeps');
  let code: number = failed.length + missing.length > 0 ? EXIT.failed : EXIT.ok;
  for (const service of able)
    if (!(await attempt(context, () => callCold(context, admin, service)))) code = EXIT.failed;

  say(`==> ${rounds} rounds of \`docker run\` until healthy against restored until healthy`);
  const results: TestResult[] = [];
  for (const { config, state } of able) {
    // What could not be checkpointed has no restored start to be timed; its outcome, told above, says why.
    if (state !== ServiceState.SERVICE_STATE_READY) continue;
    const timed = await attempt(context, async () => {
      results.push(await measure(context, admin, config?.serviceName ?? '', rounds, (line) => say(`  ${line}`)));
    });
    if (!timed) code = EXIT.failed;
  }
  if (results.length > 0) context.stdout.write(`\n${resultTable(results)}\n`);
  context.stdout.write(`\n${farewell(able)}\n`);
  return code;
}

/** What the control plane holds against the folders that it has not taken in. */
async function sayWhyMissing({ say, project }: CliContext, admin: Admin, missing: readonly string[]): Promise<void> {
  say(`  not taken in: ${missing.join(', ')} (log: ${join(project.runDir, 'control-plane.log')})`);
  const { warnings } = await admin.call('GetInfo', CALL_MS, (client, options) => client.getInfo({}, options));
  for (const warning of warnings) say(`  ${warning.replaceAll('\n', '\n  ')}`);
}

/** One step of several that do not depend on each other. What keeps it from working is said; Ctrl-C ends them all. */
async function attempt(context: CliContext, work: () => Promise<void>): Promise<boolean> {
  try {
    await work();
    return true;
  } catch (thrown) {
    if (context.signal.aborted || toInitlessError(thrown).code === 'CONTROL_PLANE_DOWN') throw thrown;
    reportError(context.stderr, thrown, false);
    return false;
  }
}

function tellOutcome(context: CliContext, service: Service): number {
  const outcome = outcomeOf(service);
  for (const line of outcome.lines) context.say(`  ${line}`);
  return outcome.exitCode;
}

/** A call that finds no instance: those that run from an earlier call are removed first, unless somebody uses them. */
async function callCold(context: CliContext, admin: Admin, service: Service): Promise<void> {
  const name = service.config?.serviceName ?? '';
  await listening(context, admin, name);
  const instances = () =>
    admin.call(`ListInstances ${name}`, CALL_MS, (client, options) =>
      client.listInstances({ serviceName: name }, options),
    );
  for (const { id, leases } of (await instances()).instances) {
    if (leases > 0) continue;
    await admin.call(`RemoveInstance ${id}`, CALL_MS, (client, options) =>
      client.removeInstance({ instance: id }, options),
    );
  }
  const url = urlOf(service);
  const answer = await call(url, HTTP_MS, context.signal);
  const serving = await reported(context, instances);
  const how = serving ? `, ${originWord(serving.origin)}` : '';
  const text = answer.body.trim().replace(/\s+/g, ' ').slice(0, SHOWN_LENGTH);
  context.say(`  ${url} -> ${answer.status} in ${formatMs(answer.ms)}${how}: ${text}`);
  if (answer.status < 200 || answer.status > 299) {
    throw new InitlessError('UPSTREAM_FAILED', `GET ${url} was answered with ${answer.status}`, {
      subject: name,
      nextStep: `'initless events --service ${name}' and 'initless service logs ${name}' say why`,
    });
  }
  if (service.state === ServiceState.SERVICE_STATE_READY && serving?.origin === Origin.ORIGIN_COLD) {
    throw new InitlessError('COLD_ORIGIN', `${name} has a checkpoint, and was started cold all the same`, {
      subject: name,
      nextStep: `'initless events --service ${name}' says why the restore failed`,
    });
  }
}

/** The instance that answered, once its host has reported it as running; undefined when that takes too long. */
async function reported(
  context: CliContext,
  instances: () => Promise<{ instances: Instance[] }>,
): Promise<Instance | undefined> {
  for (const until = Date.now() + REPORT_MS; ; ) {
    const found = (await instances()).instances.find(({ state }) => state === InstanceState.INSTANCE_STATE_RUNNING);
    if (found || Date.now() > until) return found;
    await sleep(50, context.signal);
  }
}

function urlOf({ config }: Service): string {
  return `http://localhost:${config?.hostPort}${config?.healthCheck?.path ?? '/'}`;
}

function farewell(able: readonly Service[]): string {
  return [
    'It goes on running. Try:',
    ...able.map((service) => `  curl '${urlOf(service)}'`),
    '  npx initless service ls; npx initless instance ls; npx initless events',
    '  npm run down      # stops and removes it; images and checkpoints stay',
  ].join('\n');
}
