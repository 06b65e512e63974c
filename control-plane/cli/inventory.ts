import { existsSync, lstatSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type Docker from 'dockerode';
import { withDeadline } from '../../proto/rpc/deadline.js';
import { LABELS } from './machine/names.js';
import type { Project } from './project.js';
import { RunFiles } from './supervisor/files.js';
import { isAlive } from './supervisor/process-identity.js';

const CALL_MS = 30_000;

/** Something on the machine that belongs to a project. */
export interface Owned {
  kind: 'process' | 'container' | 'network' | 'volume' | 'image' | 'mount' | 'cgroup' | 'folder';
  /** What it is removed by: a pid, an id, a name, a path. */
  id: string;
  /** What people know it by. */
  name: string;
}

/** Processes of the project that pid files name and that are alive. */
export function ownedProcesses(project: Project): Owned[] {
  const files = new RunFiles(project.runDir);
  const supervisor = files.supervisor();
  return [
    ...(supervisor ? [{ kind: 'process' as const, id: String(supervisor.pid), name: 'supervisor' }] : []),
    ...files
      .readStates()
      .flatMap(({ name, process }) =>
        process && isAlive(process) ? [{ kind: 'process' as const, id: String(process.pid), name }] : [],
      ),
  ];
}

/**
 * Containers, networks and volumes that carry the project's label, and images that carry ours. Images belong to all
 * projects of a machine: they are left out while another project has containers.
 */
export async function ownedInEngine(docker: Docker, project: string, signal: AbortSignal): Promise<Owned[]> {
  return withDeadline(CALL_MS, "the engine's lists of what is ours", signal, async () => {
    const mine = { label: [`${LABELS.project}=${project}`] };
    const anyones = await docker.listContainers({ all: true, filters: { label: [LABELS.project] } });
    const networks = await docker.listNetworks({ filters: mine });
    const { Volumes: volumes } = await docker.listVolumes({ filters: mine });
    const shared = anyones.some(({ Labels }) => Labels[LABELS.project] !== project);
    const images = shared ? [] : await docker.listImages({ all: true, filters: { label: [LABELS.image] } });
    return [
      ...anyones
        .filter(({ Labels }) => Labels[LABELS.project] === project)
        .map(({ Id, Names }) => ({ kind: 'container' as const, id: Id, name: Names[0]?.replace(/^\//, '') ?? Id })),
      ...networks.map(({ Id, Name }) => ({ kind: 'network' as const, id: Id, name: Name })),
      ...(volumes ?? []).map(({ Name }) => ({ kind: 'volume' as const, id: Name, name: Name })),
      ...images.map(({ Id, RepoTags }) => ({ kind: 'image' as const, id: Id, name: RepoTags?.[0] ?? Id.slice(0, 19) })),
    ];
  });
}

/** Mounts below a folder, the deepest first, from the text of /proc/self/mountinfo (fields in proc_pid_mountinfo(5)). */
export function mountsBelow(mountinfo: string, folder: string): string[] {
  return mountinfo
    .split('\n')
    .flatMap((line) => line.split(' ')[4] ?? [])
    .map((path) =>
      path.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8))),
    )
    .filter((path) => path === folder || path.startsWith(`${folder}/`))
    .sort((a, b) => b.length - a.length);
}

/** Folders of the project in the cgroup file systems: one in the unified hierarchy, or one in each of version 1's. */
export function ownedCgroups(project: string, root = '/sys/fs/cgroup'): string[] {
  if (!existsSync(root)) return [];
  const hierarchies = existsSync(join(root, 'cgroup.controllers'))
    ? [root]
    : readdirSync(root)
        .map((name) => join(root, name))
        // A link, such as "cpu" to "cpu,cpuacct", names a hierarchy a second time.
        .filter((path) => lstatSync(path).isDirectory());
  return hierarchies.map((hierarchy) => join(hierarchy, project)).filter((path) => existsSync(path));
}

/** Mounts, cgroups and the state folder of a project. */
export function ownedOnDisk(project: Project): Owned[] {
  const mounts = mountsBelow(readFileSync('/proc/self/mountinfo', 'utf8'), project.stateDir);
  return [
    ...mounts.map((path) => ({ kind: 'mount' as const, id: path, name: path })),
    ...ownedCgroups(project.name).map((path) => ({ kind: 'cgroup' as const, id: path, name: path })),
    ...(existsSync(project.stateDir)
      ? [{ kind: 'folder' as const, id: project.stateDir, name: project.stateDir }]
      : []),
  ];
}
