import type { Command } from 'commander';
import { GetInfoResponse } from '../../../proto/gen/initless/v1/admin.js';
import { Host } from '../../../proto/gen/initless/v1/types.js';
import { toInitlessError } from '../../../proto/rpc/errors.js';
import { type CliContext, EXIT } from '../context.js';
import type { Register } from '../flags.js';
import { formatAge } from '../format.js';
import { type OutputFormat, outputOption, printValue, renderTable } from '../output.js';
import { type PartStatus, partStatuses } from '../supervisor/control.js';
import { RunFiles } from '../supervisor/files.js';
import { hostRows, hostTable } from './host.js';

/** Adds `status`. */
export function addStatusCommand(program: Command, register: Register): void {
  register(
    program
      .command('status')
      .summary("show what 'initless up' keeps running, and the hosts")
      .description(
        "Shows control plane and gateway as 'initless up' keeps them running, the hosts, and what the control plane warns " +
          'of. Ends with 1 when control plane or gateway is not ready.',
      )
      .addOption(outputOption()),
    (context, options: { output: OutputFormat }) => status(context, options.output),
  );
}

async function status(context: CliContext, format: OutputFormat): Promise<number> {
  const files = new RunFiles(context.project.runDir);
  const supervisor = files.supervisor();
  const parts = await partStatuses(files);
  const { rows } = await hostRows(context);
  const info = await infoOf(context);
  const value = {
    project: context.project.name,
    supervisor: supervisor ? { pid: supervisor.pid, log: files.log('supervisor') } : null,
    controlPlane: info ? GetInfoResponse.toJSON(info) : null,
    parts: parts.map((part) => ({
      name: part.name,
      state: stateOf(part),
      pid: part.process?.pid ?? null,
      since: part.since,
      restarts: part.restarts,
      lastEnd: part.lastEnd,
      log: part.log,
    })),
    hosts: rows.map(({ name, container, host }) => ({
      name,
      container: container ?? null,
      host: host ? Host.toJSON(host) : null,
    })),
  };
  printValue(context.stdout, format, value, () => `${partTable(parts)}\n\n${hostTable(rows)}`);
  for (const warning of info?.warnings ?? []) context.say(`warning: ${warning}`);
  if (!supervisor) {
    context.say(
      parts.some(({ process }) => process)
        ? "the supervisor was killed; the parts run on unwatched until 'initless up' starts them anew"
        : "nothing is kept running; 'initless up' starts control plane and gateway",
    );
  }
  return supervisor && parts.every(({ ready }) => ready) ? EXIT.ok : EXIT.failed;
}

/** What the control plane says of itself; undefined when it does not run. */
async function infoOf(context: CliContext): Promise<GetInfoResponse | undefined> {
  try {
    return await context.withAdmin((admin) =>
      admin.call('GetInfo', context.timeoutMs(10_000), (client, options) => client.getInfo({}, options)),
    );
  } catch (thrown) {
    if (toInitlessError(thrown).code !== 'CONTROL_PLANE_DOWN') throw thrown;
    return undefined;
  }
}

function stateOf(part: PartStatus): string {
  if (part.ready) return 'ready';
  return part.process ? 'not ready' : 'not running';
}

function partTable(parts: readonly PartStatus[]): string {
  return renderTable(
    ['PART', 'STATE', 'PID', 'SINCE', 'RESTARTS', 'LAST END', 'LOG'],
    parts.map((part) => [
      part.name,
      stateOf(part),
      part.process ? String(part.process.pid) : '',
      part.process ? formatAge(new Date(part.since), new Date()) : '',
      String(part.restarts),
      part.lastEnd,
      part.log,
    ]),
  );
}
