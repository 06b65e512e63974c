import { readdirSync, rmdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { sleep } from '../../../proto/rpc/deadline.js';
import { InitlessError } from '../../../proto/rpc/errors.js';

const ROOT = '/sys/fs/cgroup';
const REMOVE_MS = 10_000;

/** Folders of one cgroup path in every hierarchy of the machine: one on version 2, one for each controller on version 1. */
function foldersOf(group: string): string[] {
  const roots = [ROOT, ...readdirSync(ROOT).map((name) => join(ROOT, name))];
  return roots
    .map((root) => join(root, group))
    .filter((folder) => statSync(folder, { throwIfNoEntry: false })?.isDirectory());
}

/** Removes a group and all below it, deepest first. False while one is still busy: processes take a moment to be gone. */
function removeTree(folder: string): boolean {
  try {
    let empty = true;
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      if (entry.isDirectory() && !removeTree(join(folder, entry.name))) empty = false;
    }
    if (empty) rmdirSync(folder);
    return empty;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return true;
    if (code === 'EBUSY' || code === 'ENOTEMPTY') return false;
    throw error;
  }
}

/**
 * Removes a cgroup, such as "/initless/host1", with everything below it, in every hierarchy; true when there was one.
 * Throws BUSY when processes are still in it after ten seconds.
 */
export async function removeCgroup(group: string, signal?: AbortSignal): Promise<boolean> {
  const folders = foldersOf(group);
  for (const end = Date.now() + REMOVE_MS; ; ) {
    const busy = folders.filter((folder) => !removeTree(folder));
    if (busy.length === 0) return folders.length > 0;
    if (Date.now() > end) {
      throw new InitlessError('BUSY', `processes are still in the cgroup ${busy[0]}`, {
        subject: group,
        nextStep: `see ${busy[0]}/**/cgroup.procs for their ids`,
      });
    }
    await sleep(100, signal);
  }
}

/** Removes a cgroup that has no children and no processes in every hierarchy where that is so. */
export function removeCgroupIfEmpty(group: string): void {
  for (const folder of foldersOf(group)) {
    try {
      rmdirSync(folder);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'EBUSY' && code !== 'ENOTEMPTY' && code !== 'ENOENT') throw error;
    }
  }
}
