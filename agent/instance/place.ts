import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { ServiceConfig, VolumeMount } from '../../proto/gen/initless/v1/types.js';
import { cgroupOf, killProcesses, removeCgroups } from '../runtime/freezer.js';
import { fillerCgroup } from '../runtime/lazy.js';
import { countsSwap } from '../runtime/limits.js';
import {
  copyTree,
  type InstanceFolder,
  instanceFolder,
  mountRootfs,
  removeFolder,
  resolveInside,
} from '../runtime/rootfs.js';
import type { Runc } from '../runtime/runc.js';
import type { Sandbox, Sandboxes } from '../runtime/sandbox.js';
import { type HostMount, instanceSpec, type Limits, type OciSpec, volumesOf } from '../runtime/spec.js';
import type { Volumes } from './volumes.js';

/** What an instance stands in: a sandbox, a root file system, a bundle. Everything that must go when it goes. */
export interface Place {
  id: string;
  sandbox: Sandbox;
  folder: InstanceFolder;
}

/** What a place is made for. */
export interface Tenant {
  id: string;
  servicePort: number;
  hostname: string;
  spec: OciSpec;
  /** Layers of the root file system, topmost first. */
  lowers: readonly string[];
  /** Folder that volume N of the image starts with; undefined: what the image has at the volume's path. */
  volume?: (index: number) => string;
  /** Service it is of. */
  service: string;
  /** Volumes that the service is configured with. */
  volumes: readonly VolumeMount[];
  limits: Limits;
}

/** What a tenant has by its service's configuration of today. */
export function configured(config: ServiceConfig): Pick<Tenant, 'service' | 'volumes' | 'limits'> {
  const { serviceName, volumes, memoryLimit, cpus } = config;
  return { service: serviceName, volumes, limits: { memory: memoryLimit, cpus } };
}

/** Makes and clears the places of this host's instances. */
export class Places {
  readonly #root: string;
  readonly #sandboxes: Sandboxes;
  readonly #runc: Runc;
  readonly #nameservers: readonly string[];
  readonly #volumes: Pick<Volumes, 'mounts'>;
  readonly #countsSwap = countsSwap();

  constructor(
    root: string,
    sandboxes: Sandboxes,
    runc: Runc,
    nameservers: readonly string[],
    volumes: Pick<Volumes, 'mounts'>,
  ) {
    this.#root = root;
    this.#sandboxes = sandboxes;
    this.#runc = runc;
    this.#nameservers = nameservers;
    this.#volumes = volumes;
  }

  /**
   * Makes a place. When it fails, nothing of it is left.
   * Errors: PORTS_EXHAUSTED, DISK_FULL, VOLUME_MISSING, VOLUME_REFUSED, INTERNAL.
   */
  async make(tenant: Tenant, signal?: AbortSignal): Promise<Place> {
    const folder = instanceFolder(this.#root, tenant.id);
    const [sandbox, files] = await Promise.allSettled([
      this.#sandboxes.take(tenant.servicePort, signal),
      this.#files(tenant, folder, signal),
    ]);
    if (sandbox.status === 'rejected' || files.status === 'rejected') {
      if (sandbox.status === 'fulfilled') this.#sandboxes.giveBack(sandbox.value);
      await removeFolder(folder);
      throw sandbox.status === 'rejected' ? sandbox.reason : (files as PromiseRejectedResult).reason;
    }
    const place = { id: tenant.id, sandbox: sandbox.value, folder };
    const spec = instanceSpec(tenant.spec, {
      root: folder.root,
      netns: sandbox.value.netns,
      cgroup: cgroupOf(tenant.id),
      files: folder.dir,
      mounts: files.value,
      limits: tenant.limits,
      countsSwap: this.#countsSwap,
    });
    try {
      await writeFile(path.join(folder.bundle, 'config.json'), JSON.stringify(spec));
    } catch (error) {
      await this.clear(place);
      throw error;
    }
    return place;
  }

  /** Lays out its files; gives what of the host is to be mounted over them. */
  async #files(tenant: Tenant, folder: InstanceFolder, signal?: AbortSignal): Promise<HostMount[]> {
    await mountRootfs(folder, tenant.lowers, tenant.hostname, this.#nameservers, signal);
    const volumes = volumesOf(tenant.spec);
    await Promise.all(
      volumes.map(async (destination, index) => {
        const from = tenant.volume?.(index) ?? (await resolveInside(folder.root, destination));
        const to = volumeFolder(folder, index);
        if (from === undefined) await mkdir(to, { recursive: true });
        else await copyTree(from, to, signal);
      }),
    );
    return this.#volumes.mounts(tenant.service, tenant.volumes, folder.root);
  }

  /** Kills what runs in a place and removes all of it: process before sandbox, since a namespace lives as long as its processes. */
  async clear(place: Place): Promise<void> {
    // Not left to runc: on some hosts it kills the first process and thaws the others before they end with it, and a parked
    // instance may hold a request by then that is being answered elsewhere.
    await killProcesses(place.id);
    await this.#runc.remove(place.id);
    await removeCgroups(place.id);
    // After the instance: what it reads without its daemon is wrong.
    await removeCgroups(fillerCgroup(place.id));
    this.#sandboxes.giveBack(place.sandbox);
    await removeFolder(place.folder);
  }
}

/** Where volume `index` of an instance lies. */
export function volumeFolder(folder: InstanceFolder, index: number): string {
  return path.join(folder.dir, 'volumes', String(index));
}
