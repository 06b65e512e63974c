import type { Command } from 'commander';
import { bringUp, type UpFlags } from '../bring-up.js';
import type { CliContext } from '../context.js';
import { parseWhole, type Register } from '../flags.js';
import { engineClient, engineUp } from '../machine/engine.js';
import { ensureNetwork } from '../machine/network.js';
import { requireRoot } from '../require-root.js';

/** Adds `up`. */
export function addUpCommand(program: Command, register: Register): void {
  register(
    program
      .command('up')
      .summary('start control plane and gateways, and keep them running')
      .description(
        'Starts control plane and gateways in the background, with log files, and starts them again when they end. ' +
          'Where nothing is given they run with the settings of the last time, else with ./settings.yaml.',
      )
      .option('--settings <file>', 'settings file')
      .option('--code-dir <dir>', 'folder that services are read from; wins over the settings file')
      .option(
        '--gateways <count>',
        'gateways; the second listens on 127.0.0.2, and so on (default: as the last time, else 1)',
        parseWhole(1, 9),
      )
      .option('--redis', "keep a redis-server running as well, and the control plane's state in it")
      .option('--no-redis', 'the opposite: the embedded store'),
    (context, flags: UpFlags) => up(context, flags),
  );
}

async function up(context: CliContext, flags: UpFlags): Promise<void> {
  requireRoot("'initless up'");
  const machine = { signal: context.signal, progress: context.say };
  // Hosts come back with the engine, and reach the control plane over the network.
  await engineUp(machine);
  await ensureNetwork(engineClient(), context.project.name, machine);
  const started = await bringUp(context, flags);
  context.stdout.write(`control plane and gateway ${started ? 'are up' : 'were up already'}; see 'initless status'\n`);
}
