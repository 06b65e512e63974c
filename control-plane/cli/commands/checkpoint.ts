import type { Command } from 'commander';
import { Checkpoint, type CheckpointMemory } from '../../../proto/gen/initless/v1/types.js';
import { type CliContext, EXIT } from '../context.js';
import type { Register } from '../flags.js';
import { formatAge, formatBytes, formatMs, memoryModeWord } from '../format.js';
import { type OutputFormat, outputOption, printValue, renderFields, renderTable } from '../output.js';
import { followAndReport } from '../progress.js';
import { problemLines } from '../report-error.js';
import { present } from './service.js';

const CALL_MS = 30_000;
/** Digests of gigabytes take a while. */
const VERIFY_MS = 300_000;

/** Adds `checkpoint ls`, `create` and `inspect`. */
export function addCheckpointCommands(parent: Command, register: Register): void {
  register(
    parent
      .command('ls')
      .description('List checkpoints.')
      .option('--service <name>', "only this service's")
      .addOption(outputOption()),
    (context, options: { service?: string; output: OutputFormat }) =>
      list(context, options.service ?? '', options.output),
  );
  register(
    parent
      .command('create')
      .description("Make a new checkpoint of a service's current revision.")
      .argument('<service>')
      .option('--wait', 'show the work and wait until it ends'),
    (context, name: string, options: { wait?: boolean }) => create(context, name, options.wait ?? false),
  );
  register(
    parent
      .command('inspect')
      .description('Show a checkpoint with its files.')
      .argument('<service>')
      .option('--revision <id>', 'revision; the current one where none is given')
      .option('--host <name>', 'host that holds it; any where none is given')
      .option('--verify', 'check every digest too')
      .addOption(outputOption()),
    (context, name: string, options: InspectOptions) => inspect(context, name, options),
  );
}

interface InspectOptions {
  revision?: string;
  host?: string;
  verify?: boolean;
  output: OutputFormat;
}

async function list(context: CliContext, serviceName: string, format: OutputFormat): Promise<void> {
  const { checkpoints } = await context.withAdmin((admin) =>
    admin.call('ListCheckpoints', context.timeoutMs(CALL_MS), (client, options) =>
      client.listCheckpoints({ serviceName }, options),
    ),
  );
  printValue(context.stdout, format, checkpoints.map(Checkpoint.toJSON), () =>
    renderTable(
      ['SERVICE', 'REVISION', 'HOST', 'SIZE', 'AGE', 'CRIU', 'STATE', 'PATH'],
      checkpoints.map((checkpoint) => [
        checkpoint.service,
        checkpoint.revision,
        checkpoint.host,
        formatBytes(checkpoint.size),
        formatAge(checkpoint.createdAt, new Date()),
        checkpoint.fingerprint?.criu ?? '',
        checkpoint.quarantined ? `quarantined: ${checkpoint.quarantined.code}` : 'sealed',
        checkpoint.path,
      ]),
    ),
  );
}

async function create(context: CliContext, name: string, wait: boolean): Promise<number> {
  return context.withAdmin(async (admin) => {
    await admin.call(`CreateCheckpoint ${name}`, context.timeoutMs(CALL_MS), (client, options) =>
      client.createCheckpoint({ serviceName: name }, options),
    );
    if (wait) return followAndReport(context, admin, name);
    context.say(`a checkpoint of ${name} is being made; 'initless service output ${name}' follows the work`);
    return EXIT.ok;
  });
}

/** Ends with 1 when the checkpoint is quarantined, so that a script can tell. */
async function inspect(context: CliContext, name: string, options: InspectOptions): Promise<number> {
  const { revision = '', host = '', verify = false } = options;
  const answer = await context.withAdmin((admin) =>
    admin.call(`GetCheckpoint ${name}`, context.timeoutMs(verify ? VERIFY_MS : CALL_MS), (client, callOptions) =>
      client.getCheckpoint({ serviceName: name, revision, verify, host }, callOptions),
    ),
  );
  const checkpoint = present(answer.checkpoint, 'checkpoint');
  printValue(context.stdout, options.output, Checkpoint.toJSON(checkpoint), () =>
    describeCheckpoint(checkpoint, verify),
  );
  return checkpoint.quarantined ? EXIT.failed : EXIT.ok;
}

