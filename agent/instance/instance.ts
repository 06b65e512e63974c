import type { ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import type { Problem, StageTime } from '../../proto/gen/initless/v1/types.js';
import { MemoryMode, Origin, Instance as WireInstance } from '../../proto/gen/initless/v1/types.js';
import type { Filler } from '../runtime/lazy.js';
import type { ProcessId } from '../runtime/process.js';
import type { Lease } from './leases.js';
import { type LifecycleEvent, type Reason, reasonOnWire, type State, stateOnWire, transition } from './lifecycle.js';
import type { Place } from './place.js';

/** One process tree of a revision in a sandbox. Its state changes through {@link Instance.apply} only. */
export class Instance {
  readonly id: string;
  /** What it was started for; of its revision, the configuration is that of today. */
  assignment: ServiceAssignment;
  readonly createdAt: Date;
  readonly stages: StageTime[] = [];
  /** What gateways hold on it, by lease id. */
  readonly leases = new Map<string, Lease>();
  /** Since when no lease is held; performance.now(). */
  idleSince = performance.now();
  /** Since when it is parked; performance.now(). */
  parkedSince = 0;
  /** Brought up for the pool, not for a request. */
  pooled = false;
  origin: Origin;
  place: Place | undefined;
  process: ProcessId | undefined;
  /** Folder of the checkpoint whose layer it stands on; empty for a cold one. */
  checkpointDir = '';
  /** How its memory was filled; unspecified for a cold one. */
  memory = MemoryMode.MEMORY_MODE_UNSPECIFIED;
  /** What still fills its memory. Undefined: it has all of it. */
  filler: Filler | undefined;
  /** Why it was started cold, or why it ended. */
  problem: Problem | undefined;
  #state: State = 'sandboxed';
  #frozen = false;
  #reason: Reason | undefined;

  constructor(id: string, assignment: ServiceAssignment, origin: Origin, createdAt = new Date()) {
    this.createdAt = createdAt;
    this.id = id;
    this.assignment = assignment;
    this.origin = origin;
  }

  get service(): string {
    return this.assignment.config?.serviceName ?? '';
  }

  get state(): State {
    return this.#state;
  }

  /** Whether it was parked and has not been thawed since, also while it is being removed. */
  get frozen(): boolean {
    return this.#frozen;
  }

  get reason(): Reason | undefined {
    return this.#reason;
  }

  /** Whether its memory is still being filled: what it answers may prove wrong, and it must not be frozen. */
  get filling(): boolean {
    return this.filler !== undefined;
  }

  /** The lease of the gateway that it is reserved for; undefined: it is for whoever asks. */
  get reserved(): Lease | undefined {
    for (const lease of this.leases.values()) if (lease.asleep) return lease;
    return undefined;
  }

  /** Leases that are used; one that only reserves it is not. */
  get leasesInUse(): number {
    return this.leases.size - (this.reserved ? 1 : 0);
  }

  /** Slots that leases hold. */
  get slotsHeld(): number {
    let slots = 0;
    for (const lease of this.leases.values()) slots += lease.slots;
    return slots;
  }

  /** "ADDRESS:PORT" where gateways reach it; empty before it has a sandbox. */
  get address(): string {
    return this.place?.sandbox.address ?? '';
  }

  /** Takes an event. Errors: INTERNAL for a pair of state and event that is not in the table. */
  apply(event: LifecycleEvent): void {
    this.#state = transition(this.#state, event);
    if (event.type === 'end' || event.type === 'drain') this.#reason = event.reason;
    if (event.type === 'reclaim') this.#reason = undefined;
    if (event.type === 'park') this.parkedSince = performance.now();
    if (event.type === 'park' || event.type === 'thaw') this.#frozen = event.type === 'park';
    if (event.type === 'thaw' || event.type === 'healthy') this.idleSince = performance.now();
  }

  /** Runs a step of its start and notes how long it took. */
  async timed<T>(stage: string, work: () => Promise<T>): Promise<T> {
    const start = performance.now();
    try {
      return await work();
    } finally {
      this.stages.push({ stage, ms: Math.round((performance.now() - start) * 1000) / 1000 });
    }
  }

  /** As it goes over the wire. */
  onWire(host: string): WireInstance {
    return WireInstance.fromPartial({
      id: this.id,
      service: this.service,
      revision: this.assignment.revision,
      host,
      state: stateOnWire(this.#state),
      origin: this.origin,
      address: this.address,
      createdAt: this.createdAt,
      leases: this.leasesInUse,
      stages: this.stages,
      goneReason: reasonOnWire(this.#reason),
      pid: this.process?.pid ?? 0,
      problem: this.problem,
      memory: this.memory,
    });
  }
}

/** "restored" or "cold", for people. */
export function originText(origin: Origin): string {
  return origin === Origin.ORIGIN_RESTORED ? 'restored' : 'cold';
}

/** Whether it is of the revision that an assignment names. */
export function isCurrent(instance: Instance, assignment: ServiceAssignment): boolean {
  return instance.service === assignment.config?.serviceName && instance.assignment.revision === assignment.revision;
}

/** Whether it has been brought up and nobody has begun to remove it. */
export function isSettled({ state }: Instance): boolean {
  return state === 'running' || state === 'parked';
}
