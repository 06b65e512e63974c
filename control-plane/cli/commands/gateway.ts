import { spawn } from 'node:child_process';
import { constants } from 'node:os';
import { join } from 'node:path';
import type { Command } from 'commander';
import { InitlessError } from '../../../proto/rpc/errors.js';
import type { CliContext } from '../context.js';
import type { Register } from '../flags.js';
import { projectRoot } from '../machine/root.js';
import type { Project } from '../project.js';

interface GatewayFlags {
  listen?: string[];
  httpListen?: string;
  id?: string;
}

/** Adds `gateway`. */
export function addGatewayCommand(program: Command, register: Register): void {
  register(
    program
      .command('gateway')
      .summary('run a gateway in the foreground')
      .description('Runs a gateway in the foreground, its log on the terminal. --server names its control plane.')
      .option(
        '--listen <address>',
        'address, without port, that services listen on; may be given again (default: loopback)',
        (address: string, before: string[] | undefined) => [...(before ?? []), address],
      )
      .option('--http-listen <host:port>', 'address for /healthz and /readyz')
      .option('--id <name>', 'name it goes by'),
    (context, flags: GatewayFlags) => run(context, flags),
  );
}

/** Arguments of the gateway's own program: the control plane's code imports nothing of the gateway's, but starts it. */
export function gatewayArguments(project: Project, server: string, flags: GatewayFlags): string[] {
  return [
    join(projectRoot(), 'dist/gateway/main.js'),
    '--control-plane',
    server,
    '--http-listen',
    flags.httpListen ?? `127.0.0.1:${project.ports.gatewayHttp}`,
    ...(flags.listen ?? []).flatMap((address) => ['--listen', address]),
    ...(flags.id === undefined ? [] : ['--id', flags.id]),
  ];
}

/** Runs the gateway as a child with our terminal, passes signals on, and ends as it ends. */
async function run(context: CliContext, flags: GatewayFlags): Promise<number> {
  const child = spawn(process.execPath, gatewayArguments(context.project, context.server, flags), {
    stdio: ['ignore', 'inherit', 'inherit'],
    env: context.env,
    cwd: context.cwd,
    // A group of its own: Ctrl-C then reaches the child once, through us, not a second time from the terminal.
    detached: true,
  });
  const pass = () => child.kill('SIGTERM');
  context.signal.addEventListener('abort', pass, { once: true });
  // A closed terminal, and our own end when the user insists: the child must not be left alone.
  process.on('SIGHUP', pass);
  process.on('exit', pass);
  try {
    return await new Promise<number>((resolve, reject) => {
      child.once('error', (cause) =>
        reject(new InitlessError('SETUP_FAILED', `the gateway cannot be started: ${cause.message}`, { cause })),
      );
      child.once('exit', (code, signal) => resolve(code ?? 128 + (signal ? constants.signals[signal] : 0)));
    });
  } finally {
    context.signal.removeEventListener('abort', pass);
    process.off('SIGHUP', pass);
    process.off('exit', pass);
  }
}
