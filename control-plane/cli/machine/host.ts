import { existsSync, readFileSync } from 'node:fs';
import type Docker from 'dockerode';
import { withDeadline } from '../../../proto/rpc/deadline.js';
import { InitlessError } from '../../../proto/rpc/errors.js';
import { type Privilege, privilegeOf } from './capabilities.js';
import { removeCgroup, removeCgroupIfEmpty } from './cgroups.js';
import { engineClient, engineStatus, engineUp } from './engine.js';
import { createHostContainer, findHostContainer, removeContainer, removeVolume } from './host-container.js';
import { ensureHostImage, pruneHostImages } from './host-image.js';
import { addressOf, hostReady } from './host-ready.js';
import { hostSpec } from './host-spec.js';
import { type HostVolume, hostVolumeText, recordedVolumes, volumesToHave } from './host-volumes.js';
import { findImage } from './images.js';
import { withLock } from './lock.js';
import { HOST_IMAGE, hostNames, LABELS } from './names.js';
import { usableNameservers } from './nameservers.js';
import { ensureNetwork } from './network.js';
import type { MachineOptions } from './options.js';
import { projectRoot } from './root.js';
import { PROJECT_RANGE } from './subnet.js';

const CALL_MS = 60_000;

/** Which host, and how its agent is set. */
export interface HostSettings {
  project: string;
  host: string;
  /** Port of the control plane on the gateway address of the project's network; default 7070. */
  controlPlanePort?: number;
  /** Folders of the machine that it shall have; without: those it has. */
  volumes?: readonly HostVolume[];
  /** More INITLESS_* settings for the agent. */
  env?: Record<string, string>;
}

/** A host as the engine sees it. */
export interface HostStatus {
  host: string;
  /** Name of its container. */
  container: string;
  state: 'running' | 'restarting' | 'exited' | 'created' | 'paused' | 'dead';
  /** Address in the project's network; empty when it does not run. */
  address: string;
  /** Id of its image. */
  image: string;
  /** Whether that is the present host image. */
  current: boolean;
  volume: string;
  /** Folders of the machine that it has, "/path/on/the/machine:/path/in/the/host[:ro]" each. */
  volumes: string[];
  /** ISO 8601. */
  startedAt: string;
}

/** What {@link hostUp} did. */
export type HostAction = 'created' | 'replaced' | 'started' | 'left alone';

/**
 * Brings a host up and returns when it can be used: engine, base image, host image and network first, each only when
 * missing. A host that runs as it would be made now is left alone; another one is replaced and keeps its volume.
 *
 * Throws BAD_NAME, ENGINE_DOWN, SETUP_FAILED, BASE_IMAGE_MISSING, BUILD_FAILED, UNSUPPORTED (root lacks what a host
 * needs), NOT_ALLOWED (a container of that name is not ours, or the host has other volumes), NOT_FOUND (a volume's path on
 * this machine), AGENT_DOWN (with the end of the host's log).
 */
export async function hostUp(
  settings: HostSettings,
  options: MachineOptions = {},
): Promise<HostStatus & { action: HostAction }> {
  hostNames(settings.project, settings.host);
  if (process.getuid?.() !== 0) {
    throw new InitlessError('UNSUPPORTED', 'bringing a host up needs root', {
      subject: 'root',
      nextStep: 'run the command again as root, for instance with sudo',
    });
  }
  const privilege = privilegeOf(
    readFileSync('/proc/self/status', 'utf8'),
    readFileSync('/proc/sys/kernel/cap_last_cap', 'utf8'),
  );
  if (privilege.fatal.length > 0) {
    throw new InitlessError('UNSUPPORTED', `this user lacks what a host needs: ${privilege.fatal.join(', ')}`, {
      subject: 'capabilities',
      nextStep: 'run as root, on a machine or in a container that has these capabilities',
    });
  }
  const { action, id, imageId } = await withLock('hosts', options, () => ensureContainer(settings, privilege, options));
  const docker = engineClient();
  await hostReady(docker, id, options);
  const info = await docker.getContainer(id).inspect();
  return { ...statusOf(info, imageId), action };
}

