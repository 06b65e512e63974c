import { existsSync } from 'node:fs';
import { readdir, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type Docker from 'dockerode';
import { withDeadline } from '../../proto/rpc/deadline.js';
import type { CliContext } from './context.js';
import { type Owned, ownedInEngine, ownedOnDisk, ownedProcesses } from './inventory.js';
import { removeCgroup } from './machine/cgroups.js';
import { engineClient, engineDown, engineStatus, engineUp } from './machine/engine.js';
import { run } from './machine/exec.js';
import { hostDown, listHosts } from './machine/host.js';
import { findImage } from './machine/images.js';
import { ENGINE_STATE_DIR, HOST_IMAGE, STATE_ROOT } from './machine/names.js';
import { removeNetwork } from './machine/network.js';
import { stopSupervisor } from './supervisor/control.js';
import { RunFiles } from './supervisor/files.js';

const REMOVE_MS = 120_000;
/** What set-up and tests keep for all projects of the machine. */
const CACHE_DIR = '/var/cache/initless';

/** What of a project is on the machine. */
export interface Inventory {
  owned: Owned[];
  /** Why the engine could not be asked; empty when it was. */
  engine: string;
}

/** Lists what is the project's; changes nothing. */
export async function takeInventory(context: CliContext): Promise<Inventory> {
  const status = await engineStatus({ signal: context.signal });
  const inEngine =
    status.state === 'answering' ? await ownedInEngine(engineClient(), context.project.name, context.signal) : [];
  return {
    owned: [...ownedProcesses(context.project), ...inEngine, ...ownedOnDisk(context.project)],
    engine: status.state === 'answering' ? '' : status.detail || 'it is not running',
  };
}

/**
 * Ends and removes what is the project's: processes, hosts, network, cgroups; with `all` also volumes, images and the
 * state folder. The engine is stopped if it was started by us and nothing of others runs on it. Errors: SETUP_FAILED
 * (a mount), BUSY (a cgroup with processes in it), ENGINE_DOWN, DEADLINE.
 */
export async function tearDown(context: CliContext, all: boolean): Promise<void> {
  const { project, signal, say } = context;
  const machine = { signal, progress: say };
  if (await stopSupervisor(new RunFiles(project.runDir), signal)) say('stopped control plane and gateway');

  let status = await engineStatus({ signal });
  // Its containers, images and volumes are on its disk also while it is away. One of ours is brought back to remove
  // them: one that died, whose pid file is still there, or with `all` also one that was stopped.
  const trace = all ? ENGINE_STATE_DIR : join(ENGINE_STATE_DIR, 'dockerd.pid');
  if (status.state === 'absent' && existsSync(trace)) status = await engineUp(machine);
  if (status.state === 'answering') await emptyEngine(context, engineClient(), all);
  else say(`the Docker engine does not answer, so hosts were not looked for: ${status.detail}`);

  if (all) await removeState(context);
  await removeCgroup(`/${project.name}`, signal);
  const { stopped, reason } = await engineDown(machine);
  if (stopped) say('stopped the Docker engine');
  else if (status.startedByUs) say(`the Docker engine goes on: ${reason}`);
  if (all && (stopped || !status.startedByUs)) await removeShared();
}

async function emptyEngine(context: CliContext, docker: Docker, all: boolean): Promise<void> {
  const { project, signal, say } = context;
  const machine = { signal, progress: say, removeVolume: all };
  for (const { host } of await listHosts(project.name, { signal })) {
    const { removed } = await hostDown(project.name, host, machine);
    if (removed.length > 0) say(`removed ${removed.join(', ')}`);
  }
  // What is ours and no host that can be recognised, such as a container that was made and never started.
  const left = await ownedInEngine(docker, project.name, signal);
  await removeEach(context, left, 'container', (id) => docker.getContainer(id).remove({ force: true, v: true }));
  if (await removeNetwork(docker, project.name, { signal })) say(`removed the network ${project.name}`);
  if (!all) return;
  await removeEach(context, left, 'volume', (id) => docker.getVolume(id).remove());
  await removeEach(context, left, 'image', (id) => docker.getImage(id).remove({ force: true }));
  if (await findImage(docker, HOST_IMAGE, signal)) say(`${HOST_IMAGE} stays: hosts of another project use it`);
}

async function removeEach(
  { signal, say }: CliContext,
  owned: readonly Owned[],
  kind: Owned['kind'],
  remove: (id: string) => Promise<unknown>,
): Promise<void> {
  let left = owned.filter((thing) => thing.kind === kind);
  while (left.length > 0) {
    const depended: { thing: Owned; error: unknown }[] = [];
    for (const thing of left) {
      const { id, name } = thing;
      try {
        await withDeadline(REMOVE_MS, `the ${kind} ${name} to be removed`, signal, () => remove(id));
        say(`removed the ${kind} ${name}`);
      } catch (error) {
        const { statusCode } = error as { statusCode?: number };
        // An image's children must go first, which the engine does not list in any order.
        if (statusCode === 409) depended.push({ thing, error });
        // An image's parents go with it, and hosts take their volumes along.
        else if (statusCode !== 404) throw error;
      }
    }
    if (depended.length === left.length) throw depended[0]?.error;
    left = depended.map(({ thing }) => thing);
  }
}

async function removeState(context: CliContext): Promise<void> {
  const { project, signal, say } = context;
  for (const { id } of ownedOnDisk(project).filter(({ kind }) => kind === 'mount')) {
    await run('umount', ['--lazy', id], { timeoutMs: 10_000, errorCode: 'SETUP_FAILED', signal });
    say(`unmounted ${id}`);
  }
  if (!existsSync(project.stateDir)) return;
  await rm(project.stateDir, { recursive: true, force: true });
  say(`removed ${project.stateDir}`);
}

/**
 * What belongs to no project, once no project is left and no set-up is at work: the folder of an engine that has ended,
 * and the caches.
 */
async function removeShared(): Promise<void> {
  const [engine, temporary] = [basename(ENGINE_STATE_DIR), 'tmp'];
  const left = await namesIn(STATE_ROOT);
  if (left.some((name) => name !== engine && name !== temporary)) return;
  if ((await namesIn(join(STATE_ROOT, temporary))).length > 0) return;
  await rm(STATE_ROOT, { recursive: true, force: true });
  await rm(CACHE_DIR, { recursive: true, force: true });
}

async function namesIn(folder: string): Promise<string[]> {
  return existsSync(folder) ? readdir(folder) : [];
}
