import type Docker from 'dockerode';
import { droppable, type Privilege } from './capabilities.js';
import { digestOfJson } from './digest.js';
import { type HostVolume, hostVolumeText, recordVolumes } from './host-volumes.js';
import { hostNames, LABELS } from './names.js';

/** What a host's container is made from. */
export interface HostSpecInput {
  project: string;
  host: string;
  /** Id of the host image, not its tag: another build is another container. */
  imageId: string;
  /** Id of the project's network, likewise. */
  networkId: string;
  /** Address of the control plane as hosts see it, "HOST:PORT". */
  controlPlane: string;
  /** Networks that instances must not reach: those of projects, with control planes and agents in them. */
  forbidden: readonly string[];
  /** Nameservers that containers in the host use. */
  nameservers: readonly string[];
  privilege: Privilege;
  /** Folders of the machine that it has too. */
  volumes: readonly HostVolume[];
  /** More of the agent's settings. */
  env: Readonly<Record<string, string>>;
}

/** The engine's fields that its type declarations leave out. */
type HostConfig = Docker.HostConfig & { CgroupnsMode: 'private' };

/**
 * The container of a host, and the digest of all of it as a label: a container with another digest is replaced.
 *
 * `--privileged` where the engine's root has every capability. Elsewhere the same by parts: all capabilities there are,
 * no seccomp or AppArmor profile, nothing masked, every device. Then only the cgroup hierarchies are still read-only,
 * which agent/entrypoint.sh changes.
 */
export function hostSpec(input: HostSpecInput): Docker.ContainerCreateOptions {
  const names = hostNames(input.project, input.host);
  const env: Record<string, string> = {
    INITLESS_PROJECT: input.project,
    INITLESS_HOST: input.host,
    INITLESS_CONTROL_PLANE: input.controlPlane,
    INITLESS_FORBIDDEN: input.forbidden.join(' '),
    INITLESS_DNS: input.nameservers.join(' '),
    ...input.env,
  };
  const privileges: Partial<HostConfig> = input.privilege.privileged
    ? { Privileged: true }
    : {
        CapAdd: ['ALL'],
        CapDrop: droppable(input.privilege.missing),
        SecurityOpt: ['seccomp=unconfined', 'apparmor=unconfined', 'label=disable'],
        MaskedPaths: [],
        ReadonlyPaths: [],
        DeviceCgroupRules: ['a *:* rwm'],
      };
  const hostConfig: HostConfig = {
    ...privileges,
    // Everything that runs in the host, also what its engine starts, is counted below this group.
    CgroupnsMode: 'private',
    CgroupParent: names.cgroupParent,
    NetworkMode: input.networkId,
    Binds: [`${names.volume}:/var/lib/docker`, ...input.volumes.map(hostVolumeText)],
    // CRIU keeps what it found out about the kernel in /run and believes it only on a tmpfs.
    Tmpfs: { '/run': 'rw,nosuid,nodev,exec,mode=755' },
    RestartPolicy: { Name: 'unless-stopped' },
    LogConfig: { Type: 'json-file', Config: { 'max-size': '10m', 'max-file': '3' } },
  };
  const spec: Docker.ContainerCreateOptions = {
    name: names.container,
    Hostname: input.host,
    Image: input.imageId,
    Env: Object.entries(env).map(([name, value]) => `${name}=${value}`),
    StopTimeout: 30,
    HostConfig: hostConfig,
  };
  const record = recordVolumes(input.volumes);
  return {
    ...spec,
    Labels: {
      [LABELS.project]: input.project,
      [LABELS.host]: input.host,
      [LABELS.digest]: digestOfJson(spec),
      ...(record !== undefined && { [LABELS.volumes]: record }),
    },
  };
}
