import type { Command } from 'commander';
import type { CliContext } from '../context.js';
import { parseSeconds, type Register } from '../flags.js';

const CALL_MS = 30_000;
/** Of a drain whose bound is not given; the control plane's own. */
const DRAIN_SECONDS = 300;
/** What a drain's last message may take after its deadline: removing what is left. */
const SLACK_MS = 60_000;

/** Adds `host cordon`, `uncordon`, `drain` and `rm`: what the control plane is told of a host. */
export function addHostAdminCommands(parent: Command, register: Register): void {
  register(
    parent
      .command('cordon')
      .summary('give a host no new services')
      .description('Gives a host no new services and no new copies. What it serves it goes on serving.')
      .argument('<name>'),
    (context, host: string) =>
      tell(context, `${host} is cordoned`, `CordonHost ${host}`, (client, options) =>
        client.cordonHost({ host }, options),
      ),
  );
  register(
    parent.command('uncordon').description('Takes a cordon, or a drain, back.').argument('<name>'),
    (context, host: string) =>
      tell(context, `${host} takes services again`, `UncordonHost ${host}`, (client, options) =>
        client.uncordonHost({ host }, options),
      ),
  );
  register(
    parent
      .command('drain')
      .summary('empty a host')
      .description(
        'Empties a host: its services go to other hosts, its instances end when no request needs them any more. Returns when ' +
          'it is empty; the host stays cordoned. At the deadline nothing is cut, unless --force is given.',
      )
      .argument('<name>')
      .option('--deadline <seconds>', `bound (default: ${DRAIN_SECONDS})`, parseSeconds)
      .option(
        '--force',
        'take services away that can go nowhere else, and at the deadline remove what is left, with the requests in flight',
      ),
    (context, host: string, options: { deadline?: number; force?: boolean }) => drain(context, host, options),
  );
  register(
    parent
      .command('rm')
      .summary('forget a host')
      .description('Has the control plane forget a host that is not connected and will not come back.')
      .argument('<name>'),
    (context, host: string) =>
      tell(context, `${host} is forgotten`, `RemoveHost ${host}`, (client, options) =>
        client.removeHost({ host }, options),
      ),
  );
}

type Call = Parameters<Parameters<Parameters<CliContext['withAdmin']>[0]>[0]['call']>[2];

async function tell(context: CliContext, done: string, pending: string, call: Call): Promise<void> {
  await context.withAdmin((admin) => admin.call(pending, context.timeoutMs(CALL_MS), call));
  context.stdout.write(`${done}\n`);
}

async function drain(
  context: CliContext,
  host: string,
  { deadline = DRAIN_SECONDS, force = false }: { deadline?: number; force?: boolean },
): Promise<void> {
  await context.withAdmin(async (admin) => {
    const progress = admin.stream(`the drain of ${host}`, deadline * 1_000 + SLACK_MS, (client, options) =>
      client.drainHost({ host, deadlineMs: Math.ceil(deadline * 1_000), force }, options),
    );
    for await (const { message, done } of progress) {
      if (done) context.stdout.write(`${message}\n`);
      else context.say(message);
    }
  });
}
