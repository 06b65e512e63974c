import type { Command } from 'commander';
import { Instance, Service } from '../../../proto/gen/initless/v1/types.js';
import { InitlessError } from '../../../proto/rpc/errors.js';
import type { CliContext } from '../context.js';
import type { Register } from '../flags.js';
import { formatAge, formatMs, originWord, serviceStateWord } from '../format.js';
import { type OutputFormat, outputOption, printValue, renderFields, renderTable } from '../output.js';
import { problemLines } from '../report-error.js';

const CALL_MS = 30_000;
/** A wake-up may fall back to a start from the image, whose own bound is 120 s unless a service says otherwise. */
const WAKE_MS = 180_000;

/** Adds `service ls`, `inspect`, `wake` and `rm`. */
export function addServiceCommands(service: Command, register: Register): void {
  register(
    service.command('ls').description('List services.').addOption(outputOption()),
    (context, options: { output: OutputFormat }) => list(context, options.output),
  );
  register(
    service.command('inspect').description('Show one service.').argument('<service>').addOption(outputOption()),
    (context, name: string, options: { output: OutputFormat }) => inspect(context, name, options.output),
  );
  register(
    service
      .command('wake')
      .description('Bring an instance of a service up without a request.')
      .argument('<service>')
      .option('--host <name>', 'on this host; the one that requests are sent to first where none is given')
      .addOption(outputOption()),
    (context, name: string, options: { host?: string; output: OutputFormat }) =>
      wake(context, name, options.host ?? '', options.output),
  );
  register(
    service
      .command('rm')
      .description(
        'Forget a service and remove its instances, checkpoints and named volumes, with all that is in them.',
      )
      .argument('<service>'),
    (context, name: string) => remove(context, name),
  );
}

async function list(context: CliContext, format: OutputFormat): Promise<void> {
  const { services } = await context.withAdmin((admin) =>
    admin.call('ListServices', context.timeoutMs(CALL_MS), (client, options) => client.listServices({}, options)),
  );
  printValue(context.stdout, format, services.map(Service.toJSON), () =>
    renderTable(
      ['SERVICE', 'STATE', 'PORT', 'REVISION', 'RUNNING', 'PARKED', 'HOSTS', 'UPDATED', 'PROBLEM'],
      services.map((service) => [
        service.config?.serviceName ?? '',
        serviceStateWord(service.state),
        String(service.config?.hostPort ?? ''),
        service.current?.id ?? '',
        String(service.instances?.running ?? 0),
        String(service.instances?.parked ?? 0),
        service.hosts.map(({ host }) => host).join(' '),
        formatAge(service.updatedAt, new Date()),
        problemOfService(service)?.code ?? '',
      ]),
    ),
  );
}

function problemOfService(service: Service) {
  const listener = service.listeners.find(({ error }) => error !== '');
  return (
    service.problem ??
    service.pending?.problem ??
    service.current?.problem ??
    (listener && { code: 'PORT_TAKEN', message: listener.error, nextStep: '', outputTail: [] })
  );
}

async function inspect(context: CliContext, name: string, format: OutputFormat): Promise<void> {
  const { service } = await context.withAdmin((admin) =>
    admin.call(`GetService ${name}`, context.timeoutMs(CALL_MS), (client, options) =>
      client.getService({ serviceName: name }, options),
    ),
  );
  const found = present(service, 'service');
  printValue(context.stdout, format, Service.toJSON(found), () => describeService(found));
}

function describeService(service: Service): string {
  const config = service.config;
  const check = config?.healthCheck;
  const fields: [string, string][] = [
    ['service', config?.serviceName ?? ''],
    ['state', serviceStateWord(service.state)],
    ['port', `${config?.hostPort ?? ''} (${config?.servicePort ?? ''} inside)`],
    ['image', `${config?.imageName ?? ''}:${config?.tagName ?? ''}`],
    ['start command', config?.startCmd.join(' ') || "the image's own"],
    ['message before the dump', config?.msgCheckpoint ?? ''],
    ['health check', check ? `GET ${check.path}, ${check.wanted || 'any 2xx'}, ${formatMs(check.timeoutMs)}` : ''],
    ['idle timeout', formatMs(config?.idleTimeoutMs ?? 0)],
    ['requests per instance', String(config?.maxConcurrency ?? '')],
    ['instances at most', String(config?.maxPoolSize ?? '')],
    ['pool', poolText(service)],
    ['folder', service.folder],
    ['made on', service.host],
    ...service.hosts.map(({ host, parked, maxRunning, instances, note }): [string, string] => [
      `host ${host}`,
      note ||
        `serves: ${instances?.running ?? 0} of ${maxRunning} running, ${instances?.parked ?? 0} of ${parked} parked`,
    ]),
    ['revision', service.current?.id ?? ''],
    ['revision in the making', service.pending?.id ?? ''],
    ['earlier revisions', service.previous.map(({ id }) => id).join(' ')],
    ['image id', service.current?.imageId ?? ''],
    ['instances', `${service.instances?.running ?? 0} running, ${service.instances?.parked ?? 0} parked`],
    ['updated', service.updatedAt?.toISOString() ?? ''],
    ...service.listeners.map(({ gateway, address, listening, error }): [string, string] => [
      `gateway ${gateway}`,
      listening ? `listens on ${address}` : `does not listen on ${address}: ${error}`,
    ]),
  ];
  const problem = service.problem ?? service.pending?.problem ?? service.current?.problem;
  return [
    renderFields(fields),
    ...(problem ? ['problem:', ...problemLines(problem).map((line) => `  ${line}`)] : []),
  ].join('\n');
}

/** What is to be parked: "2 parked", or "auto: 2 parked; its pauses last 10 to 12 min". */
function poolText({ pool }: Service): string {
  if (pool === undefined) return '';
  return pool.auto ? `auto: ${pool.parked} parked; ${pool.reason}` : `${pool.parked} parked`;
}

async function wake(context: CliContext, name: string, host: string, format: OutputFormat): Promise<void> {
  const { instance } = await context.withAdmin((admin) =>
    admin.call(`WakeService ${name}`, context.timeoutMs(WAKE_MS), (client, options) =>
      client.wakeService({ serviceName: name, host }, options),
    ),
  );
  const found = present(instance, 'instance');
  printValue(context.stdout, format, Instance.toJSON(found), () =>
    renderFields([
      ['instance', found.id],
      ['origin', originWord(found.origin)],
      ['host', found.host],
      ['address', found.address],
      ['stages', found.stages.map(({ stage, ms }) => `${stage} ${formatMs(ms)}`).join(', ')],
    ]),
  );
  // A cold start is an answer too, but not what was hoped for.
  if (found.problem) context.stderr.write(`${problemLines(found.problem).join('\n')}\n`);
}

async function remove(context: CliContext, name: string): Promise<void> {
  await context.withAdmin((admin) =>
    admin.call(`RemoveService ${name}`, context.timeoutMs(60_000), (client, options) =>
      client.removeService({ serviceName: name }, options),
    ),
  );
  context.stdout.write(`${name} is removed\n`);
}

/** What an answer must hold. Errors: INTERNAL when it does not. */
export function present<T>(value: T | undefined, what: string): T {
  if (value === undefined) throw new InitlessError('INTERNAL', `the control plane answered without the ${what}`);
  return value;
}
