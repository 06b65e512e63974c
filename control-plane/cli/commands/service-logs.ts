import type { Command } from 'commander';
import { LogStream } from '../../../proto/gen/initless/v1/types.js';
import type { CliContext } from '../context.js';
import { parseWhole, type Register } from '../flags.js';

interface LogsOptions {
  follow?: boolean;
  tail: number;
  instance?: string;
}

/** Adds `service logs`. */
export function addServiceLogsCommand(service: Command, register: Register): void {
  register(
    service
      .command('logs')
      .summary("show what a service's instances printed")
      .description(
        "Shows what a service's instances printed, their standard output on this one's, their standard error likewise.",
      )
      .argument('<service>')
      .option('-f, --follow', 'go on as lines are added')
      .option('--tail <lines>', 'at most this many lines from the end of each log; 0: all', parseWhole(0, 1e9), 0)
      .option('--instance <id>', 'only this instance'),
    (context, name: string, options: LogsOptions) => logs(context, name, options),
  );
}

async function logs(context: CliContext, name: string, options: LogsOptions): Promise<void> {
  const { follow = false, tail, instance = '' } = options;
  await context.withAdmin(async (admin) => {
    let several = '';
    for await (const piece of admin.stream(
      `ReadLogs ${name}`,
      follow ? undefined : context.timeoutMs(60_000),
      (client, callOptions) => client.readLogs({ serviceName: name, instance, tail, follow }, callOptions),
    )) {
      // Which instance speaks is said, on stderr, when it changes: what is printed itself stays as it was.
      if (instance === '' && piece.instance !== several) {
        several = piece.instance;
        context.say(`==> ${piece.instance} <==`);
      }
      (piece.stream === LogStream.LOG_STREAM_STDERR ? context.stderr : context.stdout).write(piece.data);
    }
  });
}
