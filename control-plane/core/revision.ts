import { createHash } from 'node:crypto';
import { PoolShare, type ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
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

const effective = new WeakMap<ServiceRecord, WeakMap<object, ServiceConfig>>();

/** The configuration that a revision serves with: its own keys as they were, all others as they are now. */
export function effectiveConfig(record: ServiceRecord, revision: { config: ServiceConfig }): ServiceConfig {
  // Asked for with every look at a service; neither is ever changed, only replaced.
  const known = effective.get(record) ?? new WeakMap<object, ServiceConfig>();
  effective.set(record, known);
  const config = known.get(revision) ?? makeEffective(record, revision);
  known.set(revision, config);
  return config;
}

function makeEffective(record: ServiceRecord, revision: { config: ServiceConfig }): ServiceConfig {
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
  const same = a.revision === b.revision && a.imageId === b.imageId && sameShare(a.pool, b.pool);
  return same && sameConfig(a.config, b.config);
}

function sameShare(a: PoolShare | undefined, b: PoolShare | undefined): boolean {
  return a === b || (a !== undefined && b !== undefined && SHARE_KEYS.every((key) => a[key] === b[key]));
}

const SHARE_KEYS = Object.keys(PoolShare.create()) as (keyof PoolShare)[];

/** Whether two configurations say the same. */
export function sameConfig(a: ServiceConfig | undefined, b: ServiceConfig | undefined): boolean {
  return a === b || textOf(a) === textOf(b);
}

const texts = new WeakMap<ServiceConfig, string>();

function textOf(config: ServiceConfig | undefined): string {
  if (config === undefined) return '';
  const text = texts.get(config) ?? canonicalJson(ServiceConfig.toJSON(config));
  texts.set(config, text);
  return text;
}
