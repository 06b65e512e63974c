import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { bringUp } from '../bring-up.js';
import type { CliContext } from '../context.js';
import { hostUp } from '../machine/host.js';
import { requireRoot } from '../require-root.js';
import { showServices } from './show.js';
import { hostConnected } from './wait.js';

/** What a demo shows. */
export interface DemoSettings {
  /** Folder of services. */
  codeDir: string;
  /** Host that is brought up. */
  host: string;
  /** Rounds of timing. */
  rounds: number;
}

/**
 * The whole path, one step after the other, each skipped where its work is done already: host, control plane and
 * gateway, checkpoints of all services of a folder, a call to each while it sleeps, and what a restored start gains.
 * Gives the exit code; leaves the system running. Errors: those of the steps.
 */
export async function runDemo(context: CliContext, settings: DemoSettings): Promise<number> {
  requireRoot('the demo');
  const { project, signal, say } = context;

  say(`==> host ${settings.host}: an engine, CRIU and an agent in one privileged container`);
  const host = await hostUp(
    { project: project.name, host: settings.host, controlPlanePort: project.ports.grpc },
    { signal, progress: (line) => say(`  ${line}`) },
  );
  say(`  ${settings.host} is ready at ${host.address} (${host.action})`);

  say('==> control plane and gateway');
  const { codeDir } = settings;
  const started = await bringUp(context, { settings: writeSettings(project.stateDir, codeDir), codeDir });
  say(`  ${started ? 'are up' : 'were up already'}; logs are in ${project.runDir}`);

  return context.withAdmin(async (admin) => {
    await hostConnected(context, admin, settings.host);
    return showServices(context, admin, codeDir, settings.rounds);
  });
}

/**
 * The demo's own settings file, so that none that happens to be on the machine is taken. The folder is given as a flag
 * too: another folder is then another plan, and takes effect at once.
 */
function writeSettings(stateDir: string, codeDir: string): string {
  const path = join(stateDir, 'demo-settings.yaml');
  mkdirSync(stateDir, { recursive: true, mode: 0o700 });
  writeFileSync(path, `# Written by 'initless demo'.\ncode_dir: ${JSON.stringify(codeDir)}\n`);
  return path;
}
