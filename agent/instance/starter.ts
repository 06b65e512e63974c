import { randomBytes } from 'node:crypto';
import type { Logger } from 'pino';
import type { ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import { MemoryMode, Origin, type ServiceConfig } from '../../proto/gen/initless/v1/types.js';
import { InitlessError, problemOf, toInitlessError } from '../../proto/rpc/errors.js';
import type { Checkpoints, Usable } from '../checkpoint/checkpoints.js';
import type { Revisions } from '../checkpoint/revisions.js';
import type { Exits } from '../runtime/exits.js';
import { get, untilHealthy } from '../runtime/health.js';
import type { LazyPages } from '../runtime/lazy.js';
import { identify, listening, type ProcessId, whyUnreachable } from '../runtime/process.js';
import type { Entering } from '../runtime/restore.js';
import type { Runc } from '../runtime/runc.js';
import { Instance } from './instance.js';
import type { Reason } from './lifecycle.js';
import type { Logs } from './logs.js';
import { configured, type Place, type Places, type Tenant } from './place.js';
import type { RestoreOptions, Restorer } from './restorer.js';

/** What starting an instance needs. */
export interface StarterParts {
  places: Places;
  runc: Runc;
  restorer: Restorer;
  checkpoints: Checkpoints;
  revisions: Revisions;
  logs: Logs;
  exits: Exits;
  lazy: Pick<LazyPages, 'watch'>;
  log: Logger;
  /** Told of each state that an instance reaches, also of those that never become healthy. */
  onState: (instance: Instance) => void;
}

/** Brings instances up: restored, retried once in a fresh sandbox, and then cold, so that the caller is answered. */
export class Starter {
  readonly #parts: StarterParts;

  constructor(parts: StarterParts) {
    this.#parts = parts;
  }

  /**
   * A healthy instance of a service. `instance.problem` says why it is cold although it should have been restored.
   * Errors: those of the cold start, or of the restore with `onlyRestored`.
   *
   * @param filled all of its memory is there, as an instance needs that is to be frozen. Otherwise it may still be filling.
   */
  async start(
    assignment: ServiceAssignment,
    onlyRestored: boolean,
    signal?: AbortSignal,
    filled = false,
  ): Promise<Instance> {
    const config = assignment.config as ServiceConfig;
    const { checkpoints, log } = this.#parts;
    const record = this.#parts.revisions.get(config.serviceName, assignment.revision);
    let failure: InitlessError | undefined;
    if (record.problem === undefined || checkpoints.has(config.serviceName, assignment.revision)) {
      for (let tries = 0; tries < 2; tries++) {
        try {
          const instance = await this.#restored(assignment, filled, signal);
          checkpoints.restored(config.serviceName, assignment.revision, undefined);
          return instance;
        } catch (error) {
          if (signal?.aborted) throw error;
          failure = toInitlessError(error);
          log.warn(
            { service: config.serviceName, code: failure.code, error: failure.message, try: tries + 1 },
            'a restore failed',
          );
          // A checkpoint that must not be used will not be better the second time, nor will the host.
          if (isHosts(failure)) throw failure;
          if (['CHECKPOINT_DAMAGED', 'CHECKPOINT_INCOMPATIBLE', 'NO_CHECKPOINT'].includes(failure.code)) break;
        }
      }
      checkpoints.restored(config.serviceName, assignment.revision, failure);
    }
    if (onlyRestored)
      throw (
        failure ??
        new InitlessError('NO_CHECKPOINT', `${config.serviceName} has no checkpoint: ${record.problem?.message ?? ''}`)
      );
    return this.#cold(assignment, failure, signal);
  }

  async #restored(assignment: ServiceAssignment, filled: boolean, signal?: AbortSignal): Promise<Instance> {
    const config = assignment.config as ServiceConfig;
    const instance = this.#new(assignment, Origin.ORIGIN_RESTORED);
    const record = this.#parts.revisions.get(config.serviceName, assignment.revision);
    let usable: Usable | undefined;
    let entering: Entering | undefined;
    const restored = this.#bringUp(instance, 'restore_failed', config.healthCheckTimeoutMs, signal, {
      tenant: async () => {
        usable = await instance.timed('verify', () =>
          this.#parts.checkpoints.use(config.serviceName, assignment.revision, signal),
        );
        instance.checkpointDir = usable.dir;
        instance.memory = usable.manifest.memory.mode;
        entering = this.#parts.restorer.enter(instance.id);
        return {
          id: instance.id,
          servicePort: config.servicePort,
          hostname: usable.manifest.hostname,
          spec: usable.spec,
          lowers: [...usable.layers, ...record.layers],
          volume: usable.volume,
          ...configured(config),
        };
      },
      run: async (output) => {
        const { source } = usable as Usable;
        const lazy = instance.memory === MemoryMode.MEMORY_MODE_LAZY;
        const onFiller: RestoreOptions['onFiller'] = (filler) => {
          instance.filler = filler;
        };
        return instance.timed('restore', () =>
          this.#parts.restorer.restore(placeOf(instance), source, output, { entering, lazy, onFiller, signal }),
        );
      },
      settle: async () => {
        if (!filled || instance.filler === undefined) return;
        const { filler } = instance;
        await instance.timed('fill', () => this.#parts.restorer.filled(placeOf(instance), filler, signal));
        instance.filler = undefined;
      },
    });
    try {
      return await restored;
    } catch (error) {
      await entering?.abandon();
      throw error;
    }
  }

  async #cold(
    assignment: ServiceAssignment,
    because: InitlessError | undefined,
    signal?: AbortSignal,
  ): Promise<Instance> {
    const config = assignment.config as ServiceConfig;
    const instance = this.#new(assignment, Origin.ORIGIN_COLD);
    const record = this.#parts.revisions.get(config.serviceName, assignment.revision);
    instance.problem = because ? problemOf(because) : record.problem;
    return this.#bringUp(instance, 'health_timeout', config.startTimeoutMs, signal, {
      tenant: async () => ({
        id: instance.id,
        servicePort: config.servicePort,
        hostname: record.hostname,
        spec: record.spec,
        lowers: record.layers,
        ...configured(config),
      }),
      run: (output) => {
        const { folder } = placeOf(instance);
        return instance.timed('start', () => this.#parts.runc.start(instance.id, folder, output, signal));
      },
    });
  }

  #new(assignment: ServiceAssignment, origin: Origin): Instance {
    const name = assignment.config?.serviceName ?? '';
    const instance = new Instance(`${name}-${randomBytes(4).toString('hex')}`, assignment, origin);
    this.#parts.onState(instance);
    return instance;
  }

  /** The steps that both kinds of start share. When one fails, nothing of the instance is left but its log. */
  async #bringUp(
    instance: Instance,
    failedReason: Reason,
    healthTimeoutMs: number,
    signal: AbortSignal | undefined,
    steps: {
      tenant: () => Promise<Tenant>;
      run: (output: { stdout: string; stderr: string }) => Promise<number>;
      /** What must be waited for once it is healthy. */
      settle?: () => Promise<void>;
    },
  ): Promise<Instance> {
    const config = instance.assignment.config as ServiceConfig;
    let reason = failedReason;
    try {
      const tenant = await steps.tenant();
      instance.place = await instance.timed('place', () => this.#parts.places.make(tenant, signal));
      instance.apply({ type: 'start' });
      this.#parts.onState(instance);
      const output = await this.#parts.logs.create(instance.service, instance.id);
      const pid = await steps.run(output);
      instance.process = identify(pid);
      if (instance.process === undefined) throw exited(instance, undefined);
      reason = 'health_timeout';
      await instance.timed('health', () => this.#healthy(instance, config, healthTimeoutMs, signal));
      if (config.afterRestore !== '' && instance.origin === Origin.ORIGIN_RESTORED) {
        await instance.timed('after_restore', () =>
          callOnce(instance.address, config.afterRestore, healthTimeoutMs, signal),
        );
      }
      await steps.settle?.();
      instance.apply({ type: 'healthy' });
      this.#parts.onState(instance);
      return instance;
    } catch (error) {
      const failure = toInitlessError(error);
      if (failure.code === 'EXITED_EARLY') reason = 'crashed';
      if (failure.code === 'RESTORE_FAILED') reason = 'restore_failed';
      instance.problem = problemOf(failure);
      instance.apply({ type: 'end', reason });
      if (instance.place) await this.#parts.places.clear(instance.place);
      this.#parts.onState(instance);
      throw failure;
    }
  }

  async #healthy(instance: Instance, config: ServiceConfig, timeoutMs: number, signal?: AbortSignal): Promise<void> {
    const process = instance.process as ProcessId;
    const { healthCheck } = config;
    if (healthCheck === undefined) throw new InitlessError('INTERNAL', `${config.serviceName} has no health check`);
    const { exits, lazy } = this.#parts;
    let unwatch = () => {};
    let unwatchFill = () => {};
    const died = new Promise<never>((_, reject) => {
      unwatch = exits.watch(instance.id, process, async () => reject(exited(instance, await exits.statusOf(process))));
      if (instance.filler === undefined) return;
      unwatchFill = lazy.watch(instance.id, placeOf(instance).folder, instance.filler, (failure) => {
        if (failure) reject(failure);
        else instance.filler = undefined;
      });
    });
    // Also when nobody waits for it any more.
    died.catch(() => {});
    try {
      await untilHealthy(instance.address, healthCheck, timeoutMs, died, signal);
    } catch (error) {
      throw explain(error, process, config.servicePort);
    } finally {
      unwatch();
      unwatchFill();
    }
  }
}