/** Everything of {@link hostUp} but the wait for readiness. */
async function ensureContainer(
  settings: HostSettings,
  privilege: Privilege,
  options: MachineOptions,
): Promise<{ action: HostAction; id: string; imageId: string }> {
  const names = hostNames(settings.project, settings.host);
  await engineUp(options);
  const docker = engineClient();
  const image = await ensureHostImage(docker, projectRoot(), options);
  const network = await ensureNetwork(docker, settings.project, options);
  const present = await findHostContainer(docker, settings.project, settings.host, options.signal);
  const recorded = present && recordedVolumes(present.Config.Labels[LABELS.volumes]);
  const volumes = volumesToHave(settings.host, settings.volumes, recorded);
  checkOnMachine(volumes);
  const spec = hostSpec({
    project: settings.project,
    host: settings.host,
    imageId: image.id,
    networkId: network.id,
    controlPlane: `${network.gateway}:${settings.controlPlanePort ?? 7070}`,
    forbidden: [network.subnet, PROJECT_RANGE],
    nameservers: machineNameservers(),
    privilege,
    volumes,
    env: settings.env ?? {},
  });

  const same = present?.Config.Labels[LABELS.digest] === spec.Labels?.[LABELS.digest];
  let action: HostAction = 'left alone';
  let id = present?.Id ?? '';
  if (!present || !same) {
    if (present) {
      options.progress?.(`replacing ${names.container}: its image or settings changed; its volume is kept`);
      await removeContainer(docker, present.Id, options.signal);
    }
    action = present ? 'replaced' : 'created';
    options.progress?.(`starting ${names.container}`);
    id = await createHostContainer(docker, spec, names.volume, options.signal);
  } else if (present.State.Status === 'paused') {
    throw new InitlessError('NOT_ALLOWED', `${names.container} is paused`, {
      subject: names.container,
      nextStep: `docker unpause ${names.container}`,
    });
  } else if (!present.State.Running) {
    action = 'started';
    options.progress?.(`starting ${names.container}`);
    await withDeadline(CALL_MS, `${names.container} to start`, options.signal, () => docker.getContainer(id).start());
  }
  if (action === 'replaced') await pruneHostImages(docker, options);
  return { action, id, imageId: image.id };
}

/**
 * Stops and removes a host, the cgroups below its own, and with `removeVolume` its images and checkpoints.
 * Gives the names of what was removed: none when nothing was there. Throws BAD_NAME, ENGINE_DOWN, NOT_ALLOWED, BUSY.
 */
export async function hostDown(
  project: string,
  host: string,
  options: MachineOptions & { removeVolume?: boolean } = {},
): Promise<{ removed: string[] }> {
  const names = hostNames(project, host);
  const status = await engineStatus(options);
  const removed: string[] = [];
  if (status.state === 'silent') {
    throw new InitlessError('ENGINE_DOWN', `the Docker engine does not answer: ${status.detail}`);
  }
  if (status.state === 'answering') {
    const docker = engineClient();
    const present = await findHostContainer(docker, project, host, options.signal);
    if (present) {
      options.progress?.(`stopping ${names.container}`);
      await removeContainer(docker, present.Id, options.signal);
      removed.push(names.container);
    }
    if (options.removeVolume && (await removeVolume(docker, names.volume, options.signal))) removed.push(names.volume);
  }
  if (await removeCgroup(names.cgroupParent, options.signal)) removed.push(`cgroup ${names.cgroupParent}`);
  removeCgroupIfEmpty(`/${project}`);
  return { removed };
}

/** The project's hosts by name, also those that do not run; none when no engine answers. */
export async function listHosts(project: string, options: MachineOptions = {}): Promise<HostStatus[]> {
  if ((await engineStatus(options)).state !== 'answering') return [];
  const docker = engineClient();
  const image = await findImage(docker, HOST_IMAGE, options.signal);
  const listed = await withDeadline(CALL_MS, "the engine's list of hosts", options.signal, () =>
    docker.listContainers({ all: true, filters: { label: [`${LABELS.project}=${project}`, LABELS.host] } }),
  );
  const hosts: HostStatus[] = [];
  for (const { Id } of listed) {
    try {
      hosts.push(statusOf(await docker.getContainer(Id).inspect(), image?.Id ?? ''));
    } catch (error) {
      if ((error as { statusCode?: number }).statusCode !== 404) throw error; // Removed since it was listed.
    }
  }
  return hosts.sort((a, b) => a.host.localeCompare(b.host));
}

function statusOf(info: Docker.ContainerInspectInfo, currentImage: string): HostStatus {
  const host = info.Config.Labels[LABELS.host] ?? '';
  const container = info.Name.replace(/^\//, '');
  return {
    host,
    container,
    state: info.State.Status as HostStatus['state'],
    address: addressOf(info),
    image: info.Image,
    current: info.Image === currentImage,
    volume: info.Mounts.find((mount) => mount.Destination === '/var/lib/docker')?.Name ?? '',
    volumes: recordedVolumes(info.Config.Labels[LABELS.volumes]).map(hostVolumeText),
    startedAt: info.State.StartedAt,
  };
}

/** The engine would make an empty folder, as root's, of each path that is not there. */
function checkOnMachine(volumes: readonly HostVolume[]): void {
  const missing = volumes.find(({ machine }) => !existsSync(machine));
  if (missing === undefined) return;
  throw new InitlessError('NOT_FOUND', `there is no ${missing.machine} on this machine`, {
    subject: missing.machine,
    nextStep: 'correct the path, or make the folder first',
  });
}

/** The nameservers that containers can use; with systemd-resolved on the machine those that it asks itself. */
function machineNameservers(): string[] {
  for (const path of ['/etc/resolv.conf', '/run/systemd/resolve/resolv.conf']) {
    try {
      const servers = usableNameservers(readFileSync(path, 'utf8'));
      if (servers.length > 0) return servers;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
  }
  return [];
}
