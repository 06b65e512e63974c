import { chmod, mkdir, mkdtemp, readdir, realpath, rename, rm, stat } from 'node:fs/promises';
import path from 'node:path';
import type { VolumeMount } from '../../proto/gen/initless/v1/types.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { copyTree, resolveInside } from '../runtime/rootfs.js';
import type { HostMount } from '../runtime/spec.js';
import { type OwnFolder, refusal } from './volume-sources.js';

/** What is being made, and what is being removed; neither can be the name of a volume or of a service. */
const MAKING = '.making-';
const REMOVED = 'REMOVED-';

/** What volumes need to know of their host. */
export interface VolumesSettings {
  /** Folder that holds the named volumes, as SERVICE/NAME. */
  root: string;
  /** Name of the host, for messages. */
  host: string;
  /** Folders that instances must not have, besides those of every host: where checkpoints lie now. */
  own: () => readonly OwnFolder[];
}

/**
 * What of the host is mounted into instances: its own paths, and named volumes. A named volume is made when the first
 * instance needs it, with what the image has at its place, and stays as its instances leave it until its service is
 * removed: no new revision, no restart and no withdrawal touches it.
 */
export class Volumes {
  readonly #settings: VolumesSettings;
  readonly #services = new Set<string>();
  /** Volumes that are being made, by folder. */
  readonly #making = new Map<string, Promise<void>>();

  constructor(settings: VolumesSettings) {
    this.#settings = settings;
  }

  /** Reads which services have volumes, and removes what an earlier run was making or removing. */
  async load(): Promise<void> {
    const { root } = this.#settings;
    await mkdir(root, { recursive: true, mode: 0o700 });
    for (const service of await readdir(root)) {
      if (service.startsWith(REMOVED)) {
        await removeTree(path.join(root, service));
        continue;
      }
      const names = await readdir(path.join(root, service));
      for (const name of names.filter((one) => one.startsWith(MAKING))) {
        await removeTree(path.join(root, service, name));
      }
      this.#services.add(service);
    }
  }

  /** Services that have named volumes here. */
  services(): string[] {
    return [...this.#services].sort();
  }

  /**
   * A service's volumes as they are mounted, links in paths resolved; named ones are made where they are missing.
   *
   * @param rootfs root file system of an instance, for what a new volume begins with; undefined: none may be missing.
   * Errors: VOLUME_MISSING, VOLUME_REFUSED, DISK_FULL.
   */
  async mounts(service: string, volumes: readonly VolumeMount[], rootfs: string | undefined): Promise<HostMount[]> {
    const found = await Promise.allSettled(
      volumes.map(async ({ source, target, readOnly }) => {
        const real = source.startsWith('/')
          ? await this.#path(service, source, readOnly)
          : await this.#named(service, source, target, rootfs);
        return { source: real, target, readOnly };
      }),
    );
    // All of them have ended by now: one that is still copied from the root would keep it from being unmounted.
    return found.map((one) => {
      if (one.status === 'rejected') throw one.reason;
      return one.value;
    });
  }

  /** Removes a removed service's volumes, with all that is in them. */
  async remove(service: string): Promise<void> {
    if (!this.#services.has(service)) return;
    const { root } = this.#settings;
    // Out of the way at once: what is still being stopped may go on writing, and the name may come back.
    const aside = await mkdtemp(path.join(root, REMOVED));
    await rename(path.join(root, service), path.join(aside, 'volumes')).catch((error: NodeJS.ErrnoException) => {
      // Somebody removed it by hand.
      if (error.code !== 'ENOENT') throw error;
    });
    this.#services.delete(service);
    await removeTree(aside);
  }

  async #path(service: string, source: string, readOnly: boolean): Promise<string> {
    const { host, own } = this.#settings;
    let real: string;
    let isPlain: boolean;
    try {
      real = await realpath(source);
      const found = await stat(real);
      isPlain = found.isDirectory() || found.isFile();
    } catch (cause) {
      if (!['ENOENT', 'ENOTDIR', 'ELOOP'].includes((cause as NodeJS.ErrnoException).code ?? '')) throw cause;
      throw new InitlessError('VOLUME_MISSING', `${service} wants ${source}, and the host ${host} has no such path`, {
        subject: source,
        nextStep: `correct 'volumes', or give the host a folder of its machine: initless host down ${host}, then initless host up ${host} --volume /path/on/the/machine:${source}`,
        cause,
      });
    }
    const reason = refusal(real, readOnly, await resolved(own())) ?? (isPlain ? undefined : 'it is no folder or file');
    if (reason === undefined) return real;
    const shown = real === source ? source : `${source} (${real})`;
    throw new InitlessError('VOLUME_REFUSED', `${service} must not have ${shown} of the host ${host}: ${reason}`, {
      subject: source,
      nextStep: 'use a folder that is the service\'s, or a named volume: volumes: ["data:/path/inside"]',
    });
  }

  async #named(service: string, name: string, target: string, rootfs: string | undefined): Promise<string> {
    const { root, host } = this.#settings;
    const folder = path.join(root, service, name);
    if (rootfs !== undefined) await this.#ensure(service, folder, target, rootfs);
    else if (!(await isThere(folder))) {
      throw new InitlessError('VOLUME_MISSING', `the volume ${name} of ${service} is not on the host ${host}`, {
        subject: name,
        nextStep: `the next start makes it: initless service wake ${service}`,
      });
    }
    return folder;
  }

  /**
   * One at a time for each volume: what is there is never replaced, also not when it is empty. Others may wait for the
   * same one, so it does not end with the start that came first; copying is bounded.
   */
  #ensure(service: string, folder: string, target: string, rootfs: string): Promise<void> {
    const under = this.#making.get(folder);
    if (under !== undefined) return under;
    this.#services.add(service);
    const making = isThere(folder)
      .then((there) => (there ? undefined : fill(folder, target, rootfs)))
      .finally(() => this.#making.delete(folder));
    this.#making.set(folder, making);
    return making;
  }
}

/** Makes a volume with what the image has at its place. It is there as a whole or not at all. */
async function fill(folder: string, target: string, rootfs: string): Promise<void> {
  const parent = path.dirname(folder);
  await mkdir(parent, { recursive: true, mode: 0o700 });
  const making = await mkdtemp(path.join(parent, MAKING));
  try {
    const inside = await resolveInside(rootfs, target);
    if (inside === undefined) await chmod(making, 0o755);
    else if ((await stat(inside)).isDirectory()) await copyTree(inside, making);
    else {
      throw new InitlessError(
        'BAD_CONFIG',
        `volumes: the image has a file at ${target}, and a named volume is a folder`,
        {
          subject: target,
          nextStep: 'choose the folder that the file is in, or mount a file of the host',
        },
      );
    }
    await rename(making, folder);
  } catch (error) {
    await removeTree(making);
    throw error;
  }
}

/** The same folders, links resolved. One that is not there yet has none. */
async function resolved(folders: readonly OwnFolder[]): Promise<OwnFolder[]> {
  const real = async (one: OwnFolder) => ({ ...one, path: await realpath(one.path).catch(() => one.path) });
  return Promise.all(folders.map(real));
}

async function isThere(folder: string): Promise<boolean> {
  try {
    return (await stat(folder)).isDirectory();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}

async function removeTree(folder: string): Promise<void> {
  // A process that is being stopped may add a file between the listing and the removal of its folder.
  await rm(folder, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
}
