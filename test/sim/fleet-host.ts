import type { Instance } from '../../agent/instance/instance.js';
import { takerOf } from '../../agent/instance/leases.js';
import { type LifecycleEvent, type State, stateOnWire, transition } from '../../agent/instance/lifecycle.js';
import { parkedWanted, runningAtMost, upkeep } from '../../agent/instance/pool.js';
import { Usage } from '../../agent/instance/usage.js';
import type { HeldRevision, HostReport, ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import type { Checkpoint, Instance as WireInstance } from '../../proto/gen/initless/v1/types.js';
import type { Clock } from './clock.js';

/** How an instance was found that a lease was granted on. Undefined: it was started for it. */
export type Found = 'running' | 'parked' | undefined;

/** An answer to a gateway that asked for a lease. */
export type LeaseAnswer =
  | { lease: string; instance: string; slots: number; found: Found }
  | { denied: 'NOT_READY' | 'EXHAUSTED' | 'ELSEWHERE' };

interface SimLease {
  id: string;
  gateway: string;
  slots: number;
  asleep?: boolean;
}

/** An instance as far as the agent's rules look at it. */
export class SimInstance {
  state: State = 'sandboxed';
  pooled = false;
  parkedSince = 0;
  idleSince = 0;
  frozen = false;
  readonly leases = new Map<string, SimLease>();
  readonly id: string;
  assignment: ServiceAssignment;

  constructor(id: string, assignment: ServiceAssignment) {
    this.id = id;
    this.assignment = assignment;
  }

  get service(): string {
    return this.assignment.config!.serviceName;
  }

  get reserved(): SimLease | undefined {
    return [...this.leases.values()].find((lease) => lease.asleep);
  }

  get leasesInUse(): number {
    return this.leases.size - (this.reserved ? 1 : 0);
  }

  get slotsHeld(): number {
    return [...this.leases.values()].reduce((sum, { slots }) => sum + slots, 0);
  }

  apply(event: LifecycleEvent): void {
    this.state = transition(this.state, event);
    if (event.type === 'park' || event.type === 'thaw') this.frozen = event.type === 'park';
  }
}

/** How long things take on a host, milliseconds. */
export interface HostTimes {
  /** A start, restored or now and then cold, until the health check has passed. */
  start: () => number;
  /** From the decision to remove an instance until it is gone. */
  kill: () => number;
  make: () => number;
  copy: () => number;
  /** How often all is reported when nothing changes: in use, and at rest. */
  reportMs: number;
  quietReportMs: number;
}

/** What a host tells the rest of the world. */
export interface HostHooks {
  /** Something changed that a report is due for. */
  changed: () => void;
  /** A gateway's leases on an instance ended. */
  revoked: (gateway: string, leases: readonly string[], neverRan: boolean) => void;
  reserved: (gateway: string, service: string, lease: string, instance: string, slots: number) => void;
  /** Instances that run, or are parked, have changed: before the change. */
  counting: () => void;
  /** A revision is about to be removed. */
  deleting: (service: string, revision: string) => void;
}

/** How often a pool is looked at after something changed, milliseconds. */
const TICK_MS = 250;
const FILLS_AT_A_TIME = 2;

/** A host with its agent: the rules of the real one, with its own pure functions, and a machine that takes time. */
export class SimHost {
  /** The machine and the agent run. */
  up = true;
  identity: string;
  /** A gateway can reach it. */
  readonly gateways = new Set<string>();
  readonly instances = new Map<string, SimInstance>();
  /** What it was told to serve; on its disk. */
  readonly assignments = new Map<string, ServiceAssignment>();
  /** "SERVICE REVISION" of sealed checkpoints; on its disk. */
  readonly checkpoints = new Set<string>();
  memoryAvailable = 16 * 2 ** 30;
  /** Starts for requests, by service. */
  readonly starting = new Map<string, number>();
  readonly name: string;
  readonly #clock: Clock;
  readonly #times: HostTimes;
  readonly #hooks: HostHooks;
  readonly #filling = new Map<string, number>();
  readonly #preparing = new Set<ServiceAssignment>();
  #usage = new Usage();
  #epoch = 0;
  #looking = false;
  #count = 0;

  constructor(name: string, clock: Clock, times: HostTimes, hooks: HostHooks) {
    this.name = name;
    this.identity = `${name}-1`;
    this.#clock = clock;
    this.#times = times;
    this.#hooks = hooks;
  }

  /** Number of the agent's run; what an earlier one began does not come to an end. */
  get epoch(): number {
    return this.#epoch;
  }

  /** The machine is gone, with all that runs. What is on its disk stays, unless it is made anew. */
  kill(wiped: boolean): void {
    this.#hooks.counting();
    this.up = false;
    this.#epoch += 1;
    this.instances.clear();
    this.starting.clear();
    this.#filling.clear();
    this.#preparing.clear();
    this.gateways.clear();
    if (!wiped) return;
    this.identity = `${this.name}-${this.#epoch + 1}`;
    this.assignments.clear();
    this.checkpoints.clear();
  }

  start(): void {
    this.up = true;
    this.#usage = new Usage();
    this.#soon();
  }

  /** All that the control plane is told. */
  report(): HostReport {
    const now = this.#clock.now;
    const held = [...this.checkpoints].map((key) => key.split(' ') as [string, string]);
    return {
      engine: { ready: true, version: '', restarts: 0, error: '' },
      instances: [...this.instances.values()].map(
        ({ id, service, assignment: { revision }, state }) =>
          ({ id, service, revision, state: stateOnWire(state) }) as WireInstance,
      ),
      checkpoints: held.map(([service, revision]) => ({ service, revision, host: this.name }) as Checkpoint),
      assignments: [...this.assignments.values()],
      memoryAvailable: this.memoryAvailable,
      volumeServices: [],
      usage: this.#usage.report([...this.assignments.keys()], this.#asInstances(), now),
      usageEpoch: `run${this.#epoch}`,
      portsFree: 1_000 - this.instances.size,
      revisions: held.map(
        ([service, revision]) => ({ service, revision, imageId: 'sha256:i', noCheckpoint: false }) as HeldRevision,
      ),
    };
  }

  /** Milliseconds until the next report when nothing changes. */
  get reportsAfter(): number {
    const busy = [...this.instances.values()].some((one) => one.state !== 'parked');
    return busy ? this.#times.reportMs : this.#times.quietReportMs;
  }

  /** Serves a service as told; another revision is brought up first while the earlier one goes on serving. */
  assign(next: ServiceAssignment, done: () => void): void {
    this.#prepare(next, () => {
      this.assignments.set(next.config!.serviceName, next);
      this.#assigned();
      done();
    });
  }

  withdraw(service: string): void {
    this.assignments.delete(service);
    this.#assigned();
  }

  delete(service: string, keep: readonly string[]): void {
    for (const key of [...this.checkpoints]) {
      const [of, revision] = key.split(' ') as [string, string];
      if (of !== service || keep.includes(revision)) continue;
      this.#hooks.deleting(service, revision);
      this.checkpoints.delete(key);
    }
    this.#hooks.changed();
  }

  /** Makes, or copies, a revision; returns what stops it. */
  obtain(kind: 'make' | 'copy', service: string, revision: string, done: () => void): () => void {
    return this.#later(this.#times[kind](), () => {
      this.checkpoints.add(`${service} ${revision}`);
      this.#hooks.changed();
      done();
    });
  }

  /** A gateway asks for a lease. The answer comes at once, or when an instance was started. */
  acquire(service: string, gateway: string, answer: (answer: LeaseAnswer) => void): void {
    const assignment = this.assignments.get(service);
    const found = assignment ? this.#find(service, assignment, gateway, answer) : ({ denied: 'NOT_READY' } as const);
    if (found !== undefined) answer(found);
  }

  /** What there is for a gateway. Undefined: an instance is being started for it. */
  #find(
    service: string,
    assignment: ServiceAssignment,
    gateway: string,
    answer: (answer: LeaseAnswer) => void,
  ): LeaseAnswer | undefined {
    const ours = this.#current(assignment);
    const running = ours.find((one) => one.state === 'running' && this.#freeSlots(one) > 0);
    if (running) return this.#lease(running, gateway, 'running');
    const draining = ours.find((one) => one.state === 'draining' && !one.frozen);
    if (draining && this.#room(assignment, false) > 0) {
      this.#hooks.counting();
      draining.apply({ type: 'reclaim' });
      return this.#lease(draining, gateway, 'running');
    }
    const elsewhere = assignment.pool?.elsewhere ? 'ELSEWHERE' : 'EXHAUSTED';
    const parked = ours.find((one) => one.state === 'parked' && !one.reserved);
    if (parked) {
      if (this.#room(assignment) === 0) return { denied: elsewhere };
      this.#thaw(parked);
      return this.#lease(parked, gateway, 'parked');
    }
    if (ours.some((one) => one.reserved?.gateway === gateway)) return { denied: 'EXHAUSTED' };
    if (this.#room(assignment) === 0) return { denied: elsewhere };
    this.#bump(this.starting, service, 1);
    this.#start(assignment, (instance) => {
      this.#bump(this.starting, service, -1);
      const now = this.assignments.get(service);
      if (now === undefined || instance.assignment.revision !== now.revision) {
        this.#retireIfSuperseded(instance);
        answer({ denied: 'NOT_READY' });
      } else answer(this.#freeSlots(instance) > 0 ? this.#lease(instance, gateway, undefined) : { denied: elsewhere });
    });
    return undefined;
  }

  /** A gateway uses what was reserved for it. Whether it runs now. */
  activate(lease: string): boolean {
    const instance = this.#holder(lease);
    const held = instance?.leases.get(lease);
    if (instance === undefined || !held?.asleep) return false;
    this.#thaw(instance);
    held.asleep = false;
    this.#granted(instance, 'parked');
    return true;
  }

  release(lease: string, idleMs: number): void {
    const instance = this.#holder(lease);
    if (instance === undefined) return;
    instance.leases.delete(lease);
    instance.idleSince = Math.max(instance.idleSince, this.#clock.now - idleMs);
    if (instance.leases.size === 0) {
      this.#retireIfSuperseded(instance);
      this.#idleLater(instance);
    }
    this.#hooks.changed();
  }

  shrink(lease: string, slots: number): void {
    const held = this.#holder(lease)?.leases.get(lease);
    if (held) held.slots = Math.max(1, Math.min(held.slots, slots));
  }

  /** A gateway that is back says what it holds; which of it stands. */
  resume(gateway: string, leases: readonly string[]): string[] {
    this.gateways.add(gateway);
    this.#reserve();
    return leases.filter((lease) => this.#holder(lease) !== undefined);
  }

  /** Whether requests over a lease reach an instance that runs. */
  serves(lease: string): boolean {
    return this.up && this.#holder(lease)?.state === 'running';
  }

  /** Instances that count against the share: those of the revision that is served, as the real agent counts them. */
  countedRunning(service: string): number {
    const assignment = this.assignments.get(service);
    if (assignment === undefined) return 0;
    return this.#current(assignment).filter((one) => one.state === 'running').length;
  }

  #later(ms: number, run: () => void): () => void {
    const epoch = this.#epoch;
    return this.#clock.after(ms, () => {
      if (epoch === this.#epoch) run();
    });
  }

  #start(assignment: ServiceAssignment, then: (instance: SimInstance) => void): void {
    this.#count += 1;
    const instance = new SimInstance(`${assignment.config!.serviceName}-${this.name}-${this.#count}`, assignment);
    this.#hooks.counting();
    this.instances.set(instance.id, instance);
    instance.apply({ type: 'start' });
    this.#hooks.changed();
    this.#later(this.#times.start(), () => {
      this.#hooks.counting();
      instance.apply({ type: 'healthy' });
      instance.idleSince = this.#clock.now;
      // What is served may have a new configuration since.
      const today = this.assignments.get(instance.service);
      if (today?.revision === instance.assignment.revision) instance.assignment = today;
      then(instance);
      this.#idleLater(instance);
      this.#hooks.changed();
      this.#soon();
    });
  }

  #prepare(next: ServiceAssignment, then: () => void): void {
    const serving = this.assignments.get(next.config!.serviceName);
    const replaces = serving !== undefined && serving.revision !== next.revision;
    const isUp = replaces && this.#current(serving).some((one) => one.state === 'running' || one.state === 'parked');
    if (!isUp) {
      then();
      return;
    }
    const parked = parkedWanted(next, this.#asInstances());
    this.#preparing.add(next);
    const more = () => {
      const ready = this.#current(next).filter((one) => one.state === 'running' || one.state === 'parked').length;
      if (ready >= Math.max(1, parked)) {
        then();
        this.#preparing.delete(next);
        return;
      }
      this.#start(next, (instance) => {
        if (parked > 0) this.#park(instance);
        more();
      });
    };
    more();
  }

  #assigned(): void {
    for (const instance of this.instances.values()) {
      const assignment = this.assignments.get(instance.service);
      if (assignment && assignment.revision === instance.assignment.revision) instance.assignment = assignment;
      else if (instance.leasesInUse === 0) this.#retireIfSuperseded(instance);
      else this.#callBack(instance);
    }
    for (const assignment of this.assignments.values()) {
      const ours = this.#current(assignment);
      const running = ours.filter(({ state }) => state === 'running' || state === 'draining').length;
      const starting = this.starting.get(assignment.config!.serviceName) ?? 0;
      const room = Math.max(0, runningAtMost(assignment) - running - starting);
      for (const instance of ours.filter((one) => one.state === 'parked' && one.reserved).slice(room))
        this.#retire(instance);
    }
    this.#hooks.changed();
    this.#soon();
  }

  /** Gateways send nothing new over its leases, and give them back when what is in flight is done. */
  #callBack(instance: SimInstance): void {
    for (const { id, gateway } of instance.leases.values()) this.#hooks.revoked(gateway, [id], false);
  }

  #retireIfSuperseded(instance: SimInstance): void {
    const assignment = this.assignments.get(instance.service);
    if (assignment?.revision === instance.assignment.revision) return;
    if (instance.state !== 'running' && instance.state !== 'parked') return;
    if ([...this.#preparing].some((next) => next.revision === instance.assignment.revision)) return;
    this.#retire(instance);
  }

  #retire(instance: SimInstance): void {
    if (instance.state === 'draining') return;
    this.#hooks.counting();
    if (instance.reserved) this.#revokeAll(instance);
    instance.apply({ type: 'drain', reason: 'idle' });
    this.#hooks.changed();
    this.#later(this.#times.kill(), () => {
      if (instance.state !== 'draining') return;
      this.#revokeAll(instance);
      instance.apply({ type: 'end', reason: 'idle' });
      this.instances.delete(instance.id);
      this.#hooks.changed();
      this.#reserve();
      this.#soon();
    });
  }

  #revokeAll(instance: SimInstance): void {
    const neverRan = instance.reserved !== undefined;
    for (const { id, gateway } of instance.leases.values()) this.#hooks.revoked(gateway, [id], neverRan);
    instance.leases.clear();
  }

  #soon(): void {
    if (this.#looking) return;
    this.#looking = true;
    this.#clock.after(TICK_MS, () => {
      this.#looking = false;
      if (this.up) this.#look();
    });
  }

  /** Fills and thins the pools, as the real agent does. */
  #look(): void {
    for (const [service, assignment] of this.assignments) {
      const parked = this.#current(assignment).filter((one) => one.state === 'parked');
      const target = parkedWanted(assignment, this.#asInstances());
      const filling = this.#filling.get(service) ?? 0;
      const { missing, surplus } = upkeep(target, parked as unknown as Instance[], filling);
      for (const instance of surplus) this.#retire(instance as unknown as SimInstance);
      const free = FILLS_AT_A_TIME - [...this.#filling.values()].reduce((sum, count) => sum + count, 0);
      for (let index = 0; index < Math.min(missing, free); index++) {
        this.#bump(this.#filling, service, 1);
        this.#start(assignment, (instance) => {
          this.#bump(this.#filling, service, -1);
          const today = this.assignments.get(service);
          if (today?.revision !== instance.assignment.revision) this.#retireIfSuperseded(instance);
          else if (instance.leases.size === 0) this.#park(instance);
          this.#usage.measured(service, PARKED_BYTES, this.#clock.now);
        });
      }
    }
  }

  #park(instance: SimInstance): void {
    this.#hooks.counting();
    instance.pooled = true;
    instance.parkedSince = this.#clock.now;
    instance.apply({ type: 'park' });
    this.#hooks.changed();
    this.#reserve();
    this.#soon();
    const expires = instance.assignment.config!.preStartTimeoutMs;
    const since = instance.parkedSince;
    this.#later(expires + 1, () => {
      if (instance.state === 'parked' && instance.parkedSince === since) this.#retire(instance);
    });
  }

  #thaw(instance: SimInstance): void {
    this.#hooks.counting();
    instance.apply({ type: 'thaw' });
    instance.idleSince = this.#clock.now;
    this.#hooks.changed();
    this.#soon();
  }

  #idleLater(instance: SimInstance): void {
    const timeout = this.#configOf(instance).idleTimeoutMs;
    this.#later(instance.idleSince + timeout + 1 - this.#clock.now, () => {
      const isIdle = instance.state === 'running' && instance.leases.size === 0;
      if (!isIdle || this.#clock.now - instance.idleSince <= this.#configOf(instance).idleTimeoutMs) return;
      const assignment = this.assignments.get(instance.service);
      const others = this.#asInstances().filter((one) => one.id !== instance.id);
      const wanted = assignment ? parkedWanted(assignment, others) : 0;
      const parked = assignment ? this.#current(assignment).filter((one) => one.state === 'parked').length : 0;
      if (this.#configOf(instance).reuse && parked < wanted) this.#park(instance);
      else this.#retire(instance);
    });
  }

  #reserve(): void {
    for (const assignment of this.assignments.values()) {
      const free = this.#current(assignment).filter((one) => one.state === 'parked' && one.leases.size === 0);
      for (const instance of free.slice(0, this.#room(assignment))) {
        const gateway = takerOf(instance.service, [...this.gateways], this.#asInstances());
        if (gateway === undefined) continue;
        const slots = this.#capacity(instance);
        const id = this.#newLease(instance, { gateway, slots, asleep: true });
        this.#hooks.reserved(gateway, instance.service, id, instance.id, slots);
      }
    }
  }

  #room(assignment: ServiceAssignment, draining = true): number {
    const up = this.#current(assignment).filter(
      ({ state, reserved }) =>
        state === 'running' || (draining && state === 'draining') || (state === 'parked' && reserved !== undefined),
    );
    const starting = this.starting.get(assignment.config!.serviceName) ?? 0;
    return Math.max(0, runningAtMost(assignment) - up.length - starting);
  }

  #lease(instance: SimInstance, gateway: string, found: Found): LeaseAnswer {
    const slots = this.#freeSlots(instance);
    const lease = this.#newLease(instance, { gateway, slots });
    this.#granted(instance, found);
    return { lease, instance: instance.id, slots, found };
  }

  #newLease(instance: SimInstance, lease: Omit<SimLease, 'id'>): string {
    this.#count += 1;
    const id = `${instance.id}/${this.#count}`;
    instance.leases.set(id, { id, ...lease });
    return id;
  }

  #granted(instance: SimInstance, found: Found): void {
    const inUse = [...this.instances.values()].filter(
      (one) => one.service === instance.service && one.leasesInUse > 0,
    ).length;
    this.#usage.granted(instance.service, found, inUse, this.#clock.now);
    if (found !== 'running') this.#hooks.changed();
  }

  #holder(lease: string): SimInstance | undefined {
    const instance = this.instances.get(lease.slice(0, lease.lastIndexOf('/')));
    return instance?.leases.has(lease) ? instance : undefined;
  }

  #current(assignment: ServiceAssignment): SimInstance[] {
    const service = assignment.config!.serviceName;
    return [...this.instances.values()].filter(
      (one) => one.service === service && one.assignment.revision === assignment.revision,
    );
  }

  #configOf(instance: SimInstance) {
    return (this.assignments.get(instance.service) ?? instance.assignment).config!;
  }

  #capacity(instance: SimInstance): number {
    return this.#configOf(instance).maxConcurrency;
  }

  #freeSlots(instance: SimInstance): number {
    return this.#capacity(instance) - instance.slotsHeld;
  }

  #asInstances(): Instance[] {
    return [...this.instances.values()] as unknown as Instance[];
  }

  #bump(counts: Map<string, number>, service: string, by: number): void {
    counts.set(service, (counts.get(service) ?? 0) + by);
  }
}

/** Memory of its own that an instance holds, bytes: a Spring Boot one, mapped, as measured. */
export const PARKED_BYTES = 24 * 2 ** 20;
