import { randomBytes } from 'node:crypto';
import type { MeasureStart, ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import { Measurement, Origin, type ServiceConfig } from '../../proto/gen/initless/v1/types.js';
import { sleep } from '../../proto/rpc/deadline.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import type { RevisionRecord } from '../checkpoint/revisions.js';
import type { DockerEngine } from '../runtime/docker.js';
import { run } from '../runtime/exec.js';
import { untilHealthy } from '../runtime/health.js';
import type { Sandboxes } from '../runtime/sandbox.js';
import type { HostMount } from '../runtime/spec.js';
import type { Instances } from './instances.js';
import type { Volumes } from './volumes.js';

/** Pause before each timed start, so that none pays for the removal of the one before. */
const SETTLE_MS = 1_000;

/** What timing starts needs. */
export interface MeasureParts {
  instances: Instances;
  docker: DockerEngine;
  sandboxes: Sandboxes;
  volumes: Pick<Volumes, 'mounts'>;
  /** Address of this host that gateways reach. */
  hostAddress: string;
}

/**
 * Times one start of a service, from the command until its health check passes, and removes what was started. Both kinds
 * are polled by the same code at the same address of the host, on a port of the same range.
 * Errors: those of the start; COLD_ORIGIN is left to whoever asked, by the origin in the result.
 */
export async function measureStart(
  parts: MeasureParts,
  command: MeasureStart,
  assignment: ServiceAssignment,
  record: RevisionRecord,
  signal: AbortSignal,
): Promise<Measurement> {
  // What the start before this one left to the kernel (namespaces, cgroups, memory) goes in the background.
  await sleep(SETTLE_MS, signal);
  if (command.kind === 'restored') return measureRestored(parts, command, assignment);
  if (command.kind === 'docker_run') return measureDockerRun(parts, command, assignment, record, signal);
  throw new InitlessError('BAD_REQUEST', `kind: found '${command.kind}', expected 'docker_run' or 'restored'`);
}

async function measureRestored(
  parts: MeasureParts,
  command: MeasureStart,
  assignment: ServiceAssignment,
): Promise<Measurement> {
  const start = performance.now();
  const instance = await parts.instances.start(assignment);
  const ms = performance.now() - start;
  await parts.instances.remove(instance.id, 'operator');
  return Measurement.fromPartial({ ...common(command, ms), origin: instance.origin, stages: instance.stages });
}

async function measureDockerRun(
  parts: MeasureParts,
  command: MeasureStart,
  assignment: ServiceAssignment,
  record: RevisionRecord,
  signal: AbortSignal,
): Promise<Measurement> {
  const config = assignment.config as ServiceConfig;
  const { healthCheck } = config;
  if (healthCheck === undefined) throw new InitlessError('INTERNAL', `${config.serviceName} has no health check`);
  const lease = await parts.sandboxes.leasePort(signal);
  const name = `initless-measure-${config.serviceName}-${randomBytes(4).toString('hex')}`;
  const address = `${parts.hostAddress}:${lease.port}`;
  try {
    const mounts = await parts.volumes.mounts(config.serviceName, config.volumes, undefined);
    const args = dockerRun(config, mounts, record.imageId, name, address);
    const start = performance.now();
    await run('docker', args, { signal, timeoutMs: config.startTimeoutMs });
    const started = performance.now();
    await untilHealthy(address, healthCheck, config.startTimeoutMs, undefined, signal);
    const end = performance.now();
    return Measurement.fromPartial({
      ...common(command, end - start),
      origin: Origin.ORIGIN_COLD,
      stages: [
        { stage: 'docker_run', ms: started - start },
        { stage: 'health', ms: end - started },
      ],
    });
  } finally {
    await parts.docker.removeContainer(name);
    parts.sandboxes.returnPort(lease.index);
  }
}

/** The command line of `docker run` that gives a container what an instance of the service has. */
export function dockerRun(
  config: ServiceConfig,
  mounts: readonly HostMount[],
  imageId: string,
  name: string,
  address: string,
): string[] {
  const { servicePort, env, memoryLimit, cpus, startCmd } = config;
  const args = ['run', '--detach', '--name', name, '--label', 'initless.purpose=measure'];
  args.push('--publish', `${address}:${servicePort}`);
  for (const [key, value] of Object.entries(env)) args.push('--env', `${key}=${value}`);
  for (const { source, target, readOnly } of mounts) {
    args.push('--volume', `${source}:${target}:${readOnly ? 'ro' : 'rw'}`);
  }
  if (memoryLimit > 0) args.push('--memory', String(memoryLimit), '--memory-swap', String(memoryLimit));
  if (cpus > 0) args.push('--cpus', String(cpus));
  return [...args, imageId, ...startCmd];
}

function common(command: MeasureStart, ms: number) {
  return { service: command.service, kind: command.kind, round: command.round, ms: Math.round(ms * 100) / 100 };
}
