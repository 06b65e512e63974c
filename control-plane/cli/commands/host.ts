import { type Command, InvalidArgumentError } from 'commander';
import { Host } from '../../../proto/gen/initless/v1/types.js';
import { sleep } from '../../../proto/rpc/deadline.js';
import { fromGrpcError, toInitlessError } from '../../../proto/rpc/errors.js';
import type { CliContext } from '../context.js';
import type { Register } from '../flags.js';
import { formatAge, formatBytes, hostPhaseWord } from '../format.js';
import { type HostStatus, hostDown, hostUp, listHosts } from '../machine/host.js';
import { type HostVolume, parseHostVolume } from '../machine/host-volumes.js';
import { type OutputFormat, outputOption, printValue, renderTable } from '../output.js';
import { requireRoot } from '../require-root.js';
import { addHostAdminCommands } from './host-admin.js';

const CALL_MS = 30_000;
/** How often, and how soon again, the control plane is asked to forget a host that it still takes for connected. */
const FORGET_TRIES = 40;
const FORGET_PAUSE_MS = 250;

/** Adds the host commands. `up` and `down` work on this machine; `ls` also asks the control plane, if it runs. */
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
  addHostAdminCommands(parent, register);
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
  if (removeVolume) await forget(context, name);
  context.stdout.write(removed.length === 0 ? `there is no host ${name}\n` : `removed ${removed.join(', ')}\n`);
}

/** What a host had is gone with its volume: the control plane is not to wait for it. One that does not run need not know. */
async function forget(context: CliContext, host: string): Promise<void> {
  try {
    await context.withAdmin((admin) =>
      admin.call(`RemoveHost ${host}`, context.timeoutMs(CALL_MS), async (client, options) => {
        for (let tries = 0; ; tries++) {
          try {
            return await client.removeHost({ host }, options);
          } catch (error) {
            // It is seen to be gone when its connection is.
            if (tries === FORGET_TRIES || fromGrpcError(error, 'RemoveHost').code !== 'NOT_ALLOWED') throw error;
            await sleep(FORGET_PAUSE_MS, options.signal);
          }
        }
      }),
    );
  } catch (thrown) {
    const error = toInitlessError(thrown);
    if (error.code !== 'CONTROL_PLANE_DOWN' && error.code !== 'NOT_FOUND') throw error;
  }
}

/** A host's agent in words: "connected", "draining", "cordoned", "away", "lost". */
function stateOf(host: Host): string {
  if (!host.connected) return hostPhaseWord(host.phase);
  if (host.draining) return 'draining';
  return host.cordoned ? 'cordoned' : 'connected';
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
    ['HOST', 'CONTAINER', 'AGENT', 'ENGINE', 'ADDRESS', 'SERVICES', 'RUNNING', 'PARKED', 'CPUS', 'MEMORY', 'SINCE'],
    rows.map(({ name, container, host }) => [
      name,
      container?.state ?? '',
      host ? stateOf(host) : '',
      host?.engine?.ready ? host.engine.version : (host?.engine?.error ?? ''),
      host?.leaseAddress || (container?.address ?? ''),
      host ? String(host.services) : '',
      host ? String(host.instances?.running ?? 0) : '',
      host ? String(host.instances?.parked ?? 0) : '',
      host ? String(host.cpus) : '',
      host ? `${formatBytes(host.memoryAvailable)} of ${formatBytes(host.memoryTotal)}` : '',
      formatAge(host?.since, new Date()),
    ]),
  );
}
