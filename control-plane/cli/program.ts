import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Command } from 'commander';
import { rewriteAliases } from './argv.js';
import { addCheckpointCommands } from './commands/checkpoint.js';
import { addCleanCommand } from './commands/clean.js';
import { addControlPlaneCommand } from './commands/control-plane.js';
import { addDemoCommand } from './commands/demo.js';
import { addDoctorCommand } from './commands/doctor.js';
import { addDownCommand } from './commands/down.js';
import { addEventsCommand } from './commands/events.js';
import { addGatewayCommand } from './commands/gateway.js';
import { addHostCommands } from './commands/host.js';
import { addInstanceCommands } from './commands/instance.js';
import { addServiceCommands } from './commands/service.js';
import { addServiceApplyCommands } from './commands/service-apply.js';
import { addServiceLogsCommand } from './commands/service-logs.js';
import { addServicePlacementCommands } from './commands/service-placement.js';
import { addStatusCommand } from './commands/status.js';
import { addTestCommand } from './commands/test.js';
import { addUpCommand } from './commands/up.js';
import { type CliIo, contextOf, EXIT } from './context.js';
import { parseSeconds, parseWhole, type Register } from './flags.js';
import { projectRoot } from './machine/root.js';
import { reportError } from './report-error.js';

/**
 * Runs the program with the arguments that stand after its name, and gives its exit code. It never throws and never
 * ends the process.
 */
export async function runCli(args: readonly string[], io: CliIo): Promise<number> {
  let exitCode: number = EXIT.ok;
  const register: Register = <Args extends unknown[]>(...[command, work]: Parameters<typeof register<Args>>) => {
    command.action(async (...given: unknown[]) => {
      // Commander adds the command itself after arguments and options.
      exitCode = (await work(contextOf(io, command), ...(given.slice(0, -1) as Args))) ?? EXIT.ok;
    });
  };
  try {
    await buildProgram(io, register).parseAsync(rewriteAliases(args), { from: 'user' });
    return exitCode;
  } catch (thrown) {
    return reportError(io.stderr, thrown, io.signal.aborted);
  }
}

function buildProgram(io: CliIo, register: Register): Command {
  const program = new Command('initless')
    .description('Boots HTTP services in Docker images from CRIU checkpoints.')
    .version(version(), '-V, --version')
    .option('--server <host:port>', 'address of the control plane (INITLESS_SERVER; default: localhost, gRPC port)')
    .option('--timeout <seconds>', 'bound on each call to the control plane', parseSeconds)
    .option('--project <name>', 'project on this machine (INITLESS_PROJECT; default: initless)')
    .option(
      '--port-base <port>',
      "first of the project's ports (INITLESS_PORT_BASE; default: 7070)",
      parseWhole(1024, 65_000),
    );
  // Settings that subcommands inherit must stand before the subcommands are made.
  program
    .exitOverride()
    .configureOutput({ writeOut: (text) => io.stdout.write(text), writeErr: (text) => io.stderr.write(text) })
    .configureHelp({ showGlobalOptions: true })
    .showHelpAfterError('(add --help for what can be given)');

  const service = program.command('service').description('services: what is deployed');
  addServiceApplyCommands(service, register);
  addServiceCommands(service, register);
  addServicePlacementCommands(service, register);
  addServiceLogsCommand(service, register);
  addInstanceCommands(
    program.command('instance').description("instances: services' running or parked processes"),
    register,
  );
  addCheckpointCommands(
    program.command('checkpoint').description('checkpoints: what instances are restored from'),
    register,
  );
  addHostCommands(
    program.command('host').description('hosts: privileged containers with an engine and an agent'),
    register,
  );
  addEventsCommand(program, register);
  addTestCommand(program, register);
  addControlPlaneCommand(program, register);
  addGatewayCommand(program, register);
  addUpCommand(program, register);
  addStatusCommand(program, register);
  addDownCommand(program, register);
  addCleanCommand(program, register);
  addDoctorCommand(program, register);
  addDemoCommand(program, register);
  return program;
}

function version(): string {
  return (JSON.parse(readFileSync(join(projectRoot(), 'package.json'), 'utf8')) as { version: string }).version;
}
