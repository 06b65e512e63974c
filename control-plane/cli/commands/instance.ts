import type { Command } from 'commander';
import type { AdminServiceClient } from '../../../proto/gen/initless/v1/admin.js';
import { Instance } from '../../../proto/gen/initless/v1/types.js';
import type { CallOptions } from '../admin.js';
import type { CliContext } from '../context.js';
import type { Register } from '../flags.js';
import { formatAge, formatMs, instanceStateWord, memoryModeWord, originWord } from '../format.js';
import { type OutputFormat, outputOption, printValue, renderTable } from '../output.js';
import { present } from './service.js';

const CALL_MS = 30_000;

/** Adds `instance ls`, `park`, `thaw` and `rm`. */
export function addInstanceCommands(parent: Command, register: Register): void {
  register(
    parent
      .command('ls')
      .description('List instances.')
      .option('--service <name>', "only this service's")
      .addOption(outputOption()),
    (context, options: { service?: string; output: OutputFormat }) =>
      list(context, options.service ?? '', options.output),
  );
  register(
    parent.command('park').description('Freeze a running instance.').argument('<instance>'),
    (context, id: string) =>
      change(context, `ParkInstance ${id}`, (client, options) => client.parkInstance({ instance: id }, options)),
  );
  register(
    parent.command('thaw').description('Let a parked instance run again.').argument('<instance>'),
    (context, id: string) =>
      change(context, `ThawInstance ${id}`, (client, options) => client.thawInstance({ instance: id }, options)),
  );
  register(
    parent
      .command('rm')
      .description('Remove an instance now; requests in flight on it are cut.')
      .argument('<instance>'),
    (context, id: string) =>
      change(context, `RemoveInstance ${id}`, (client, options) => client.removeInstance({ instance: id }, options)),
  );
}

async function list(context: CliContext, serviceName: string, format: OutputFormat): Promise<void> {
  const { instances } = await context.withAdmin((admin) =>
    admin.call('ListInstances', context.timeoutMs(CALL_MS), (client, options) =>
      client.listInstances({ serviceName }, options),
    ),
  );
  printValue(context.stdout, format, instances.map(Instance.toJSON), () => instanceTable(instances));
}

function instanceTable(instances: readonly Instance[]): string {
  return renderTable(
    ['INSTANCE', 'SERVICE', 'STATE', 'ORIGIN', 'MEMORY', 'HOST', 'ADDRESS', 'LEASES', 'AGE', 'START'],
    instances.map((instance) => [
      instance.id,
      instance.service,
      instanceStateWord(instance.state),
      originWord(instance.origin),
      instance.memory === 0 ? '' : memoryModeWord(instance.memory),
      instance.host,
      instance.address,
      String(instance.leases),
      formatAge(instance.createdAt, new Date()),
      instance.stages.length === 0 ? '' : formatMs(instance.stages.reduce((sum, { ms }) => sum + ms, 0)),
    ]),
  );
}

async function change(
  context: CliContext,
  pending: string,
  work: (client: AdminServiceClient, options: CallOptions) => Promise<{ instance: Instance | undefined }>,
): Promise<void> {
  const { instance } = await context.withAdmin((admin) => admin.call(pending, context.timeoutMs(CALL_MS), work));
  const { id, state } = present(instance, 'instance');
  context.stdout.write(`${id} is ${instanceStateWord(state)}\n`);
}
