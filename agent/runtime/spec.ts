import path from 'node:path';
import { InitlessError } from '../../proto/rpc/errors.js';
import { INNER_ADDRESS } from './sandbox.js';

/** The part of an OCI runtime specification that is looked at here; the rest is carried as it is. */
export interface OciSpec {
  process: { args: string[]; env: string[]; [key: string]: unknown };
  root: { path: string; [key: string]: unknown };
  hostname?: string;
  mounts: OciMount[];
  hooks?: unknown;
  linux: {
    namespaces: { type: string; path?: string }[];
    cgroupsPath?: string;
    resources?: Resources;
    [key: string]: unknown;
  };
  [key: string]: unknown;
}

/** What the processes of a container may use together. */
export interface Resources {
  devices?: DeviceRule[];
  memory?: { limit?: number; swap?: number; [key: string]: unknown };
  cpu?: { quota?: number; period?: number; [key: string]: unknown };
  pids?: { limit?: number; [key: string]: unknown };
  [key: string]: unknown;
}

/** A rule about devices; one without a type is about all, one without a number about all numbers. */
export interface DeviceRule {
  allow: boolean;
  type?: string;
  major?: number;
  minor?: number;
  /** Of "r", "w" and "m", which makes device files. */
  access?: string;
}

/** One mount of a specification. */
export interface OciMount {
  destination: string;
  type?: string;
  source?: string;
  options?: string[];
}

/** A folder or file of the host, with links resolved, that an instance has at `target`. */
export interface HostMount {
  source: string;
  target: string;
  readOnly: boolean;
}

/** What the processes of one instance may use together. */
export interface Limits {
  /** Memory, bytes. 0: no limit. */
  memory: number;
  /** CPUs, fractions allowed. 0: no limit. */
  cpus: number;
}

/** What an instance's specification differs in from the one that Docker made for its revision. */
export interface InstancePlace {
  /** Absolute path of its root file system. */
  root: string;
  /** Path of its network namespace. */
  netns: string;
  /** Its cgroup. */
  cgroup: string;
  /** Folder of its own files: resolv.conf, hostname, hosts and `volumes/N`. */
  files: string;
  /** What of the host is mounted into it. */
  mounts: readonly HostMount[];
  limits: Limits;
  /** Whether the host's kernel counts swap; a limit on memory is one on swap too then. */
  countsSwap: boolean;
}

/** The files of /etc that Docker gives each container by a bind mount; ours come from the instance's own folder. */
export const ETC_FILES = ['resolv.conf', 'hostname', 'hosts'] as const;

/**
 * A revision's specification: Docker's, with what belongs to the one container it was read from taken out. Mounts of
 * the container's folder and volumes keep their place and lose their source; {@link instanceSpec} fills it in.
 *
 * @param spec `config.json` of the bundle that Docker made.
 * @param args the command: the image's ENTRYPOINT and `start_cmd` or CMD.
 * @param placeholder destination of the mount that brought in the no-op entrypoint; it is dropped.
 */
export function revisionSpec(
  spec: OciSpec,
  args: readonly string[],
  env: readonly string[],
  hostname: string,
  placeholder: string,
): OciSpec {
  if (args.length === 0) {
    throw new InitlessError('BAD_CONFIG', 'the image has neither ENTRYPOINT nor CMD, and there is no start_cmd', {
      nextStep: "add a CMD to the Dockerfile or 'start_cmd' to config.yaml",
    });
  }
  const copy = structuredClone(spec);
  delete copy.hooks;
  copy.hostname = hostname;
  copy.process.args = [...args];
  const ours = [...(env.some((entry) => nameOf(entry) === 'HOSTNAME') ? [] : [`HOSTNAME=${hostname}`]), ...env];
  const names = new Set(ours.map(nameOf));
  copy.process.env = [...copy.process.env.filter((entry) => !names.has(nameOf(entry))), ...ours];
  copy.mounts = copy.mounts.filter((mount) => mount.destination !== placeholder);
  for (const mount of copy.mounts) {
    if (mount.type === 'bind' && mount.source?.startsWith('/var/lib/docker/')) mount.source = '';
  }
  return copy;
}

