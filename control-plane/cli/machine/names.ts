import { InitlessError } from '../../../proto/rpc/errors.js';

/** Project that is used where none is named. Everything of a project on a machine carries its name. */
export const DEFAULT_PROJECT = 'initless';

/** The image that hosts are made from; one for all projects of a machine. */
export const HOST_IMAGE = 'initless-host:latest';

/** The image that samples and the host image start from; made on the machine where no registry has it. */
export const BASE_IMAGE = 'debian:trixie-slim';

/** Labels on what is ours in the engine; `volumes` are those of a host as it was asked for, `image` is "host" or "shim" or "base" on images, which belong to no project. */
export const LABELS = {
  project: 'initless.project',
  host: 'initless.host',
  volumes: 'initless.volumes',
  image: 'initless.image',
  digest: 'initless.digest',
} as const;

/** Where everything that outlives a process is kept on the machine; readable by root only. */
export const STATE_ROOT = '/var/lib/initless';

/** State of an engine that we started. */
export const ENGINE_STATE_DIR = `${STATE_ROOT}/engine`;

/** A project's state: store/, contexts/, run/. */
export function stateDir(project: string): string {
  return `${STATE_ROOT}/${checkName('project', project)}`;
}

const NAME = /^[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?$/;

/**
 * Gives the name back when it can be a host name, a cgroup, a container and a folder at once. Throws BAD_NAME.
 * "engine" and "tmp" are folders of our own beside the projects' ones.
 */
export function checkName(kind: 'host' | 'project', name: string): string {
  if (!NAME.test(name)) {
    const shown = JSON.stringify(name.length > 64 ? `${name.slice(0, 64)}...` : name);
    throw new InitlessError('BAD_NAME', `${shown} cannot be the name of a ${kind}`, {
      subject: kind,
      nextStep: 'use 1 to 32 characters of a-z, 0-9 and -, the first and the last one a letter or a digit',
    });
  }
  if (kind === 'project' && (name === 'engine' || name === 'tmp')) {
    throw new InitlessError('BAD_NAME', `"${name}" is reserved and cannot be the name of a project`, { subject: kind });
  }
  return name;
}

/** What a host is called in the engine and in the cgroup file systems. */
export interface HostNames {
  /** Container. */
  container: string;
  /** Volume on /var/lib/docker in the container. */
  volume: string;
  /** Parent of the container's cgroup, in every hierarchy of the machine. */
  cgroupParent: string;
}

/** Names of a host's things. Throws BAD_NAME. */
export function hostNames(project: string, host: string): HostNames {
  checkName('project', project);
  checkName('host', host);
  return {
    container: `${project}-${host}`,
    volume: `${project}-${host}-docker`,
    cgroupParent: `/${project}/${host}`,
  };
}