function describeCheckpoint(checkpoint: Checkpoint, verified: boolean): string {
  const machine = checkpoint.fingerprint;
  const good = verified ? 'sealed; every digest is right' : 'sealed';
  return [
    renderFields([
      ['service', checkpoint.service],
      ['revision', checkpoint.revision],
      ['state', checkpoint.quarantined ? 'quarantined' : good],
      ['host', checkpoint.host],
      ['path', checkpoint.path],
      ['format', String(checkpoint.format)],
      ['size', formatBytes(checkpoint.size)],
      ['created', checkpoint.createdAt?.toISOString() ?? ''],
      ['image', checkpoint.imageId],
      ['kernel', machine?.kernel ?? ''],
      ['CRIU', machine?.criu ?? ''],
      ['runc', machine?.runc ?? ''],
      ['CPU', machine ? `${machine.cpuModel} (${machine.arch}, ${machine.cpuFlags.length} features)` : ''],
      ['made in', checkpoint.stages.map(({ stage, ms }) => `${stage} ${formatMs(ms)}`).join(', ')],
      ...memoryFields(checkpoint.memory),
    ]),
    ...(checkpoint.quarantined ? problemLines(checkpoint.quarantined).map((line) => `  ${line}`) : []),
    '',
    ...(checkpoint.memory ? memoryTables(checkpoint.memory) : []),
    renderTable(
      ['FILE', 'SIZE', 'DIGEST'],
      checkpoint.files.map((file) => [file.path, formatBytes(file.size), file.digest]),
    ),
  ].join('\n');
}

function memoryFields(memory: CheckpointMemory | undefined): [string, string][] {
  if (memory === undefined) return [];
  const { mode, reason, guarded, prefetchedBytes } = memory;
  const guard = guarded ? 'on: discarding memory and mremap are refused' : 'off';
  const ahead: [string, string][] = prefetchedBytes > 0 ? [['read ahead', formatBytes(prefetchedBytes)]] : [];
  return [['memory', `${memoryModeWord(mode)}: ${reason}`], ['guard', guard], ...ahead];
}

/** What was tried, and what becomes of each process's memory. */
function memoryTables({ trials, processes }: CheckpointMemory): string[] {
  const number = (ms: number) => (ms === 0 ? '' : formatMs(ms));
  const tried = renderTable(
    ['TRIED', 'RESULT', 'COMPARED', 'RESTORE', 'FIRST ANSWER', 'OWN MEMORY'],
    trials.map(({ mode, problem, comparedBytes, restoreMs, firstAnswerMs, ownBytes }) => [
      memoryModeWord(mode),
      problem ? `${problem.code}: ${problem.message}` : 'right',
      comparedBytes === 0 ? '' : formatBytes(comparedBytes),
      number(restoreMs),
      number(firstAnswerMs),
      ownBytes === 0 ? '' : formatBytes(ownBytes),
    ]),
  );
  const rows = processes.flatMap(({ pid, mapped, copied }) => [
    ...(mapped ? [[String(pid), 'mapped', String(mapped.areas), formatBytes(mapped.bytes), '']] : []),
    ...copied.map(({ areas, bytes, reason }) => [String(pid), 'copied', String(areas), formatBytes(bytes), reason]),
  ]);
  const shares = renderTable(['PROCESS', 'MEMORY', 'AREAS', 'SIZE', 'COPIED BECAUSE'], rows);
  return [tried, '', ...(rows.length > 0 ? [shares, ''] : [])];
}
