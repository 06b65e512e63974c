import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { CGROUP_PARENT, cgroupOf, hierarchies, hierarchyOf, V2 } from './freezer.js';
import type { Setting } from './resources.js';

/*
 * The kernel takes what is written here at once: a round through the thread pool for each file would take longer.
 */

/** Makes the parent of all instances' cgroups in every hierarchy, and lets it give its controllers to them. */
export function prepareCgroups(): void {
  for (const hierarchy of hierarchies()) make(path.join(hierarchy, CGROUP_PARENT));
  if (!V2) return;
  const parent = path.join(hierarchyOf(''), CGROUP_PARENT);
  const controllers = readFileSync(path.join(parent, 'cgroup.controllers'), 'utf8').trim().split(' ');
  for (const controller of controllers) writeFileSync(path.join(parent, 'cgroup.subtree_control'), `+${controller}`);
}

/** Makes an instance's cgroup in every hierarchy. Gives their folders. */
export function makeCgroups(id: string): string[] {
  const dirs = hierarchies().map((hierarchy) => path.join(hierarchy, cgroupOf(id)));
  for (const dir of dirs) make(dir);
  return dirs;
}

/** Gives the files of an instance's cgroups their values, one after the other. */
export function apply(id: string, settings: readonly Setting[]): void {
  for (const { controller, file, value } of settings) {
    writeFileSync(path.join(hierarchyOf(controller), cgroupOf(id), file), value);
  }
}

function make(dir: string): void {
  mkdirSync(dir, { recursive: true });
  if (V2) return;
  // Version 1 gives a new cgroup no CPU and no memory node that a process in it could use.
  for (const file of ['cpuset.cpus', 'cpuset.mems'].map((name) => path.join(dir, name))) {
    if (!existsSync(file) || readFileSync(file, 'utf8').trim() !== '') continue;
    writeFileSync(file, readFileSync(path.join(dir, '..', path.basename(file)), 'utf8'));
  }
}
