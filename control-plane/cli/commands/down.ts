import type { Command } from 'commander';
import type { CliContext } from '../context.js';
import type { Register } from '../flags.js';
import { requireRoot } from '../require-root.js';
import { tearDown } from '../teardown.js';

/** Adds `down`. */
export function addDownCommand(program: Command, register: Register): void {
  register(
    program
      .command('down')
      .summary('stop and remove what runs')
      .description(
        "Stops control plane, gateway and hosts and removes them, with the network. Images, the hosts' volumes, which hold " +
          'checkpoints, and the state folder stay. The engine is stopped only if it was started by us.',
      )
      .option('--all', 'remove images, volumes and state as well'),
    (context, options: { all?: boolean }) => down(context, options.all ?? false),
  );
}

async function down(context: CliContext, all: boolean): Promise<void> {
  requireRoot("'initless down'");
  await tearDown(context, all);
  context.stdout.write(
    all
      ? `nothing of the project ${context.project.name} is left\n`
      : `the project ${context.project.name} is down; images and caches stay ('initless down --all' removes them)\n`,
  );
}
