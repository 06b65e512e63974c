import { resolve } from 'node:path';
import type { Command } from 'commander';
import type { CliContext } from '../context.js';
import type { Register } from '../flags.js';
import { engineClient } from '../machine/engine.js';
import { findNetwork } from '../machine/network.js';

interface ControlPlaneFlags {
  settings?: string;
  codeDir?: string;
  listen?: string;
  httpListen?: string;
  stateDir?: string;
}

/** Adds `control-plane`. */
export function addControlPlaneCommand(program: Command, register: Register): void {
  register(
    program
      .command('control-plane')
      .summary('run the control plane in the foreground')
      .description(
        "Runs the control plane in the foreground, its log on the terminal. It listens on loopback and, where the project's " +
          'network is there, on its gateway address, where hosts reach it. SIGHUP reads the settings again.',
      )
      .option('--settings <file>', 'settings file (default: ./settings.yaml, /etc/docker/settings.yaml, or none)')
      .option('--code-dir <dir>', 'folder that services are read from; wins over the settings file')
      .option('--listen <host:port>', 'address for gRPC')
      .option('--http-listen <host:port>', 'address for /healthz and /readyz')
      .option('--state-dir <dir>', 'folder for the store and the build contexts'),
    (context, options: ControlPlaneFlags) => run(context, options),
  );
}

async function run(context: CliContext, flags: ControlPlaneFlags): Promise<void> {
  const { project } = context;
  const at = (path: string | undefined) => (path === undefined ? undefined : resolve(context.cwd, path));
  const listen = flags.listen ?? `127.0.0.1:${project.ports.grpc}`;
  const port = listen.slice(listen.lastIndexOf(':') + 1);
  // Loaded only here: no other command needs the store and all that hangs on it.
  const { runControlPlane } = await import('../../main.js');
  await runControlPlane(
    {
      project: project.name,
      stateDir: at(flags.stateDir) ?? project.stateDir,
      settingsPath: at(flags.settings),
      codeDir: at(flags.codeDir),
      listen,
      httpListen: flags.httpListen ?? `127.0.0.1:${project.ports.http}`,
      ownPorts: Object.values(project.ports),
      extraAddresses: async () => {
        const network = await findNetwork(engineClient(), project.name, context.signal);
        return network ? [`${network.gateway}:${port}`] : [];
      },
      env: context.env,
    },
    context.signal,
  );
}
