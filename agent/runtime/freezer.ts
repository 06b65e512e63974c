import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { mkdir, readdir, readFile, rmdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { sleep } from '../../proto/rpc/deadline.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { kill } from './exec.js';

/** Where an instance's cgroups lie, below the root of the host's own cgroup namespace. */
export const CGROUP_PARENT = '/initless';

const ROOT = '/sys/fs/cgroup';
/** Whether the host has the version 2 hierarchy alone. */
export const V2 = existsSync(path.join(ROOT, 'cgroup.controllers'));

/** What the life of an instance needs of its cgroup. */
export interface Freezer {
  /** Freezes every process of an instance and waits until the kernel says so. Errors: DEADLINE, INTERNAL. */
  freeze(id: string): Promise<void>;
  /** Lets every process of an instance run on. */
  thaw(id: string): Promise<void>;
  /** Whether the kernel killed a process of the instance for want of memory. False when its cgroup is gone. */
  wasOutOfMemory(id: string): Promise<boolean>;
}

/** The kernel's own, version 1 or 2, whichever this host has. */
export const kernelFreezer: Freezer = { freeze, thaw, wasOutOfMemory };

/** The `cgroupsPath` of an instance, for its OCI spec. */
export function cgroupOf(id: string): string {
  return `${CGROUP_PARENT}/${id}`;
}

/** The version 2 hierarchy; beside version 1 the host mounts one that has no controllers, but tells of ends and freezes. */
const UNIFIED = V2 ? ROOT : path.join(ROOT, 'unified');
/** Version 2 freezes better: what is frozen can be killed, and a host with parked instances be stopped from outside. */
const FREEZES_V2 = existsSync(path.join(UNIFIED, 'cgroup.controllers'));

/** An instance's cgroup in the version 2 hierarchy. */
export function unifiedCgroup(id: string): string {
  return path.join(UNIFIED, cgroupOf(id));
}

function freezerFile(id: string): { file: string; frozen: string; thawed: string } {
  return FREEZES_V2
    ? { file: path.join(unifiedCgroup(id), 'cgroup.freeze'), frozen: '1', thawed: '0' }
    : { file: path.join(ROOT, 'freezer', cgroupOf(id), 'freezer.state'), frozen: 'FROZEN', thawed: 'THAWED' };
}

async function isFrozen(id: string): Promise<boolean> {
  if (FREEZES_V2) return /^frozen 1$/m.test(await readFile(path.join(unifiedCgroup(id), 'cgroup.events'), 'utf8'));
  return (await readFile(freezerFile(id).file, 'utf8')).trim() === 'FROZEN';
}

async function freeze(id: string, timeoutMs = 5_000): Promise<void> {
  const { file, frozen } = freezerFile(id);
  const until = performance.now() + timeoutMs;
  await writeFile(file, frozen);
  while (!(await isFrozen(id))) {
    if (performance.now() > until) {
      await thaw(id);
      throw new InitlessError('DEADLINE', `instance ${id} did not freeze within ${timeoutMs} ms; it was thawed again`);
    }
    await sleep(1);
    // On v1 a process that forks while it is frozen can leave the state at FREEZING until it is written again.
    if (!FREEZES_V2) await writeFile(file, frozen);
  }
}

async function thaw(id: string): Promise<void> {
  const { file, thawed } = freezerFile(id);
  // A request waits for it, and the kernel takes it at once: a round through the thread pool would take longer.
  writeFileSync(file, thawed);
}

async function wasOutOfMemory(id: string): Promise<boolean> {
  const file = V2
    ? path.join(ROOT, cgroupOf(id), 'memory.events')
    : path.join(ROOT, 'memory', cgroupOf(id), 'memory.oom_control');
  try {
    return /^oom_kill [1-9]/m.test(await readFile(file, 'utf8'));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}

/** Where each hierarchy is mounted: with version 1 one for each controller, and those that have none. */
export function hierarchies(): string[] {
  if (V2) return [ROOT];
  // Links are further names of what is there already, and a folder that nothing is mounted on is no hierarchy.
  const entries = readdirSync(ROOT, { withFileTypes: true }).filter((entry) => entry.isDirectory());
  const folders = entries.map(({ name }) => path.join(ROOT, name));
  return folders.filter((dir) => existsSync(path.join(dir, 'cgroup.procs')));
}

/** The folder of a controller's hierarchy. */
export function hierarchyOf(controller: string): string {
  return V2 ? ROOT : path.join(ROOT, controller);
}

/** The folders that hold instances' cgroups. */
function parents(): string[] {
  return hierarchies().map((dir) => path.join(dir, CGROUP_PARENT));
}

/** Process ids in the cgroups of an instance, in every hierarchy. */
export async function processesOf(id: string): Promise<number[]> {
  const pids = new Set<number>();
  for (const dir of parents()) {
    try {
      const text = await readFile(path.join(dir, id, 'cgroup.procs'), 'utf8');
      for (const line of text.split('\n')) if (line !== '') pids.add(Number(line));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
  }
  return [...pids];
}

/** Names of the instances that have a cgroup, whoever made it. */
export async function cgroupsPresent(): Promise<string[]> {
  const names = new Set<string>();
  for (const dir of parents()) {
    for (const entry of await readdir(dir, { withFileTypes: true })) if (entry.isDirectory()) names.add(entry.name);
  }
  return [...names];
}

/**
 * Sends SIGKILL to every process in an instance's cgroups. One that is frozen runs nothing of its own any more: it dies as
 * it is, or, where the kernel kills only what is thawed, before it goes on. Gives those that were there.
 */
export async function killProcesses(id: string): Promise<number[]> {
  const pids = await processesOf(id);
  for (const pid of pids) kill(pid);
  return pids;
}

/** Kills whatever is in an instance's cgroups, also frozen, and removes them. Bounded at about 5 s. */
export async function removeCgroups(id: string): Promise<void> {
  const until = performance.now() + 5_000;
  for (;;) {
    const pids = await killProcesses(id);
    if (pids.length === 0) break;
    await thaw(id).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT' && error.code !== 'ENODEV') throw error;
    });
    if (performance.now() > until) {
      throw new InitlessError('DEADLINE', `processes ${pids.join(', ')} of instance ${id} outlived SIGKILL for 5 s`);
    }
    await sleep(5);
  }
  for (const dir of parents()) {
    await rmdir(path.join(dir, id)).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT' && error.code !== 'EBUSY') throw error;
    });
  }
}

/**
 * Makes a cgroup that keeps a process of ours together with what it starts, and listed among those of instances; it has no
 * limits. Gives the file that whoever joins it writes its process id into.
 */
export async function makeCgroup(name: string): Promise<string> {
  const dir = path.dirname(freezerFile(name).file);
  await mkdir(dir, { recursive: true });
  return path.join(dir, 'cgroup.procs');
}
