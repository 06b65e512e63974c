import type { Command } from 'commander';
import { ExplainServiceResponse } from '../../../proto/gen/initless/v1/admin.js';
import type { CliContext } from '../context.js';
import type { Register } from '../flags.js';
import { type OutputFormat, outputOption, printValue } from '../output.js';

const CALL_MS = 30_000;

/** Adds `service explain` and `rollback`. */
export function addServicePlacementCommands(service: Command, register: Register): void {
  register(
    service
      .command('explain')
      .summary('say why a service is where it is')
      .description('Says why a service is on its hosts and not on others, and what each is to keep parked and may run.')
      .argument('<service>')
      .addOption(outputOption()),
    (context, name: string, options: { output: OutputFormat }) => explain(context, name, options.output),
  );
  register(
    service
      .command('rollback')
      .summary('go back to an earlier revision')
      .description(
        "Goes back to an earlier revision of a service, at once where hosts still hold it. What is in the service's folder is " +
          'not taken in again until it changes or is applied.',
      )
      .argument('<service>')
      .option(
        '--revision <id>',
        'revision, as `service inspect` lists them; the one that served before where none is given',
      ),
    (context, name: string, options: { revision?: string }) => rollback(context, name, options.revision ?? ''),
  );
}

async function explain(context: CliContext, serviceName: string, format: OutputFormat): Promise<void> {
  const answer = await context.withAdmin((admin) =>
    admin.call(`ExplainService ${serviceName}`, context.timeoutMs(CALL_MS), (client, options) =>
      client.explainService({ serviceName }, options),
    ),
  );
  printValue(context.stdout, format, ExplainServiceResponse.toJSON(answer), () => explanation(serviceName, answer));
}

function explanation(service: string, { reasons, hosts }: ExplainServiceResponse): string {
  return [
    `${service}:`,
    ...reasons.map((reason) => `  - ${reason}`),
    ...hosts.flatMap(({ host, placed, reasons: why, parked, maxRunning }) => [
      placed ? `${host}: placed; ${parked} parked, ${maxRunning} running at most` : `${host}: not placed`,
      ...why.map((reason) => `  - ${reason}`),
    ]),
  ].join('\n');
}

async function rollback(context: CliContext, serviceName: string, revision: string): Promise<void> {
  const { service } = await context.withAdmin((admin) =>
    admin.call(`RollbackService ${serviceName}`, context.timeoutMs(CALL_MS), (client, options) =>
      client.rollbackService({ serviceName, revision }, options),
    ),
  );
  context.stdout.write(`${serviceName} goes back to revision ${service?.current?.id ?? ''}\n`);
}
