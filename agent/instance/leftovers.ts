import { mkdir, readdir, readFile } from 'node:fs/promises';
import type { Logger } from 'pino';
import { run } from '../runtime/exec.js';
import { cgroupsPresent, removeCgroups } from '../runtime/freezer.js';
import { instanceFolder, removeFolder } from '../runtime/rootfs.js';
import type { Runc } from '../runtime/runc.js';

/**
 * Removes what an earlier run of the agent left on this host, but for the instances in `kept`: containers that runc
 * knows, processes in instances' cgroups, mounts and folders. Network namespaces follow in SandboxPool.start.
 */
export async function removeLeftovers(root: string, kept: ReadonlySet<string>, runc: Runc, log: Logger): Promise<void> {
  const left = (ids: string[]) => ids.filter((id) => !kept.has(id));
  await mkdir(root, { recursive: true, mode: 0o700 });
  const containers = left(await runc.list());
  for (const id of containers) await runc.remove(id);
  const cgroups = left(await cgroupsPresent());
  for (const id of cgroups) await removeCgroups(id);
  // A mount that is not an instance's root (CRIU's half-done ones) would keep its folder.
  const mounts = (await readFile('/proc/self/mounts', 'utf8'))
    .split('\n')
    .map((line) => line.split(' ')[1] ?? '')
    .filter((at) => at.startsWith(`${root}/`) && !kept.has(at.slice(root.length + 1).split('/')[0] ?? ''))
    .reverse();
  for (const at of mounts) await run('umount', [at]);
  const folders = left(await readdir(root));
  for (const id of folders) await removeFolder(instanceFolder(root, id));
  if (containers.length + cgroups.length + mounts.length + folders.length > 0) {
    log.info(
      { containers: containers.length, cgroups: cgroups.length, mounts: mounts.length, folders: folders.length },
      'removed what an earlier run left',
    );
  }
}
