import { constants } from 'node:fs';
import { mkdir, open, readFile, stat } from 'node:fs/promises';
import path from 'node:path';
import { InitlessError, toInitlessError } from '../../proto/rpc/errors.js';
import { apply, makeCgroups } from './cgroups.js';
import { CRIU_CONFIG, criuErrors } from './criu.js';
import { type EnterProcess, takeEnterProcess } from './enter.js';
import { lastLines, saysDiskFull } from './exec.js';
import { readIfThere } from './files.js';
import { hierarchies, removeCgroups, unifiedCgroup, V2 } from './freezer.js';
import { type Settings, settingsOf } from './resources.js';
import { type InstanceFolder, resolveInside } from './rootfs.js';
import type { OutputFiles } from './runc.js';
import type { OciMount, OciSpec } from './spec.js';
import { readTmpfsPlans, tmpfsSteps } from './tmpfs.js';

/** Descriptors that CRIU is given besides its own three. */
const FD = { netns: 10, stdout: 11, stderr: 12 } as const;
/** The name by which a dump made by runc calls the network namespace that it was made in. */
const NETNS_KEY = 'extRootNetNS';

/** What a restore may be asked for besides. */
export interface RestoreOptions {
  /** The process to do it in, where that was started ahead of time. */
  entering?: Entering;
  /** Leaves every process stopped before its first instruction. Default: false. */
  stopped?: boolean;
  /** Takes memory from the userfaultfd daemon whose socket is in the work folder. Default: false. */
  lazy?: boolean;
}

/**
 * Restores a bundle's process from CRIU images that runc made. Gives its process id; like one that runc started detached,
 * it outlives this agent and is adopted by the host's reaper.
 *
 * CRIU is run directly: `runc restore` runs it twice and takes 40 to 50 ms around it. What runc does besides is done here:
 * the cgroups with today's limits, sources for what is mounted from outside, the network namespace, the outputs.
 *
 * Errors: RESTORE_FAILED with CRIU's own words, also when CRIU is killed or does not end within `timeoutMs`; what it
 * had restored by then is still in the instance's cgroup.
 */
export async function restore(
  id: string,
  folder: InstanceFolder,
  images: string,
  output: OutputFiles,
  timeoutMs: number,
  signal?: AbortSignal,
  options: RestoreOptions = {},
): Promise<number> {
  const pidFile = path.join(folder.work, 'pid');
  const said = path.join(folder.work, 'criu.out');
  const entering = options.entering ?? new Entering(id);
  try {
    const spec = JSON.parse(await readFile(path.join(folder.bundle, 'config.json'), 'utf8')) as OciSpec;
    const settings = settingsOf(spec.linux.resources ?? {}, V2 ? 2 : 1);
    await makeMountpoints(spec);
    apply(id, settings.first);
    const plans = await readTmpfsPlans(images);
    const tmpfs = plans.map((plan) => ({ plan, dir: path.join(folder.work, plan.key) }));
    const args = [
      // Not pipes: what a killed CRIU had begun to restore would hold them open.
      ...['open', '1', 'a', said, 'open', '2', 'a', said],
      ...enterSteps(spec, id, settings, output),
      ...(tmpfs.length > 0 ? ['own-mounts', ...tmpfs.flatMap(({ plan, dir }) => tmpfsSteps(plan, dir))] : []),
      '--',
      ...['criu', 'restore', '--config', CRIU_CONFIG, '--images-dir', images, '--work-dir', folder.work],
      // Warnings and errors only: at the level that runc asks for, writing the log takes milliseconds.
      ...['--log-file', 'restore.log', '-v2', '--pidfile', pidFile, '--restore-detached', '--root', folder.root],
      ...['--manage-cgroups=ignore', '--evasive-devices'],
      ...(await external(spec, folder.root)).flatMap(([key, source]) => ['--external', `mnt[${key}]:${source}`]),
      ...tmpfs.flatMap(({ plan, dir }) => ['--external', `mnt[${plan.key}]:${dir}`]),
      ...(await inherited(images)).flatMap(([fd, key]) => ['--inherit-fd', `fd[${fd}]:${key}`]),
      ...(options.stopped ? ['--leave-stopped'] : []),
      ...(options.lazy ? ['--lazy-pages'] : []),
    ];
    await entering.become(args, timeoutMs, signal);
    apply(id, settings.last);
    return Number(await readFile(pidFile, 'utf8'));
  } catch (error) {
    // Also when nobody waits any more: one that was told nothing would wait for ever.
    if (options.entering === undefined) await entering.abandon();
    if (signal?.aborted) throw error;
    const cause = toInitlessError(error);
    const errors = [
      ...lastLines(await readIfThere(said), 20),
      // One that was killed, or took too long, did not come to say why.
      ...(cause.code === 'INTERNAL' ? await criuErrors(path.join(folder.work, 'restore.log')) : []),
    ];
    if (cause.code === 'DISK_FULL' || saysDiskFull(errors.join())) {
      throw new InitlessError('DISK_FULL', `no space left on the disk to restore ${id}`, {
        subject: id,
        nextStep: 'free some space on the disk that holds instances',
        outputTail: errors,
        cause,
      });
    }
    throw new InitlessError('RESTORE_FAILED', `CRIU could not restore ${id}: ${errors.at(-1) ?? cause.message}`, {
      subject: id,
      outputTail: errors.length > 0 ? errors : cause.outputTail,
      cause,
    });
  }
}

