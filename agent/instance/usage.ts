import { ServiceUsage } from '../../proto/gen/initless/v1/fleet.js';
import type { Instance } from './instance.js';

/** Length of a stretch of time for which the most instances in use and taken are told, milliseconds. */
const STRETCH_MS = 60_000;
/** Instances taken within this long of the first are taken together: replacing them takes about so long. Milliseconds. */
const TOGETHER_MS = 5_000;

/** What is counted of one service. */
interface Counted {
  running: number;
  parked: number;
  started: number;
  /** When a lease was last held, as far as it was seen. */
  lastUse: number;
  stretch: number;
  stretchBegan: number;
  mostInUse: number;
  mostTaken: number;
  /** The burst that goes on: when it began, and instances taken in it. */
  burstBegan: number;
  taken: number;
  /** Bytes that the instance which was parked last holds of its own; 0: none was measured. */
  memory: number;
}

/**
 * How the services of this host are used, counted since the agent started. All of it is told again in every report, so
 * that one that is lost is made up for by the next. Times are arguments, in milliseconds of a clock that never goes back.
 */
export class Usage {
  readonly #services = new Map<string, Counted>();

  /**
   * A lease was granted.
   *
   * @param found state its instance was in; undefined: it was started for it.
   * @param inUse instances of the service that hold leases now, this one included.
   */
  granted(service: string, found: 'running' | 'parked' | undefined, inUse: number, now: number): void {
    const counted = this.#of(service, now);
    counted[found ?? 'started'] += 1;
    counted.lastUse = now;
    counted.mostInUse = Math.max(counted.mostInUse, inUse);
    if (found === 'running') return;
    if (now - counted.burstBegan > TOGETHER_MS) {
      counted.burstBegan = now;
      counted.taken = 0;
    }
    counted.taken += 1;
    counted.mostTaken = Math.max(counted.mostTaken, counted.taken);
  }

  /** A parked instance of a service holds so many bytes of its own. */
  measured(service: string, bytes: number, now: number): void {
    this.#of(service, now).memory = bytes;
  }

  /** Bytes that a parked instance of a service holds of its own; 0: not measured yet. */
  memoryOf(service: string): number {
    return this.#services.get(service)?.memory ?? 0;
  }

  /** When a lease on the service was last held; 0: never since the agent started. */
  lastUse(service: string): number {
    return this.#services.get(service)?.lastUse ?? 0;
  }

  /** What to report of the services that are served. Those that are not are forgotten. */
  report(services: readonly string[], instances: readonly Instance[], now: number): ServiceUsage[] {
    const served = new Set(services);
    for (const service of this.#services.keys()) if (!served.has(service)) this.#services.delete(service);
    return services.map((service) => {
      const counted = this.#of(service, now);
      const inUse = instances.filter((one) => one.service === service && one.leasesInUse > 0).length;
      if (inUse > 0) counted.lastUse = now;
      const told = ServiceUsage.fromPartial({
        service,
        foundRunning: counted.running,
        foundParked: counted.parked,
        started: counted.started,
        inUse,
        idleMs: counted.lastUse === 0 ? 0 : Math.round(now - counted.lastUse),
        stretch: counted.stretch,
        mostInUse: counted.mostInUse,
        mostTaken: counted.mostTaken,
        parkedMemory: counted.memory,
      });
      // The next one begins only after its last figures have been told.
      if (now - counted.stretchBegan >= STRETCH_MS) {
        counted.stretch += 1;
        counted.stretchBegan = now;
        counted.mostInUse = 0;
        counted.mostTaken = 0;
      }
      return told;
    });
  }

  #of(service: string, now: number): Counted {
    let counted = this.#services.get(service);
    if (counted === undefined) {
      counted = {
        ...{ running: 0, parked: 0, started: 0, lastUse: 0, memory: 0 },
        ...{ stretch: 1, stretchBegan: now, mostInUse: 0, mostTaken: 0 },
        ...{ burstBegan: Number.NEGATIVE_INFINITY, taken: 0 },
      };
      this.#services.set(service, counted);
    }
    return counted;
  }
}
