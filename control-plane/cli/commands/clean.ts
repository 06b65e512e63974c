import type { Command } from 'commander';
import type { CliContext } from '../context.js';
import type { Register } from '../flags.js';
import { type OutputFormat, outputOption, printValue, renderTable } from '../output.js';
import { requireRoot } from '../require-root.js';
import { takeInventory, tearDown } from '../teardown.js';

/** Adds `clean`. */
export function addCleanCommand(program: Command, register: Register): void {
  register(
    program
      .command('clean')
      .summary('list what is ours, and remove it')
      .description(
        "Lists what is the project's on this machine - processes, containers, networks, volumes, images, mounts, cgroups, " +
          'the state folder - and removes exactly that. Also: initless -clean',
      )
      .option('--dry-run', 'only list it')
      .addOption(outputOption()),
    (context, options: { dryRun?: boolean; output: OutputFormat }) =>
      clean(context, options.dryRun ?? false, options.output),
  );
}

async function clean(context: CliContext, dryRun: boolean, format: OutputFormat): Promise<void> {
  requireRoot("'initless clean'");
  const { owned, engine } = await takeInventory(context);
  printValue(
    context.stdout,
    format,
    owned.map(({ kind, name }) => ({ kind, name })),
    () =>
      renderTable(
        ['KIND', 'NAME'],
        owned.map(({ kind, name }) => [kind, name]),
      ),
  );
  if (engine) context.say(`what the Docker engine holds is not listed: ${engine}`);
  if (dryRun) return;
  await tearDown(context, true);
  context.say(`nothing of the project ${context.project.name} is left`);
}
