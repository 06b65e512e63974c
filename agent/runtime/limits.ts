import { existsSync } from 'node:fs';
import path from 'node:path';

/**
 * Whether swap can be limited. With cgroup version 1 that is a choice made when the machine boots, and runc fails to set
 * a limit that is not there; with version 2 it leaves it out by itself.
 */
export function countsSwap(cgroups = '/sys/fs/cgroup'): boolean {
  return (
    existsSync(path.join(cgroups, 'cgroup.controllers')) ||
    existsSync(path.join(cgroups, 'memory', 'memory.memsw.limit_in_bytes'))
  );
}
