import { type Command, InvalidArgumentError } from 'commander';
import { Host } from '../../../proto/gen/initless/v1/types.js';
import { toInitlessError } from '../../../proto/rpc/errors.js';
import type { CliContext } from '../context.js';
import type { Register } from '../flags.js';
import { formatAge, formatBytes } from '../format.js';
import { type HostStatus, hostDown, hostUp, listHosts } from '../machine/host.js';
import { type HostVolume, parseHostVolume } from '../machine/host-volumes.js';
import { type OutputFormat, outputOption, printValue, renderTable } from '../output.js';
import { requireRoot } from '../require-root.js';

/** Adds `host up`, `down` and `ls`. The first two work on this machine; `ls` also asks the control plane, if it runs. */
export function addHostCommands(parent: Command, register: Register): void {
  register(
    parent
      .command('up')
      .summary('start a host on this machine')
      .description(
        'Starts a host on this machine, with what it needs before, and returns when it is ready. One that is there keeps its volumes.',
      )
      .argument('<name>')
      .option(
        '--volume <machine:host[:ro]>',
        'a folder of this machine that services on the host may have as a volume, and its path there; may be given again',
        collectVolume,
      ),
    (context, name: string, options: { volume?: HostVolume[] }) => up(context, name, options.volume),
  );
  register(
    parent
      .command('down')
      .summary('remove a host from this machine')
      .description('Removes a host from this machine. Its volume, with images and checkpoints, stays.')
      .argument('<name>')
      .option('--volume', 'remove its volume too'),
    (context, name: string, options: { volume?: boolean }) => down(context, name, options.volume ?? false),
  );
  register(
    parent
      .command('ls')
      .summary('list hosts')
      .description(
        'Lists hosts: their containers on this machine, and what the control plane, if it runs, knows of them.',
      )
      .addOption(outputOption()),
    (context, options: { output: OutputFormat }) => list(context, options.output),
  );
}

function collectVolume(text: string, before: HostVolume[] = []): HostVolume[] {
  try {
    return [...before, parseHostVolume(text)];
  } catch (error) {
    throw new InvalidArgumentError(toInitlessError(error).message);
  }
}

async function up(context: CliContext, name: string, volumes: HostVolume[] | undefined): Promise<void> {
  requireRoot("'initless host up'");
  const status = await hostUp(
    { project: context.project.name, host: name, controlPlanePort: context.project.ports.grpc, volumes },
    { signal: context.signal, progress: context.say },
  );
  context.stdout.write(`${name} is up at ${status.address} (${status.action})\n`);
}

async function down(context: CliContext, name: string, removeVolume: boolean): Promise<void> {
  requireRoot("'initless host down'");
  const { removed } = await hostDown(context.project.name, name, {
    signal: context.signal,
    progress: context.say,
    removeVolume,
  });
  context.stdout.write(removed.length === 0 ? `there is no host ${name}\n` : `removed ${removed.join(', ')}\n`);
}

/** One host as this machine's engine and the control plane see it; either may know nothing of it. */
export interface HostRow {
  name: string;
  container: HostStatus | undefined;
  host: Host | undefined;
}

/** Both views of the hosts, by name. */
export function joinHosts(containers: readonly HostStatus[], hosts: readonly Host[]): HostRow[] {
  const names = new Set([...containers.map(({ host }) => host), ...hosts.map(({ name }) => name)]);
  return [...names].sort().map((name) => ({
    name,
    container: containers.find(({ host }) => host === name),
    host: hosts.find((host) => host.name === name),
  }));
}

/** Hosts as {@link joinHosts} gives them; with no control plane running, `controlPlane` says why it is not asked. */
export async function hostRows(context: CliContext): Promise<{ rows: HostRow[]; controlPlane: string }> {
  const containers = await listHosts(context.project.name, { signal: context.signal });
  try {
    const { hosts } = await context.withAdmin((admin) =>
      admin.call('ListHosts', context.timeoutMs(10_000), (client, options) => client.listHosts({}, options)),
    );
    return { rows: joinHosts(containers, hosts), controlPlane: '' };
  } catch (thrown) {
    const error = toInitlessError(thrown);
    if (error.code !== 'CONTROL_PLANE_DOWN') throw thrown;
    return { rows: joinHosts(containers, []), controlPlane: error.message };
  }
}

async function list(context: CliContext, format: OutputFormat): Promise<void> {
  const { rows, controlPlane } = await hostRows(context);
  const value = rows.map(({ name, container, host }) => ({
    name,
    container: container ?? null,
    host: host ? Host.toJSON(host) : null,
  }));
  printValue(context.stdout, format, value, () => hostTable(rows));
  if (controlPlane) context.say(`${controlPlane}: what agents report is missing`);
}

/** The table of `initless host ls`. */
export function hostTable(rows: readonly HostRow[]): string {
  return renderTable(
    ['HOST', 'CONTAINER', 'AGENT', 'ENGINE', 'ADDRESS', 'RUNNING', 'PARKED', 'CPUS', 'MEMORY', 'SINCE'],
    rows.map(({ name, container, host }) => [
      name,
      container?.state ?? '',
      host ? (host.connected ? 'connected' : 'lost') : '',
      host?.engine?.ready ? host.engine.version : (host?.engine?.error ?? ''),
      host?.leaseAddress || (container?.address ?? ''),
      host ? String(host.instances?.running ?? 0) : '',
      host ? String(host.instances?.parked ?? 0) : '',
      host ? String(host.cpus) : '',
      host ? `${formatBytes(host.memoryAvailable)} of ${formatBytes(host.memoryTotal)}` : '',
      formatAge(host?.since, new Date()),
    ]),
  );
}
