import type { Logger } from 'pino';
import type { ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import { repeat } from '../../proto/rpc/deadline.js';
import { toInitlessError } from '../../proto/rpc/errors.js';
import { type Instance, isCurrent } from './instance.js';
import type { Instances } from './instances.js';

/** How often a pool is looked at when nothing tells it earlier. */
const TICK_MS = 250;
/** Starts for pools at a time on this host: a start keeps about one CPU busy, and requests need the others. */
const FILLS_AT_A_TIME = 2;
const FIRST_PAUSE_MS = 1_000;
const LONGEST_PAUSE_MS = 30_000;

/** What a pool lacks or has too many of. */
export interface Upkeep {
  /** Instances to bring up and park. */
  missing: number;
  /** Instances to remove, longest parked first. */
  surplus: Instance[];
}

/**
 * Instances of a service to hold parked now. Pure. A pool that follows its service's use counts those that run as well: what
 * runs takes the requests that a parked one would have been woken for, so that none is restored beside it for nothing.
 *
 * @param instances all of the host's.
 */
export function parkedWanted(assignment: ServiceAssignment, instances: readonly Instance[]): number {
  const { config, pool } = assignment;
  if (pool === undefined) return config?.preStartPoolSize ?? 0;
  const running = instances.filter((one) => one.state === 'running' && isCurrent(one, assignment)).length;
  return Math.max(0, Math.min(pool.parked, pool.ready - running));
}

/** Instances of a service that may run on this host at a time: all of its pool, or this host's share. Pure. */
export function runningAtMost({ config, pool }: ServiceAssignment): number {
  return pool?.maxRunning ?? config?.maxPoolSize ?? 0;
}

/** What to do so that `target` instances are parked. Pure. Those that a person parked beyond it stay until they expire. */
export function upkeep(target: number, parked: readonly Instance[], filling: number): Upkeep {
  const pooled = parked.filter((instance) => instance.pooled).sort((a, b) => a.parkedSince - b.parkedSince);
  return {
    missing: Math.max(0, target - parked.length - filling),
    surplus: pooled.slice(0, Math.max(0, Math.min(pooled.length, parked.length - target))),
  };
}

/** Keeps as many instances of each service as its pool wants restored, health-checked and frozen. */
export class Pool {
  readonly #instances: Instances;
  readonly #log: Logger;
  readonly #mayPark: (service: string) => boolean;
  readonly #readAhead: ((assignment: ServiceAssignment) => Promise<void>) | undefined;
  readonly #filling = new Map<string, number>();
  /** Services whose last fill failed: when the next may be tried (performance.now()), and the pause after it. */
  readonly #paused = new Map<string, { until: number; pause: number }>();

  /**
   * @param mayPark whether there is memory for one more of a service.
   * @param readAhead brings into memory what an instance of a service will need of its checkpoint.
   */
  constructor(
    instances: Instances,
    log: Logger,
    mayPark: (service: string) => boolean = () => true,
    readAhead?: (assignment: ServiceAssignment) => Promise<void>,
  ) {
    this.#instances = instances;
    this.#log = log;
    this.#mayPark = mayPark;
    this.#readAhead = readAhead;
  }

  /** Keeps the pools full until `signal` aborts. */
  run(signal: AbortSignal): Promise<void> {
    return repeat(TICK_MS, signal, () => this.look());
  }

  /** Looks once at every pool and begins what is missing. */
  look(): void {
    for (const assignment of this.#instances.assignments()) {
      const service = assignment.config?.serviceName ?? '';
      const parked = this.#instances.parked(assignment);
      const { missing, surplus } = upkeep(
        parkedWanted(assignment, this.#instances.list()),
        parked,
        this.#filling.get(service) ?? 0,
      );
      for (const instance of surplus) this.#instances.retire(instance, 'idle');
      if ((this.#paused.get(service)?.until ?? 0) > performance.now() || !this.#mayPark(service)) continue;
      const free = FILLS_AT_A_TIME - [...this.#filling.values()].reduce((sum, count) => sum + count, 0);
      for (let i = 0; i < Math.min(missing, free); i++) void this.#fill(service, assignment);
    }
  }

  async #fill(service: string, assignment: ServiceAssignment): Promise<void> {
    this.#filling.set(service, (this.#filling.get(service) ?? 0) + 1);
    try {
      if (this.#readAhead) await this.#readAhead(assignment);
      await this.#instances.startParked(assignment);
      this.#paused.delete(service);
    } catch (thrown) {
      const error = toInitlessError(thrown);
      const pause = Math.min((this.#paused.get(service)?.pause ?? FIRST_PAUSE_MS / 2) * 2, LONGEST_PAUSE_MS);
      this.#paused.set(service, { until: performance.now() + pause, pause });
      this.#log.warn({ service, code: error.code, error: error.message, pause }, 'the pool could not be filled');
    } finally {
      this.#filling.set(service, (this.#filling.get(service) ?? 1) - 1);
    }
  }
}
