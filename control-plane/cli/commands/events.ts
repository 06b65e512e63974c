import type { Command } from 'commander';
import { stringify } from 'yaml';
import { Event, Origin } from '../../../proto/gen/initless/v1/types.js';
import type { CliContext } from '../context.js';
import { parseWhole, type Register } from '../flags.js';
import { formatMs, formatTime, originWord, plainText } from '../format.js';
import { type OutputFormat, outputOption } from '../output.js';

interface EventsOptions {
  follow?: boolean;
  last: number;
  service?: string;
  output: OutputFormat;
}

/** Adds `events`. */
export function addEventsCommand(program: Command, register: Register): void {
  register(
    program
      .command('events')
      .summary('show what happened, and what happens')
      .description(
        'Shows the last events, and with -f those that come. JSON is one object per line, YAML one document per event.',
      )
      .option('-f, --follow', 'go on as events come')
      .option('--last <n>', 'start with this many of the last events', parseWhole(0, 1000), 20)
      .option('--service <name>', "only this service's")
      .addOption(outputOption()),
    (context, options: EventsOptions) => events(context, options),
  );
}

async function events(context: CliContext, options: EventsOptions): Promise<void> {
  const { follow = false, last, service = '' } = options;
  if (!follow && last === 0) return;
  await context.withAdmin(async (admin) => {
    for await (const { event } of admin.stream(
      'WatchEvents',
      follow ? undefined : context.timeoutMs(30_000),
      (client, callOptions) => client.watchEvents({ serviceName: service, last, endAfterLast: !follow }, callOptions),
    )) {
      if (event) context.stdout.write(`${eventText(event, options.output)}\n`);
    }
  });
}

function eventText(event: Event, format: OutputFormat): string {
  if (format === 'json') return JSON.stringify(Event.toJSON(event));
  if (format === 'yaml') return `---\n${stringify(Event.toJSON(event)).trimEnd()}`;
  return eventLine(event);
}

/** An event in one line: time, kind, what it is about, how it came to be, what it says, step times, why. */
export function eventLine(event: Event): string {
  const subject = event.instance || event.service || event.host;
  const origin = event.origin === Origin.ORIGIN_UNSPECIFIED ? '' : originWord(event.origin);
  const stages = event.stages.map(({ stage, ms }) => `${stage} ${formatMs(ms)}`).join(', ');
  const problem = event.problem && event.problem.message !== event.message ? `: ${event.problem.message}` : '';
  const parts = [
    formatTime(event.at),
    event.kind.padEnd(20),
    // A message that names these itself need not be told twice.
    event.message.includes(subject) ? '' : subject,
    event.message.includes(origin) ? '' : `(${origin})`,
    `${event.message}${problem}`,
    stages ? `[${stages}]` : '',
  ];
  return plainText(parts.filter((part) => part !== '').join('  '));
}