/** A revision's specification without the image's own volumes at paths where the service has one of its own. */
export function withoutReplaced(spec: OciSpec, targets: readonly string[]): OciSpec {
  const kept = (mount: OciMount) => mount.type !== 'bind' || !targets.includes(mount.destination);
  return { ...spec, mounts: spec.mounts.filter(kept) };
}

/** Destinations of the image's own volumes, each with a copy for every instance, in the order of their folders `volumes/0`, `volumes/1` ... */
export function volumesOf(spec: OciSpec): string[] {
  const etc = ETC_FILES.map((name) => `/etc/${name}`);
  return spec.mounts
    .filter((mount) => mount.type === 'bind' && mount.source === '' && !etc.includes(mount.destination))
    .map((mount) => mount.destination);
}

/** The specification of one instance. */
export function instanceSpec(revision: OciSpec, place: InstancePlace): OciSpec {
  const spec = structuredClone(revision);
  const volumes = volumesOf(revision);
  spec.root.path = place.root;
  spec.linux.cgroupsPath = place.cgroup;
  const network = spec.linux.namespaces.find((namespace) => namespace.type === 'network');
  if (network) network.path = place.netns;
  else spec.linux.namespaces.push({ type: 'network', path: place.netns });
  for (const mount of spec.mounts) {
    if (mount.source !== '') continue;
    const name = path.basename(mount.destination);
    const volume = volumes.indexOf(mount.destination);
    mount.source = volume >= 0 ? path.join(place.files, 'volumes', String(volume)) : path.join(place.files, name);
  }
  spec.mounts = inOrder([...spec.mounts, ...place.mounts.map(bindOf)]);
  spec.linux.resources = limited(spec.linux.resources ?? {}, place.limits, place.countsSwap);
  return spec;
}

/**
 * Not recursive: what is mounted below the source is no mount that CRIU knows from outside, and it would refuse the dump.
 * Private, so that nothing that is mounted there later comes in either.
 */
function bindOf({ source, target, readOnly }: HostMount): OciMount {
  return { destination: target, type: 'bind', source, options: ['bind', 'rprivate', readOnly ? 'ro' : 'rw'] };
}

/** The kernel's own mounts as they are, then all others so that none hides another one: folders before what is in them. */
function inOrder(mounts: readonly OciMount[]): OciMount[] {
  const depth = ({ destination }: OciMount) => destination.split('/').length;
  const binds = mounts.filter((mount) => mount.type === 'bind');
  return [...mounts.filter((mount) => mount.type !== 'bind'), ...binds.sort((a, b) => depth(a) - depth(b))];
}

/**
 * Resources with limits. A restored instance, too, has those that the bundle's config.json has now, not those of the dump:
 * see restore.ts. CRIU's own work counts against the limit on memory.
 */
function limited(resources: Resources, limits: Limits, countsSwap: boolean): Resources {
  const { memory, cpus } = limits;
  // The limit on memory and swap together is that on memory: no swap, as with Docker's --memory-swap of the same value.
  const swap = countsSwap ? { swap: memory } : {};
  return {
    ...resources,
    ...(memory > 0 && { memory: { ...resources.memory, limit: memory, ...swap } }),
    ...(cpus > 0 && { cpu: { ...resources.cpu, quota: Math.round(cpus * CPU_PERIOD), period: CPU_PERIOD } }),
  };
}

/** Microseconds in which an instance may use its share of CPU time; Docker's own. */
const CPU_PERIOD = 100_000;

/** Name of a variable, of "NAME=value". */
function nameOf(entry: string): string {
  return entry.slice(0, entry.indexOf('='));
}

/** Contents of the files of {@link ETC_FILES} in every instance of a revision. */
export function etcFiles(hostname: string, nameservers: readonly string[]): Record<(typeof ETC_FILES)[number], string> {
  return {
    'resolv.conf': `${nameservers.map((server) => `nameserver ${server}`).join('\n')}\n`,
    hostname: `${hostname}\n`,
    hosts: `127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n${INNER_ADDRESS}\t${hostname}\n`,
  };
}
