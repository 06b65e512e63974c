import { stringify } from 'yaml';
import type { HostReport, ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import { MemoryMode, type ServiceConfig } from '../../proto/gen/initless/v1/types.js';
import type { ServiceRecord } from '../core/model.js';
import type { EventLog } from '../events.js';
import type { Registry } from './registry.js';

/**
 * Takes back what the store has lost from what hosts were told to serve. It is used only where the store was found empty
 * though it is not new; a service that was removed while its host was away comes back with that, and has to be removed again.
 */
export class Recovery {
  readonly #registry: Registry;
  readonly #events: EventLog;
  readonly #onError: (what: string, error: unknown) => void;

  constructor(registry: Registry, events: EventLog, onError: (what: string, error: unknown) => void) {
    this.#registry = registry;
    this.#events = events;
    this.#onError = onError;
  }

  /** A host has said what it serves. */
  take(host: string, { assignments }: HostReport): void {
    for (const assignment of assignments) {
      const name = assignment.config?.serviceName;
      if (name === undefined || this.#registry.all().some((record) => record.name === name)) continue;
      const record = recordOf(assignment, host, Date.now());
      this.#registry
        .update(name, (existing) => existing ?? record)
        .then(() => {
          const message = `${name} was taken back from what ${host} serves; its folder is not known: apply it again before it is changed`;
          this.#events.add({ kind: 'service.recovered', service: name, host, message });
        })
        .catch((error: unknown) => this.#onError(`taking ${name} back from ${host}`, error));
    }
  }
}

/** The record of a service that a host serves. What it was built from is not known any more. */
function recordOf({ config, revision, imageId }: ServiceAssignment, host: string, now: number): ServiceRecord {
  const whole = config as ServiceConfig;
  return {
    name: whole.serviceName,
    source: { text: configText(whole), dockerfile: whole.dockerfile },
    config: whole,
    folder: '',
    folderGone: false,
    removed: false,
    updatedAt: now,
    host,
    hosts: [host],
    current: { id: revision, contextDigest: '', createdAt: now, config: whole, imageId, host, madeAt: now },
    previous: [],
  };
}

/** A `config.yaml` that says all that a configuration does. */
export function configText(config: ServiceConfig): string {
  const seconds = (ms: number) => ms / 1_000;
  const minutes = (ms: number) => ms / 60_000;
  const { healthCheck: check } = config;
  const memory = MemoryMode[config.memory]?.replace('MEMORY_MODE_', '').toLowerCase() ?? '';
  return stringify({
    service_name: config.serviceName,
    is_enabled: config.isEnabled,
    image_name: config.imageName,
    tag_name: config.tagName,
    checkpoint_tag_name: config.checkpointTagName,
    checkpoint_name: config.checkpointName,
    ...(config.startCmd.length > 0 && { start_cmd: config.startCmd }),
    service_port: config.servicePort,
    host_port: config.hostPort,
    health_check: {
      path: check?.path || '/',
      ...(check?.wanted && { wanted: check.wanted }),
      timeout: check?.timeoutMs || 1_000,
    },
    ...(config.msgCheckpoint && { msg_checkpoint: config.msgCheckpoint }),
    ...(config.warmup.length > 0 && { warmup: config.warmup.map(({ path, count }) => ({ path, count })) }),
    ...(config.beforeCheckpoint && { before_checkpoint: config.beforeCheckpoint }),
    ...(config.afterRestore && { after_restore: config.afterRestore }),
    ...(Object.keys(config.env).length > 0 && { env: config.env }),
    ...(config.volumes.length > 0 && {
      volumes: config.volumes.map(({ source, target, readOnly }) => ({ source, target, read_only: readOnly })),
    }),
    reuse: config.reuse,
    memory: memory === 'unspecified' || memory === '' ? 'auto' : memory,
    ...(config.memoryLimit > 0 && { memory_limit: config.memoryLimit }),
    ...(config.cpus > 0 && { cpus: config.cpus }),
    start_timeout: seconds(config.startTimeoutMs),
    health_check_timeout: seconds(config.healthCheckTimeoutMs),
    hang_timeout: seconds(config.hangTimeoutMs),
    idle_timeout: minutes(config.idleTimeoutMs),
    pre_start_timeout: minutes(config.preStartTimeoutMs),
    pre_start_pool_size: config.preStartPoolAuto ? 'auto' : config.preStartPoolSize,
    max_pool_size: config.maxPoolSize,
    max_concurrency: config.maxConcurrency,
    queue_timeout: seconds(config.queueTimeoutMs),
    queue_limit: config.queueLimit,
    spread: Math.max(1, config.spread),
  });
}
