import { lstat, mkdir, readFile, readlink, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { takeSteps } from './enter.js';
import { run } from './exec.js';
import { ETC_FILES, etcFiles } from './spec.js';

const OVERLAY2 = '/var/lib/docker/overlay2';

/** Where one instance's files lie. All of it goes with the instance, but for its log. */
export interface InstanceFolder {
  /** The folder. */
  dir: string;
  /** Root file system, once mounted. */
  root: string;
  /** What the instance changed in it. */
  upper: string;
  /** OCI bundle: config.json. */
  bundle: string;
  /** CRIU's and runc's working files. */
  work: string;
}

/** The folder of an instance below `parent`. */
export function instanceFolder(parent: string, id: string): InstanceFolder {
  const dir = path.join(parent, id);
  return {
    dir,
    root: path.join(dir, 'root'),
    upper: path.join(dir, 'upper'),
    bundle: dir,
    work: path.join(dir, 'work'),
  };
}

/** A path as one value of overlayfs's colon-separated, backslash-escaped option. */
function escaped(dir: string): string {
  return dir.replaceAll('\\', '\\\\').replaceAll(':', '\\:').replaceAll(',', '\\,');
}

/**
 * The short names, relative to overlay2's folder, of an image's layers, topmost first. Docker keeps them for the same
 * reason: many layers' full paths do not fit into one page of mount options.
 */
export async function layerLinks(graph: { UpperDir?: string; LowerDir?: string }): Promise<string[]> {
  const dirs = [graph.UpperDir, ...(graph.LowerDir?.split(':') ?? [])].filter((dir) => dir !== undefined && dir !== '');
  return Promise.all(
    dirs.map(async (dir) =>
      path.join('l', (await readFile(path.join(path.dirname(dir as string), 'link'), 'utf8')).trim()),
    ),
  );
}

/**
 * Mounts a fresh root file system: the image's layers, a checkpoint's changes over them if there are any, and an empty
 * writable layer on top. It also lays out /etc's files and copies volumes.
 *
 * @param lowers layers topmost first; relative ones are below Docker's overlay2 folder.
 * @param volumes folders whose content each volume starts with, in order; undefined: an empty volume.
 */
export async function mountRootfs(
  folder: InstanceFolder,
  lowers: readonly string[],
  hostname: string,
  nameservers: readonly string[],
  signal?: AbortSignal,
): Promise<void> {
  const overlayWork = path.join(folder.dir, 'overlay');
  await Promise.all(
    [folder.root, folder.upper, overlayWork, folder.work].map((dir) => mkdir(dir, { recursive: true })),
  );
  const files = etcFiles(hostname, nameservers);
  await Promise.all(ETC_FILES.map((name) => writeFile(path.join(folder.dir, name), files[name])));
  const options = `lowerdir=${lowers.map(escaped).join(':')},upperdir=${escaped(folder.upper)},workdir=${escaped(overlayWork)}`;
  await takeSteps(['overlay', OVERLAY2, folder.root, options], signal);
}

/**
 * The path that `destination` means inside `root`, with links followed as a process inside would follow them: one that
 * leads to an absolute path, or up and out, stays below `root`. Undefined when there is no such folder.
 */
export async function resolveInside(root: string, destination: string): Promise<string | undefined> {
  let parts = destination.split('/');
  let inside = '/';
  for (let links = 0; parts.length > 0; ) {
    const part = parts.shift() as string;
    const next = path.posix.join(inside, part);
    const stat = await lstat(path.join(root, next)).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return undefined;
      throw error;
    });
    if (stat === undefined) return undefined;
    if (!stat.isSymbolicLink()) {
      inside = next;
      continue;
    }
    if (++links > 40) return undefined;
    const target = await readlink(path.join(root, next));
    if (target.startsWith('/')) inside = '/';
    parts = [...target.split('/'), ...parts];
  }
  return path.join(root, inside);
}

/** Copies a folder's content with owners, modes, links, holes and extended attributes. */
export async function copyTree(from: string, to: string, signal?: AbortSignal): Promise<void> {
  await mkdir(to, { recursive: true });
  await run('cp', ['-a', '--reflink=auto', '--sparse=always', `${from}/.`, to], { signal, timeoutMs: 120_000 });
}

/** Unmounts an instance's root file system, if it is mounted. */
export async function unmountRootfs(folder: InstanceFolder): Promise<void> {
  const mounted = (await readFile('/proc/self/mounts', 'utf8'))
    .split('\n')
    .some((line) => line.split(' ')[1] === folder.root);
  if (mounted) await takeSteps(['unmount', folder.root]);
}

/** Unmounts an instance's root file system and removes its folder. */
export async function removeFolder(folder: InstanceFolder): Promise<void> {
  await unmountRootfs(folder);
  await rm(folder.dir, { recursive: true, force: true });
}
