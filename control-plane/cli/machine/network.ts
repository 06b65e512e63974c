import { readFileSync } from 'node:fs';
import type Docker from 'dockerode';
import { withDeadline } from '../../../proto/rpc/deadline.js';
import { InitlessError } from '../../../proto/rpc/errors.js';
import { run } from './exec.js';
import { checkName, LABELS } from './names.js';
import { usableNameservers } from './nameservers.js';
import type { MachineOptions } from './options.js';
import { chooseSubnet, gatewayOf, SUBNETS } from './subnet.js';

const CALL_MS = 30_000;

/** A project's own network in the engine. */
export interface ProjectNetwork {
  /** The project's name. */
  name: string;
  id: string;
  /** IPv4 CIDR. */
  subnet: string;
  /** The machine's address in it: where hosts reach the control plane. */
  gateway: string;
}

/** The project's network; undefined when there is none. Throws NOT_ALLOWED when one of that name is not ours. */
export async function findNetwork(
  docker: Docker,
  project: string,
  signal?: AbortSignal,
): Promise<ProjectNetwork | undefined> {
  checkName('project', project);
  try {
    const found: Docker.NetworkInspectInfo = await withDeadline(
      CALL_MS,
      `the engine's answer about the network ${project}`,
      signal,
      () => docker.getNetwork(project).inspect(),
    );
    if (found.Labels?.[LABELS.project] !== project) {
      throw new InitlessError('NOT_ALLOWED', `the engine has a network '${project}' that is not ours`, {
        subject: project,
        nextStep: `choose another project with --project, or remove it: docker network rm ${project}`,
      });
    }
    const subnet = found.IPAM?.Config?.[0]?.Subnet ?? '';
    return { name: project, id: found.Id, subnet, gateway: found.IPAM?.Config?.[0]?.Gateway || gatewayOf(subnet) };
  } catch (error) {
    if ((error as { statusCode?: number }).statusCode === 404) return undefined;
    throw error;
  }
}

/**
 * Makes sure that the project has a network, on a subnet that nothing on the machine uses. Throws NOT_ALLOWED as
 * {@link findNetwork} does, SETUP_FAILED when no subnet is left.
 */
export async function ensureNetwork(
  docker: Docker,
  project: string,
  options: MachineOptions = {},
): Promise<ProjectNetwork> {
  const present = await findNetwork(docker, project, options.signal);
  if (present) return present;
  const taken = await addressesInUse(docker, options);
  for (let candidates = SUBNETS; ; ) {
    const subnet = chooseSubnet(candidates, taken);
    if (subnet === undefined) {
      throw new InitlessError(
        'SETUP_FAILED',
        `no subnet is left for the network '${project}': all of ours are in use`,
        {
          subject: project,
          nextStep: `make one by hand: docker network create --label ${LABELS.project}=${project} --subnet A.B.C.0/24 ${project}`,
        },
      );
    }
    try {
      await withDeadline(CALL_MS, `the network ${project} to be made`, options.signal, () =>
        docker.createNetwork({
          Name: project,
          Driver: 'bridge',
          CheckDuplicate: true,
          IPAM: { Driver: 'default', Config: [{ Subnet: subnet, Gateway: gatewayOf(subnet) }] },
          Labels: { [LABELS.project]: project },
        }),
      );
      options.progress?.(`made the network ${project} (${subnet})`);
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error);
      // Somebody made the network, or took the subnet, since we looked.
      if (/overlap/i.test(text)) candidates = candidates.slice(candidates.indexOf(subnet) + 1);
      else if (!/already exists/i.test(text)) throw error;
    }
    const made = await findNetwork(docker, project, options.signal);
    if (made) return made;
  }
}

/** Removes the project's network; false when there was none. Throws NOT_ALLOWED while containers are attached. */
export async function removeNetwork(docker: Docker, project: string, options: MachineOptions = {}): Promise<boolean> {
  const found = await findNetwork(docker, project, options.signal);
  if (!found) return false;
  try {
    await withDeadline(CALL_MS, `the network ${project} to be removed`, options.signal, () =>
      docker.getNetwork(found.id).remove(),
    );
    return true;
  } catch (error) {
    const { statusCode } = error as { statusCode?: number };
    if (statusCode === 404) return false;
    if (statusCode !== 403 && statusCode !== 409) throw error;
    throw new InitlessError('NOT_ALLOWED', `the network '${project}' still has containers attached`, {
      subject: project,
      nextStep: `take them down first ('docker network inspect ${project}' names them)`,
      cause: error,
    });
  }
}

/** Addresses and networks that the machine routes to, its engine hands out, or its resolver uses. */
async function addressesInUse(docker: Docker, options: MachineOptions): Promise<string[]> {
  const routes = JSON.parse(
    await run('ip', ['-j', '-4', 'route', 'show', 'table', 'all'], {
      timeoutMs: 10_000,
      errorCode: 'SETUP_FAILED',
      signal: options.signal,
    }),
  ) as { dst?: string }[];
  const networks = await withDeadline(CALL_MS, "the engine's list of networks", options.signal, () =>
    docker.listNetworks(),
  );
  return [
    ...routes.flatMap((route) => route.dst ?? []),
    ...networks.flatMap((network) => network.IPAM?.Config?.flatMap((config) => config.Subnet ?? []) ?? []),
    ...usableNameservers(readFileSync('/etc/resolv.conf', 'utf8')),
  ];
}
