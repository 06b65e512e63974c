import { createHash } from 'node:crypto';
import type { PoolShare, ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import { ServiceConfig } from '../../proto/gen/initless/v1/types.js';
import { canonicalJson } from './canonical.js';
import type { MadeRevision, ServiceRecord } from './model.js';

/**
 * The one place that says which keys make a revision: a change in one of them means another image, another process when
 * it is dumped, or another proof that it works. All other keys take effect at once, without a build.
 *
 * Volumes are among them: CRIU restores the mounts that it dumped, at the same places and as writable as they were, and
 * what a process read from a source before the dump is in its memory. So is the way memory is filled, which decides what
 * system calls the process may make from its start on, and what the checkpoint holds. Limits are not: they are the cgroup's, which each
 * instance gets anew.
 */
function revisionPart(config: ServiceConfig) {
  return {
    imageName: config.imageName,
    tagName: config.tagName,
    checkpointTagName: config.checkpointTagName,
    checkpointName: config.checkpointName,
    startCmd: config.startCmd,
    servicePort: config.servicePort,
    msgCheckpoint: config.msgCheckpoint,
    warmup: config.warmup,
    beforeCheckpoint: config.beforeCheckpoint,
    env: config.env,
    volumes: config.volumes,
    dockerfile: config.dockerfile,
    memory: config.memory,
  };
}

/**
 * Id of the revision that a folder and its configuration stand for.
 *
 * @param content digest of the folder without its `config.yaml`, which stands for itself here.
 */
export function revisionId(content: string, config: ServiceConfig): string {
  // How the answer is checked is proved by a new build; how long a check may take is not part of it.
  const health = { path: config.healthCheck?.path, wanted: config.healthCheck?.wanted };
  const { volumes, memory, ...part } = revisionPart(config);
  // Left out where they say nothing, so that the revisions of earlier versions keep their ids.
  const optional = { ...(volumes.length > 0 && { volumes }), ...(memory !== 0 && { memory }) };
  const text = canonicalJson({ content, ...part, ...optional, health });
  return createHash('sha256').update(text).digest('hex').slice(0, 12);
}

/** What was worked out before. Configurations are never changed in place, and decisions compare the same ones every second. */
const EFFECTIVE = new WeakMap<ServiceConfig, WeakMap<ServiceConfig, ServiceConfig>>();
const TEXTS = new WeakMap<ServiceConfig, string>();

/** The configuration that a revision serves with: its own keys as they were, all others as they are now. */
export function effectiveConfig(record: ServiceRecord, revision: { config: ServiceConfig }): ServiceConfig {
  const known = EFFECTIVE.get(record.config) ?? new WeakMap<ServiceConfig, ServiceConfig>();
  EFFECTIVE.set(record.config, known);
  const config = known.get(revision.config) ?? merge(record, revision);
  known.set(revision.config, config);
  return config;
}

function merge(record: ServiceRecord, revision: { config: ServiceConfig }): ServiceConfig {
  const own = revision.config.healthCheck;
  return {
    ...record.config,
    ...revisionPart(revision.config),
    healthCheck: {
      path: own?.path ?? '',
      wanted: own?.wanted ?? '',
      timeoutMs: record.config.healthCheck?.timeoutMs ?? 0,
    },
  };
}

/**
 * What a host is told to serve.
 *
 * @param share its share of the pool. It is no part of the configuration: a change of it is told to the host and to nobody
 * else, and makes no revision. The only host of a pool of a configured size needs none.
 */
export function assignmentOf(record: ServiceRecord, current: MadeRevision, share?: PoolShare): ServiceAssignment {
  const config = effectiveConfig(record, current);
  const isWhole = !share?.elsewhere && share?.maxRunning === config.maxPoolSize && !config.preStartPoolAuto;
  return { config, revision: current.id, imageId: current.imageId, pool: isWhole ? undefined : share };
}

/** Whether two assignments say the same. */
export function sameAssignment(a: ServiceAssignment, b: ServiceAssignment): boolean {
  if (a.revision !== b.revision || a.imageId !== b.imageId) return false;
  return sameShare(a.pool, b.pool) && sameConfig(a.config, b.config);
}

function sameShare(a: PoolShare | undefined, b: PoolShare | undefined): boolean {
  if (a === undefined || b === undefined) return a === b;
  const { parked, ready, usefulness, maxRunning, elsewhere } = a;
  const same = parked === b.parked && ready === b.ready && usefulness === b.usefulness;
  return same && maxRunning === b.maxRunning && elsewhere === b.elsewhere;
}

/** Whether two configurations say the same. */
export function sameConfig(a: ServiceConfig | undefined, b: ServiceConfig | undefined): boolean {
  return a === b || (a !== undefined && b !== undefined && textOf(a) === textOf(b));
}

function textOf(config: ServiceConfig): string {
  const text = TEXTS.get(config) ?? canonicalJson(ServiceConfig.toJSON(config));
  TEXTS.set(config, text);
  return text;
}
