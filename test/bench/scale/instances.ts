import { randomBytes } from 'node:crypto';
import { type ServiceAssignment, ServiceUsage } from '../../../proto/gen/initless/v1/fleet.js';
import { Instance, InstanceState, MemoryMode, Origin } from '../../../proto/gen/initless/v1/types.js';

/** How long a restore takes here; one at a time. */
const RESTORE_MS = 100;
/** How long an instance is in use. */
const USE_MS = 2_000;

/** The instances of a simulated agent: its pools are filled one after the other, and what was used is replaced. */
export class SimulatedInstances {
  readonly #host: string;
  readonly #changed: () => void;
  readonly #instances = new Map<string, Instance>();
  readonly #pools = new Map<string, ServiceAssignment>();
  readonly #uses = new Map<string, { arrivals: number; lastAt: number }>();
  readonly #timers = new Set<NodeJS.Timeout>();
  #filling = false;

  constructor(host: string, changed: () => void) {
    this.#host = host;
    this.#changed = changed;
  }

  /** All that are there. */
  list(): Instance[] {
    return [...this.#instances.values()];
  }

  /** What was asked of each service. */
  usage(): ServiceUsage[] {
    const now = performance.now();
    return [...this.#pools.keys()].map((service) => {
      const use = this.#uses.get(service);
      const inUse = this.#of(service).filter((one) => one.state === InstanceState.INSTANCE_STATE_RUNNING).length;
      const idleMs = use === undefined || inUse > 0 ? 0 : Math.round(now - use.lastAt);
      const foundParked = use?.arrivals ?? 0;
      return ServiceUsage.fromPartial({ service, foundParked, inUse, idleMs, stretch: Math.floor(now / 60_000) });
    });
  }

  /** Serves a service from now on; instances of another revision go. */
  assign(assignment: ServiceAssignment): void {
    const service = assignment.config!.serviceName;
    this.#pools.set(service, assignment);
    for (const one of this.#of(service)) if (one.revision !== assignment.revision) this.#instances.delete(one.id);
    this.#fill();
  }

  /** Serves it no more. */
  withdraw(service: string): void {
    this.#pools.delete(service);
    for (const one of this.#of(service)) this.#instances.delete(one.id);
  }

  /** Takes one into use that is parked; it goes some time later. Whether there was one. */
  use(): boolean {
    const parked = this.list().filter((one) => one.state === InstanceState.INSTANCE_STATE_PARKED);
    const one = parked[Math.floor(Math.random() * parked.length)];
    if (one === undefined) return false;
    const arrivals = (this.#uses.get(one.service)?.arrivals ?? 0) + 1;
    this.#uses.set(one.service, { arrivals, lastAt: performance.now() });
    this.#instances.set(one.id, { ...one, state: InstanceState.INSTANCE_STATE_RUNNING, leases: 1 });
    this.#changed();
    this.#fill();
    this.#later(USE_MS, () => {
      this.#uses.set(one.service, { arrivals: this.#uses.get(one.service)!.arrivals, lastAt: performance.now() });
      this.#instances.delete(one.id);
      this.#changed();
      this.#fill();
    });
    return true;
  }

  /** Nothing happens any more. */
  stop(): void {
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
    this.#filling = true;
  }

  #of(service: string): Instance[] {
    return this.list().filter((one) => one.service === service);
  }

  /** Restores what is lacking, one after the other; what is too much goes. */
  #fill(): void {
    if (this.#filling) return;
    for (const { config, pool, revision } of this.#pools.values()) {
      const service = config!.serviceName;
      const wanted = pool?.parked ?? config!.preStartPoolSize;
      const parked = this.#of(service).filter((one) => one.state === InstanceState.INSTANCE_STATE_PARKED);
      for (const one of parked.slice(wanted)) {
        this.#instances.delete(one.id);
        this.#changed();
      }
      if (parked.length >= wanted) continue;
      this.#filling = true;
      this.#later(RESTORE_MS, () => {
        this.#filling = false;
        if (this.#pools.get(service)?.revision === revision) this.#add(service, revision);
        this.#changed();
        this.#fill();
      });
      return;
    }
  }

  #add(service: string, revision: string): void {
    const id = `${service}-${randomBytes(4).toString('hex')}`;
    const instance = Instance.fromPartial({
      ...{ id, service, revision, host: this.#host, address: `10.0.0.1:${20_000 + this.#instances.size}` },
      ...{ state: InstanceState.INSTANCE_STATE_PARKED, origin: Origin.ORIGIN_RESTORED, createdAt: new Date(), pid: 1 },
      stages: ['sandbox', 'rootfs', 'restore', 'health'].map((stage) => ({ stage, ms: 25 })),
      memory: MemoryMode.MEMORY_MODE_MAPPED,
    });
    this.#instances.set(id, instance);
  }

  #later(ms: number, run: () => void): void {
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      run();
    }, ms);
    this.#timers.add(timer);
  }
}
