import { join, resolve } from 'node:path';
import type { Command } from 'commander';
import { runDemo } from '../demo/demo.js';
import { runFleetDemo } from '../demo/fleet.js';
import { parseWhole, type Register } from '../flags.js';
import { projectRoot } from '../machine/root.js';

interface DemoFlags {
  codeDir?: string;
  host: string;
  rounds: number;
  fleet?: boolean;
}

/** Adds `demo`. */
export function addDemoCommand(program: Command, register: Register): void {
  register(
    program
      .command('demo')
      .summary('bring everything up, deploy the samples, call and time them')
      .description(
        'Brings a host, the control plane and the gateway up, deploys the services in sample/, calls each while it sleeps, ' +
          'and times `docker run` against a restored start. Leaves it all running. What is there already is skipped.',
      )
      .option('--code-dir <dir>', 'folder of services (default: sample/ of this repository)')
      .option('--host <name>', 'name of the host', 'host1')
      .option('-n, --rounds <n>', 'rounds of timing', parseWhole(1, 1000), 3)
      .option(
        '--fleet',
        'instead: three hosts, two gateways and Redis, of which some are killed under load, and what became of the requests',
      ),
    (context, flags: DemoFlags) => {
      if (flags.fleet) return runFleetDemo(context);
      return runDemo(context, {
        codeDir: flags.codeDir === undefined ? join(projectRoot(), 'sample') : resolve(context.cwd, flags.codeDir),
        host: flags.host,
        rounds: flags.rounds,
      });
    },
  );
}