/**
 * A process that joins an instance's cgroups, which are made for it, and then waits to be told what to become. Joining takes
 * the kernel 6 to 16 ms: it waits for every CPU to have seen that processes are moved. Started before the instance's place is
 * made, it has joined when that is there.
 */
export class Entering {
  readonly #id: string;
  readonly #process: EnterProcess;

  /** Errors: those of making cgroups. */
  constructor(id: string) {
    this.#id = id;
    const joins = makeCgroups(id).flatMap((dir) => ['cgroup', dir]);
    this.#process = takeEnterProcess();
    this.#process.begin(joins);
  }

  /**
   * Takes further steps and the program to become, and waits for the end of that.
   * Errors: {@link ExecError}, DEADLINE, the reason of `signal`; it is killed then.
   */
  become(args: readonly string[], timeoutMs: number, signal?: AbortSignal): Promise<void> {
    return this.#process.finish(args, 'CRIU to restore the process', timeoutMs, signal);
  }

  /** Ends it, and all that is in the instance's cgroups, and removes those. */
  async abandon(): Promise<void> {
    await this.#process.kill();
    await removeCgroups(this.#id);
  }
}

/** What is done in the process that becomes CRIU, once it has joined the cgroups. */
function enterSteps(spec: OciSpec, id: string, settings: Settings, output: OutputFiles): string[] {
  const netns = spec.linux.namespaces.find(({ type }) => type === 'network')?.path;
  if (netns === undefined) throw new InitlessError('INTERNAL', 'the bundle names no network namespace');
  return [
    ...['open', String(FD.netns), 'r', netns],
    ...['open', String(FD.stdout), 'a', output.stdout],
    ...['open', String(FD.stderr), 'a', output.stderr],
    ...(V2 ? ['devices', unifiedCgroup(id), settings.devices.join(',')] : []),
    // CRIU makes none where it leaves cgroups alone; what it restores has its own.
    ...(hasCgroupNamespace(spec) ? ['own-cgroups'] : []),
  ];
}

/**
 * Makes what mounts lie on where that is in another mount's source: it may be another one than at the dump, or have been
 * emptied since. No link is followed on the way: an instance may have made it, and it would lead out of the source.
 */
async function makeMountpoints(spec: OciSpec): Promise<void> {
  const binds = spec.mounts.filter(({ type }) => type === 'bind');
  const below = (inner: OciMount, outer: OciMount) => inner.destination.startsWith(`${outer.destination}/`);
  for (const mount of binds) {
    // The deepest one is what it lies on; instanceSpec has sorted them.
    const outer = binds.filter((other) => below(mount, other)).at(-1);
    if (outer === undefined) continue;
    const parts = mount.destination.slice(outer.destination.length + 1).split('/');
    const isFolder = (await stat(mount.source ?? '')).isDirectory();
    let dir = await open(outer.source ?? '', constants.O_DIRECTORY);
    try {
      for (const [index, part] of parts.entries()) {
        const at = `/proc/self/fd/${dir.fd}/${part}`;
        const isLast = index === parts.length - 1;
        if (isLast && !isFolder) await (await open(at, constants.O_CREAT | constants.O_NOFOLLOW, 0o755)).close();
        else await mkdir(at).catch(unlessThere);
        if (isLast) break;
        const next = await open(at, constants.O_DIRECTORY | constants.O_NOFOLLOW);
        await dir.close();
        dir = next;
      }
    } finally {
      await dir.close();
    }
  }
}

function unlessThere(error: NodeJS.ErrnoException): void {
  if (error.code !== 'EEXIST') throw error;
}

/** What the images call the mounts that come from outside, and where each comes from now. */
async function external(spec: OciSpec, root: string): Promise<[key: string, source: string][]> {
  const binds = spec.mounts.filter(({ type }) => type === 'bind');
  const found = await Promise.all(
    binds.map(async ({ destination, source }): Promise<[string, string]> => {
      // runc notes where a mount lies with links resolved.
      const at = await resolveInside(root, destination);
      return [at === undefined ? destination : at.slice(root.length), source ?? ''];
    }),
  );
  // Masked files are mounts of the null device.
  found.push(['/dev/null', '/dev/null']);
  const cgroup = spec.mounts.find(({ type }) => type === 'cgroup');
  if (cgroup === undefined || V2 || hasCgroupNamespace(spec)) return found;
  // With version 1 an instance sees its own cgroup of each hierarchy.
  for (const hierarchy of hierarchies()) {
    const own = path.join(hierarchy, spec.linux.cgroupsPath ?? '');
    found.push([path.join(cgroup.destination, path.basename(hierarchy)), own]);
  }
  return found;
}

function hasCgroupNamespace(spec: OciSpec): boolean {
  return spec.linux.namespaces.some(({ type }) => type === 'cgroup');
}

/** What the images call the descriptors that come from outside, and which each is now. */
async function inherited(images: string): Promise<[fd: number, key: string][]> {
  // runc notes what the first three were when the process was started.
  const names = JSON.parse(await readFile(path.join(images, 'descriptors.json'), 'utf8')) as string[];
  const outputs = names.flatMap((name, index): [number, string][] =>
    name.startsWith('pipe:') ? [[[0, FD.stdout, FD.stderr][index] ?? index, name]] : [],
  );
  return [[FD.netns, NETNS_KEY], ...outputs];
}