function placeOf({ id, place }: Instance): Place {
  if (place === undefined) throw new InitlessError('INTERNAL', `instance ${id} has no place to run in`);
  return place;
}

/** Whether it is the host that lacks something, so that no kind of start can succeed, and no checkpoint is to blame. */
export function isHosts(failure: InitlessError): boolean {
  return ['PORTS_EXHAUSTED', 'DISK_FULL', 'VOLUME_MISSING', 'VOLUME_REFUSED'].includes(failure.code);
}

function exited(instance: Instance, status: string | undefined): InitlessError {
  const how = status === undefined ? '' : ` (${status})`;
  return new InitlessError('EXITED_EARLY', `the process of ${instance.id} ended before it was healthy${how}`, {
    subject: instance.id,
    nextStep: `see what it printed: initless service logs ${instance.service} --instance ${instance.id}`,
  });
}

/** A health check that got no answer, with what /proc says of where the process listens. */
export function explain(error: unknown, process: ProcessId, servicePort: number): unknown {
  if (!(error instanceof InitlessError) || error.code !== 'HEALTH_TIMEOUT') return error;
  const why = whyUnreachable(listening(process.pid), servicePort);
  if (why === undefined) return error;
  return new InitlessError('NOT_LISTENING', `${error.message}; ${why.what}`, {
    subject: error.subject,
    nextStep: why.nextStep,
    cause: error,
  });
}

/** Calls a path of an instance once. Errors: HEALTH_MISMATCH for a status outside 2xx, HEALTH_TIMEOUT for none. */
export async function callOnce(address: string, path: string, timeoutMs: number, signal?: AbortSignal): Promise<void> {
  const answer = await get(address, path, timeoutMs, signal);
  if ('reason' in answer) throw new InitlessError('HEALTH_TIMEOUT', `GET ${path}: ${answer.reason}`);
  if (answer.status < 200 || answer.status > 299) {
    throw new InitlessError(
      'HEALTH_MISMATCH',
      `GET ${path}: wanted a 2xx status, came ${answer.status} ${answer.body.slice(0, 200)}`,
    );
  }
}
