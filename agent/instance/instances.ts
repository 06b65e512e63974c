import pLimit from 'p-limit';
import type { Logger } from 'pino';
import type { HeldLease } from '../../proto/gen/initless/v1/agent.js';
import type { ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import type { ServiceConfig } from '../../proto/gen/initless/v1/types.js';
import { repeat } from '../../proto/rpc/deadline.js';
import { errorOf, InitlessError, problemOf, toInitlessError } from '../../proto/rpc/errors.js';
import type { Exits } from '../runtime/exits.js';
import type { Freezer } from '../runtime/freezer.js';
import { FILLED, type LazyPages } from '../runtime/lazy.js';
import { isAlive } from '../runtime/process.js';
import { type Instance, isCurrent, isSettled, originText } from './instance.js';
import { type Grant, instanceOf, type Lease, newLeaseId, reconcile } from './leases.js';
import type { Reason } from './lifecycle.js';
import type { Places } from './place.js';
import { parkedWanted, runningAtMost } from './pool.js';
import type { Starter } from './starter.js';

/** How often idle and expired instances are looked for. */
const TICK_MS = 250;

/** What the instances of this host need. */
export interface InstancesParts {
  starter: Pick<Starter, 'start'>;
  places: Pick<Places, 'clear'>;
  freezer: Freezer;
  exits: Exits;
  lazy: Pick<LazyPages, 'watch'>;
  log: Logger;
  /** Told after each transition. */
  onState: (instance: Instance) => void;
  /** Told of each lease that is granted, and what its instance was found as. */
  onGranted?: (service: string, found: Grant['found']) => void;
  /** Told when there may be more that is {@link Instances.reservable}. */
  onReservable?: () => void;
  /** Told of leases that must come back: their instance's revision is no longer served, or it was woken for a person. */
  onCalledBack?: (leases: readonly string[], reason: Reason) => void;
  /**
   * Told when all memory of a lazily restored instance is there, with the leases that were granted before, and when that
   * will never be, with the failure.
   */
  onFillEnded?: (instance: Instance, leases: readonly string[], failure: InitlessError | undefined) => void;
  /** Told when an instance ends while leases are held on it. `neverRan`: they only reserved it, and it is never thawed. */
  onRevoked: (leases: readonly string[], reason: Reason, neverRan: boolean) => void;
}

/** All instances of this host: it alone starts, parks, leases and removes them. */
export class Instances {
  readonly #parts: InstancesParts;
  readonly #instances = new Map<string, Instance>();
  /** Starts under way, by service; they count against `max_pool_size`. */
  readonly #starting = new Map<string, number>();
  /** Those of them that nobody waits for any more, by service: the next acquire takes one over. */
  readonly #spare = new Map<string, Set<Promise<Instance>>>();
  /** Freezes under way. */
  readonly #freezing = new Map<string, Promise<void>>();
  readonly #removals = new Map<string, Promise<void>>();
  /** What stops the watch for the end of an instance's processes. */
  readonly #watches = new Map<string, () => void>();
  /** What stops the watch over the daemon that fills an instance's memory. */
  readonly #fills = new Map<string, () => void>();
  #assignments = new Map<string, ServiceAssignment>();
  /** Why instances of services that left end, where it is not that something newer took their place. */
  readonly #left = new Map<string, Reason>();
  /** Revisions that are brought up to replace what serves. */
  readonly #preparing = new Set<ServiceAssignment>();
  #recycle = pLimit(4);

  constructor(parts: InstancesParts) {
    this.#parts = parts;
  }

  /** Removals at a time. */
  useRecycleWorkers(count: number): void {
    this.#recycle = pLimit(count);
  }

  /**
   * Replaces what is served. Instances of a service that left, or of another revision, are removed once unleased; those
   * that stay take the configuration over.
   *
   * @param reasons why services leave, where it is not that something newer takes their place.
   */
  assign(assignments: readonly ServiceAssignment[], reasons: ReadonlyMap<string, Reason> = new Map()): void {
    for (const [service, reason] of reasons) this.#left.set(service, reason);
    for (const { config } of assignments) this.#left.delete(config?.serviceName ?? '');
    this.#assignments = new Map(assignments.map((assignment) => [assignment.config?.serviceName ?? '', assignment]));
    for (const instance of this.#instances.values()) {
      const assignment = this.#assignments.get(instance.service);
      if (assignment && isCurrent(instance, assignment)) instance.assignment = assignment;
      else if (instance.leasesInUse === 0) this.#retireIfSuperseded(instance);
      else this.#parts.onCalledBack?.([...instance.leases.keys()], this.#reasonToGo(instance));
    }
    for (const assignment of this.#assignments.values()) this.#keepToShare(assignment);
    this.#parts.onReservable?.();
  }

  /** What is reserved beyond a share that has become smaller may not run any more: another host may run one in its place. */
  #keepToShare(assignment: ServiceAssignment): void {
    const starting = this.#starting.get(assignment.config?.serviceName ?? '') ?? 0;
    const ours = this.list().filter((instance) => isCurrent(instance, assignment));
    const reserved = ours.filter(({ state, reserved }) => state === 'parked' && reserved !== undefined);
    const running = ours.filter(({ state }) => state === 'running' || state === 'draining').length;
    const room = Math.max(0, runningAtMost(assignment) - running - starting);
    for (const instance of reserved.slice(room)) this.retire(instance, 'drained');
  }

  /**
   * Before `next` replaces another revision that has instances: brings up as many of it as its pool wants, one at least,
   * while the other goes on serving. Errors: those of a start; the other revision then still serves.
   */
  async prepare(next: ServiceAssignment, signal?: AbortSignal): Promise<void> {
    const config = next.config as ServiceConfig;
    const serving = this.#assignments.get(config.serviceName);
    if (serving === undefined || serving.revision === next.revision) return;
    if (!this.list().some((instance) => isCurrent(instance, serving) && isSettled(instance))) return;
    const ready = () => this.list().filter((instance) => isCurrent(instance, next) && isSettled(instance)).length;
    const parked = parkedWanted(next, this.list());
    this.#preparing.add(next);
    try {
      while (ready() < Math.max(1, parked)) {
        const instance = await this.#parts.starter.start(next, false, signal, parked > 0);
        if (parked === 0) continue;
        instance.pooled = true;
        await this.park(instance.id);
      }
    } catch (error) {
      // A host without room for both revisions cannot have the new one first.
      if (toInitlessError(error).code !== 'PORTS_EXHAUSTED') throw error;
    } finally {
      this.#preparing.delete(next);
    }
  }

  /** All instances that are not gone. */
  list(): Instance[] {
    return [...this.#instances.values()];
  }

  /** An instance by id. Errors: NOT_FOUND. */
  get(id: string): Instance {
    const instance = this.#instances.get(id);
    if (instance === undefined) throw new InitlessError('NOT_FOUND', `no instance ${id} on this host`, { subject: id });
    return instance;
  }

  /** Notes an instance as soon as it has a name, so that it is listed, and counted, while it starts. */
  track(instance: Instance): void {
    const { id, state, process } = instance;
    if (state === 'gone') {
      this.#instances.delete(id);
      for (const watches of [this.#watches, this.#fills]) {
        watches.get(id)?.();
        watches.delete(id);
      }
      return;
    }
    this.#instances.set(id, instance);
    if (isSettled(instance) && process && !this.#watches.has(id)) {
      const ended = () => void this.#ended(instance);
      this.#watches.set(id, this.#parts.exits.watch(id, process, ended));
    }
    const { place, filler } = instance;
    if (isSettled(instance) && place && filler && !this.#fills.has(id)) {
      const ended = (failure: InitlessError | undefined) => void this.#fillEnded(instance, failure);
      this.#fills.set(id, this.#parts.lazy.watch(id, place.folder, filler, ended));
    }
  }

  /** One that was filled is like any other from now on; one that never will be goes at once. */
  async #fillEnded(instance: Instance, failure: InitlessError | undefined): Promise<void> {
    this.#fills.delete(instance.id);
    if (this.#goes(instance)) return;
    if (failure === undefined) {
      instance.filler = undefined;
      this.#parts.onFillEnded?.(instance, [...instance.leases.keys()], undefined);
      return;
    }
    instance.problem = problemOf(failure);
    this.#drain(instance, 'restore_failed');
    await this.#kill(instance);
  }

  /**
   * Takes over instances that an earlier agent started. It may have ended between a freeze, or a thaw, and the record of
   * it: the record counts.
   */
  async adopt(instances: readonly Instance[]): Promise<void> {
    const { freezer, onState, log } = this.#parts;
    await Promise.all(
      instances.map(async (instance) => {
        this.track(instance);
        try {
          await (instance.state === 'parked' ? freezer.freeze(instance.id) : freezer.thaw(instance.id));
        } catch (error) {
          // Most likely it has just ended, which is noticed by itself.
          log.warn({ instance: instance.id, error }, 'an instance that was taken over could not be frozen or thawed');
        }
        onState(instance);
      }),
    );
  }

  /** A running instance without a lease: one that runs or is parked, or a new one. Errors: NOT_READY, EXHAUSTED, those of a start. */
  async wake(service: string): Promise<Instance> {
    const { instance } = await this.#obtain(service, () => true, undefined);
    return instance;
  }

  /**
   * A lease on a running instance with a free slot: one that runs, else one that is parked and not reserved, else a new one.
   * Errors: NOT_READY for a service that this host does not serve, EXHAUSTED when `max_pool_size` instances are busy or one
   * is reserved for the gateway itself, those of a start, and the signal's reason: nobody waits any more, and what was
   * being started is for the next one.
   * The lease is for all free slots: the gateway serves with them without asking, and others get them back by a recall.
   *
   * @param suspects instances that the gateway has just found broken; they are looked at first.
   */
  async acquire(service: string, suspects: readonly string[], gateway: string, signal?: AbortSignal): Promise<Grant> {
    for (const id of suspects) {
      const instance = this.#instances.get(id);
      if (instance?.process && !isAlive(instance.process)) await this.#ended(instance);
    }
    for (let tries = 0; ; tries++) {
      const { instance, found } = await this.#obtain(
        service,
        (running) => this.#freeSlots(running) > 0,
        gateway,
        signal,
      );
      signal?.throwIfAborted();
      const slots = this.#freeSlots(instance);
      if (instance.state === 'running' && slots > 0) {
        const lease: Lease = { id: newLeaseId(instance.id), gateway, slots };
        instance.leases.set(lease.id, lease);
        this.#parts.onGranted?.(service, found);
        return { ...lease, instance, found };
      }
      // Others took the last slot, or the instance's life, between its choice and now.
      if (tries === 3)
        throw new InitlessError('EXHAUSTED', `${service}: no instance kept a free slot`, { subject: service });
    }
  }

  /**
   * Gives a lease back over which no request has been in flight for `idleMs`. Returns the instance that it was on;
   * undefined: it had ended.
   */
  release(leaseId: string, idleMs = 0): Instance | undefined {
    const instance = this.#instances.get(instanceOf(leaseId));
    if (!instance?.leases.delete(leaseId)) return undefined;
    // What another gateway did since is not forgotten.
    instance.idleSince = Math.max(instance.idleSince, performance.now() - idleMs);
    if (instance.leases.size === 0) this.#retireIfSuperseded(instance);
    return instance;
  }

  /**
   * Whether no page was missing in a lease's instance until now: all of its memory is there, or what fills it is. Otherwise
   * how the fill ended is about to be told.
   */
  isServed(leaseId: string): boolean {
    const instance = this.#instances.get(instanceOf(leaseId));
    if (instance === undefined) return false;
    // One that has begun to end is not alive any more: what it had open may be closed.
    return instance.filler === undefined || isAlive(instance.filler.daemon);
  }

  /** Parked instances of what is served that nobody has a lease on. */
  reservable(): Instance[] {
    return this.assignments().flatMap((assignment) =>
      this.parked(assignment)
        .filter((instance) => instance.leases.size === 0 && !this.#freezing.has(instance.id))
        .slice(0, this.#room(assignment)),
    );
  }

  /** Reserves a {@link reservable} instance, with all of its slots. */
  reserve(instance: Instance, gateway: string): Lease {
    const lease: Lease = { id: newLeaseId(instance.id), gateway, slots: this.#capacity(instance), asleep: true };
    instance.leases.set(lease.id, lease);
    return lease;
  }

  /**
   * Lets a reserved instance run, since its gateway uses it now. Returns the instance; undefined: the lease has ended, or
   * the instance was woken before.
   */
  activate(leaseId: string): Instance | undefined {
    const instance = this.#instances.get(instanceOf(leaseId));
    const lease = instance?.leases.get(leaseId);
    if (instance === undefined || !lease?.asleep) return undefined;
    instance.apply({ type: 'thaw' });
    this.#letRun(instance);
    lease.asleep = false;
    this.#parts.onState(instance);
    this.#parts.onGranted?.(instance.service, 'parked');
    return instance;
  }

  /**
   * Ends a lease of a gateway that did not say what it has sent over it. An instance that was reserved for it may hold a
   * request that nobody waits for: it goes as it is, frozen.
   */
  abandon(leaseId: string): void {
    const instance = this.#instances.get(instanceOf(leaseId));
    if (instance?.state === 'parked' && instance.leases.get(leaseId)?.asleep) this.retire(instance, 'drained');
    else this.release(leaseId);
  }

  /** Gives all but `slots` of a lease's slots back; a lease does not grow. Returns the instance, as {@link release} does. */
  shrink(leaseId: string, slots: number): Instance | undefined {
    const instance = this.#instances.get(instanceOf(leaseId));
    const lease = instance?.leases.get(leaseId);
    if (lease === undefined) return undefined;
    lease.slots = Math.max(1, Math.min(lease.slots, slots));
    return instance;
  }

  /** Takes a gateway's word for what it holds, as {@link reconcile} has it: the rest of it is given back. */
  resume(gateway: string, named: readonly HeldLease[]): Lease[] {
    // What it uses must run, and a lease that comes before the kill wins.
    const used = named.filter(({ asleep }) => !asleep);
    const wanted = new Set(used.flatMap(({ instance }) => this.#instances.get(instance) ?? []));
    const reclaimed = [...wanted].filter((instance) => this.#reclaim(instance));
    for (const instance of wanted) {
      if (instance.state !== 'parked' || (instance.reserved && instance.reserved.gateway !== gateway)) continue;
      this.#thaw(instance).catch((error: unknown) => {
        this.#parts.log.error({ instance: instance.id, error }, 'an instance in use could not be thawed');
      });
    }
    const { stand, ended } = reconcile(gateway, named, this.list(), (instance) => this.#capacity(instance));
    for (const { instance, lease } of stand) {
      const before = instance.leases.get(lease.id);
      instance.leases.set(lease.id, lease);
      // Its word that it uses what was reserved for it was lost.
      if (before?.asleep && !lease.asleep) this.#parts.onGranted?.(instance.service, 'parked');
    }
    for (const id of ended) this.abandon(id);
    for (const instance of reclaimed) if (instance.leases.size === 0) this.#retireIfSuperseded(instance);
    return stand.map(({ lease }) => lease);
  }

  async #obtain(
    service: string,
    fits: (running: Instance) => boolean,
    gateway: string | undefined,
    signal?: AbortSignal,
  ): Promise<{ instance: Instance; found: Grant['found'] }> {
    const assignment = this.#assignments.get(service);
    if (assignment?.config === undefined) {
      throw new InitlessError('NOT_READY', `this host does not serve ${service}`, { subject: service });
    }
    const ours = this.list().filter((instance) => isCurrent(instance, assignment));
    const running = ours.find((instance) => instance.state === 'running' && fits(instance));
    if (running) return { instance: running, found: 'running' };
    const draining = this.#room(assignment, false) > 0 ? ours.find((instance) => this.#reclaim(instance)) : undefined;
    if (draining) return { instance: draining, found: 'running' };
    const parked = ours.filter((instance) => instance.state === 'parked' && !instance.reserved);
    const chosen = parked.find((instance) => !this.#freezing.has(instance.id)) ?? parked[0];
    if (chosen) {
      this.#checkRoom(assignment);
      if (this.#freezing.has(chosen.id)) await this.#thaw(chosen);
      else this.#thawSoon(chosen);
      return { instance: chosen, found: 'parked' };
    }
    const reserved = ours.filter((instance) => instance.reserved);
    if (gateway === undefined && reserved[0]) return { instance: await this.thaw(reserved[0].id), found: 'parked' };
    // Its acquire met the reservation on the way: once it has that, it needs no other instance, or asks again.
    if (reserved.some((instance) => instance.reserved?.gateway === gateway)) {
      throw new InitlessError('EXHAUSTED', `${service}: a parked instance is reserved for this gateway`, {
        subject: service,
      });
    }
    return { instance: await this.#startFor(assignment, signal), found: undefined };
  }

  /**
   * Takes a draining instance back whose kill has not been issued; whether it did. Never one that was parked: those it was
   * reserved for have been told that it does not run.
   */
  #reclaim(instance: Instance): boolean {
    if (instance.state !== 'draining' || instance.frozen || this.#removals.has(instance.id)) return false;
    instance.apply({ type: 'reclaim' });
    this.#parts.onState(instance);
    return true;
  }

  /** A start for somebody who may give up: one that another gave up, else a new one. */
  async #startFor(assignment: ServiceAssignment, signal?: AbortSignal): Promise<Instance> {
    const service = assignment.config?.serviceName ?? '';
    const spare = this.#spare.get(service) ?? new Set();
    this.#spare.set(service, spare);
    const [left] = spare;
    if (left) spare.delete(left);
    const start = left ?? this.start(assignment);
    const giveUp = () => void spare.add(start);
    signal?.addEventListener('abort', giveUp, { once: true });
    try {
      return await start;
    } finally {
      signal?.removeEventListener('abort', giveUp);
      spare.delete(start);
    }
  }

  /**
   * Errors: EXHAUSTED when as many instances run, or are being started to run, as `max_pool_size` allows; ELSEWHERE when it
   * is this host's share of them.
   */
  #checkRoom(assignment: ServiceAssignment): void {
    if (this.#room(assignment) > 0) return;
    const { serviceName, maxPoolSize } = assignment.config as ServiceConfig;
    if (assignment.pool?.elsewhere) {
      const share = runningAtMost(assignment);
      const text = `${serviceName}: this host's ${share} of ${maxPoolSize} instances are busy; other hosts have more`;
      throw new InitlessError('ELSEWHERE', text, { subject: serviceName, nextStep: 'ask another host of the route' });
    }
    throw new InitlessError('EXHAUSTED', `${serviceName}: all ${maxPoolSize} instances are busy (max_pool_size)`, {
      subject: serviceName,
      nextStep: "try again, or raise 'max_pool_size' or 'max_concurrency'",
    });
  }

  /**
   * Instances that may still be made to run. What is reserved counts as running: its gateway may have it thawed at any
   * moment. So does what drains, but where the question is whether to take just that back.
   */
  #room(assignment: ServiceAssignment, draining = true): number {
    const { serviceName } = assignment.config as ServiceConfig;
    const counts = ({ state, reserved }: Instance) =>
      state === 'running' || (draining && state === 'draining') || (state === 'parked' && reserved !== undefined);
    const up = this.list().filter((instance) => isCurrent(instance, assignment) && counts(instance));
    return Math.max(0, runningAtMost(assignment) - up.length - (this.#starting.get(serviceName) ?? 0));
  }

  /** A new instance, within `max_pool_size`. Errors: EXHAUSTED, those of a start. */
  async start(assignment: ServiceAssignment, onlyRestored = false): Promise<Instance> {
    const config = assignment.config as ServiceConfig;
    this.#checkRoom(assignment);
    this.#starting.set(config.serviceName, (this.#starting.get(config.serviceName) ?? 0) + 1);
    try {
      const instance = await this.#parts.starter.start(assignment, onlyRestored);
      const current = this.#assignments.get(config.serviceName);
      if (current === undefined || !isCurrent(instance, current)) this.#retireIfSuperseded(instance);
      return instance;
    } finally {
      this.#starting.set(config.serviceName, (this.#starting.get(config.serviceName) ?? 1) - 1);
    }
  }

  /** What is served. */
  assignments(): ServiceAssignment[] {
    return [...this.#assignments.values()];
  }

  /** The parked instances of a service's current revision. */
  parked(assignment: ServiceAssignment): Instance[] {
    return this.list().filter((instance) => instance.state === 'parked' && isCurrent(instance, assignment));
  }

  /**
   * Brings an instance up for the pool and parks it. One that was leased in the moment before it could be parked stays
   * with whoever has it. Errors: those of a start.
   */
  async startParked(assignment: ServiceAssignment): Promise<void> {
    const instance = await this.#parts.starter.start(assignment, false, undefined, true);
    instance.pooled = true;
    const current = this.#assignments.get(instance.service);
    if (current === undefined || !isCurrent(instance, current)) this.#retireIfSuperseded(instance);
    else if (instance.state === 'running' && instance.leases.size === 0) await this.park(instance.id);
  }

  /** Removes a settled, unleased instance when a recycle worker is free. */
  retire(instance: Instance, reason: Reason): void {
    this.#drain(instance, reason);
    this.#recycleLater(instance);
  }

  /** Freezes a running instance. Errors: NOT_FOUND, LEASE_HELD, NOT_ALLOWED when it does not run, DEADLINE. */
  async park(id: string): Promise<Instance> {
    const instance = this.get(id);
    const { state } = instance;
    if (state !== 'running') throw wrongState(instance, 'parked', 'running');
    if (instance.filling) {
      throw new InitlessError('NOT_ALLOWED', `instance ${id} cannot be parked: its memory is still being filled`, {
        subject: id,
        nextStep: 'try again in a moment',
      });
    }
    if (instance.leases.size > 0) {
      throw new InitlessError(
        'LEASE_HELD',
        `instance ${id} is in use: ${instance.leases.size} lease(s) are held on it`,
        {
          subject: id,
          nextStep: 'try again a second after its last request has been answered',
        },
      );
    }
    instance.apply({ type: 'park' });
    const freezing = this.#parts.freezer.freeze(id).finally(() => this.#freezing.delete(id));
    this.#freezing.set(id, freezing);
    try {
      await freezing;
    } catch (error) {
      // Else a lease came meanwhile.
      if (instance.state === 'parked') instance.apply({ type: 'thaw' });
      throw error;
    }
    this.#parts.onState(instance);
    this.#parts.onReservable?.();
    return instance;
  }

  /**
   * Thaws a parked instance for a person. Errors: NOT_FOUND, NOT_ALLOWED when it is not parked, EXHAUSTED.
   *
   * The gateway that it is reserved for may be sending it a request at this moment. So the lease becomes one that is used,
   * and is called back: the request is answered over it, and a gateway that sent nothing gives it back at once. A gateway
   * that is away says with its next hello which of the two it was.
   */
  async thaw(id: string): Promise<Instance> {
    const instance = this.get(id);
    if (instance.state !== 'parked') throw wrongState(instance, 'thawed', 'parked');
    const { reserved } = instance;
    const assignment = this.#assignments.get(instance.service);
    if (reserved) {
      reserved.asleep = false;
      this.#parts.onCalledBack?.([reserved.id], 'operator');
    } else if (assignment && isCurrent(instance, assignment)) this.#checkRoom(assignment);
    await this.#thaw(instance);
    return instance;
  }

  /**
   * Lets an instance run as soon as whoever asked for it has been told where it is: the kernel takes connections and bytes
   * for it meanwhile, so that the answer's way and the thaw go on side by side.
   */
  #thawSoon(instance: Instance): void {
    instance.apply({ type: 'thaw' });
    setImmediate(() => {
      // It may be gone again by now.
      if (instance.state === 'running') this.#letRun(instance);
    });
    this.#parts.onState(instance);
  }

  /** Has the kernel thaw an instance, before anything else is done; one that it cannot thaw goes. */
  #letRun(instance: Instance): void {
    this.#parts.freezer.thaw(instance.id).catch((error: unknown) => {
      this.#parts.log.error({ instance: instance.id, error }, 'a parked instance could not be thawed');
      if (this.#goes(instance)) return;
      instance.problem = problemOf(error);
      this.#drain(instance, 'crashed');
      void this.#kill(instance);
    });
  }

  async #thaw(instance: Instance): Promise<void> {
    instance.apply({ type: 'thaw' });
    // A freeze that is under way goes on until the kernel has it: thawed in between, it would freeze again.
    await this.#freezing.get(instance.id)?.catch(() => {});
    await this.#parts.freezer.thaw(instance.id);
    this.#parts.onState(instance);
  }

  /** Removes an instance, whatever it does, and waits until it is gone. Errors: NOT_FOUND. */
  async remove(id: string, reason: Reason): Promise<Instance> {
    const instance = this.get(id);
    if (instance.state === 'restoring' || instance.state === 'sandboxed') {
      throw wrongState(instance, 'removed', 'running or parked; it is being started');
    }
    this.#drain(instance, reason);
    await this.#kill(instance);
    return instance;
  }

  /** Whether an instance is of a service that left, or of another revision than is served. */
  isSuperseded(instance: Instance): boolean {
    const assignment = this.#assignments.get(instance.service);
    return assignment === undefined || !isCurrent(instance, assignment);
  }

  #retireIfSuperseded(instance: Instance): void {
    if (!this.isSuperseded(instance)) return;
    if (!isSettled(instance) || [...this.#preparing].some((next) => isCurrent(instance, next))) return;
    this.retire(instance, this.#reasonToGo(instance));
  }

  #reasonToGo({ service }: Instance): Reason {
    return this.#left.get(service) ?? 'superseded';
  }

  #drain(instance: Instance, reason: Reason): void {
    if (instance.state === 'draining') return;
    // A reservation ends now, not with the kill: until then its gateway would go on sending requests.
    if (instance.reserved) this.#revokeAll(instance, reason);
    instance.apply({ type: 'drain', reason });
    this.#parts.onState(instance);
  }

  #revokeAll(instance: Instance, reason: Reason): void {
    const leases = [...instance.leases.keys()];
    const neverRan = instance.reserved !== undefined;
    instance.leases.clear();
    // Nobody will know any more whether what it has answered was right.
    if (instance.filling) this.#parts.onFillEnded?.(instance, leases, notFilled(instance));
    if (leases.length > 0) this.#parts.onRevoked(leases, reason, neverRan);
  }

  /** Removes a draining instance when a recycle worker is free; until then a lease may take it back. */
  #recycleLater(instance: Instance): void {
    void this.#recycle(async () => {
      if (instance.state === 'draining') await this.#kill(instance);
    });
  }

  #kill(instance: Instance): Promise<void> {
    const under = this.#removals.get(instance.id);
    if (under) return under;
    const removal = this.#clear(instance, instance.reason ?? 'operator');
    this.#removals.set(instance.id, removal);
    return removal;
  }

  async #clear(instance: Instance, reason: Reason): Promise<void> {
    this.#revokeAll(instance, reason);
    try {
      if (instance.place) await this.#parts.places.clear(instance.place);
    } catch (error) {
      // What could not be removed is found by its name at the next start of the agent; it must not be leased meanwhile.
      this.#parts.log.error({ instance: instance.id, error }, 'an instance could not be removed completely');
      instance.problem = problemOf(error);
    }
    instance.apply({ type: 'end', reason });
    this.#instances.delete(instance.id);
    this.#removals.delete(instance.id);
    this.#parts.onState(instance);
    // Another one may run in its place.
    this.#parts.onReservable?.();
  }

  /** Whether it is gone or about to be. */
  #goes(instance: Instance): boolean {
    return this.#removals.has(instance.id) || instance.state === 'gone';
  }

  /** Replaces an instance that runs and does not answer; what its lease holders sent it breaks. */
  async hung(instance: Instance, why: InitlessError): Promise<void> {
    if (this.#goes(instance) || instance.state !== 'running') return;
    instance.problem = problemOf(why);
    this.#drain(instance, 'health_timeout');
    await this.#kill(instance);
  }

  async #ended(instance: Instance): Promise<void> {
    if (this.#goes(instance)) return;
    const oom = await this.#parts.freezer.wasOutOfMemory(instance.id);
    const { process, filler } = instance;
    const status = process && (await this.#parts.exits.statusOf(process));
    // What reads zeros in place of its memory most likely crashes before anybody comes to end it.
    const unfilled = filler && !isAlive(filler.daemon) && (await this.#parts.exits.statusOf(filler.daemon)) !== FILLED;
    // Somebody else may have begun to remove it meanwhile.
    if (this.#goes(instance)) return;
    const without = unfilled ? ' without the lazy-pages daemon, which had ended before it had filled its memory' : '';
    const how = oom ? 'the kernel killed it for want of memory' : status;
    instance.problem ??= problemOf(
      new InitlessError(
        'INSTANCE_LOST',
        `the process of ${instance.id} (${originText(instance.origin)}) ended${without}${how === undefined ? '' : `: ${how}`}`,
        {
          nextStep: `see what it printed: initless service logs ${instance.service} --instance ${instance.id}`,
        },
      ),
    );
    const removal = this.#clear(instance, oom ? 'oom' : 'crashed');
    this.#removals.set(instance.id, removal);
    await removal;
  }

  /** Looks for idle and expired instances until `signal` aborts. */
  watch(signal: AbortSignal): Promise<void> {
    return repeat(TICK_MS, signal, () => this.#tick());
  }

  #tick(): void {
    const now = performance.now();
    for (const instance of this.list()) {
      const config = instance.assignment.config as ServiceConfig;
      if (
        instance.state === 'running' &&
        !instance.filling &&
        instance.leases.size === 0 &&
        now - instance.idleSince > (this.#configOf(instance)?.idleTimeoutMs ?? 0)
      ) {
        this.#idle(instance);
      } else if (instance.state === 'parked' && now - instance.parkedSince > config.preStartTimeoutMs) {
        this.retire(instance, 'expired');
      }
    }
  }

  /** An idle instance goes back to the pool where that is wanted and allowed, else it goes. */
  #idle(instance: Instance): void {
    const assignment = this.#assignments.get(instance.service);
    const config = assignment?.config;
    const others = this.list().filter((other) => other !== instance);
    const wanted = assignment ? parkedWanted(assignment, others) : 0;
    if (config?.reuse && this.parked(assignment as ServiceAssignment).length < wanted) {
      instance.pooled = true;
      this.park(instance.id).catch((error: unknown) => {
        this.#parts.log.warn({ instance: instance.id, error }, 'an idle instance could not be parked');
      });
      return;
    }
    this.retire(instance, 'idle');
  }

  /** Slots of an instance, under the service's configuration of today. */
  #capacity(instance: Instance): number {
    return this.#configOf(instance)?.maxConcurrency ?? 1;
  }

  #freeSlots(instance: Instance): number {
    return this.#capacity(instance) - instance.slotsHeld;
  }

  /** The service's configuration of today, also for an instance of another revision. */
  #configOf(instance: Instance): ServiceConfig | undefined {
    return this.#assignments.get(instance.service)?.config ?? instance.assignment.config;
  }
}

function notFilled({ id, problem }: Instance): InitlessError {
  return problem
    ? errorOf(problem, id)
    : new InitlessError('INSTANCE_LOST', `instance ${id} was removed before all of its memory was there`, {
        subject: id,
      });
}

function wrongState(instance: Instance, what: string, needed: string): InitlessError {
  return new InitlessError(
    'NOT_ALLOWED',
    `instance ${instance.id} cannot be ${what}: it is ${instance.state}, not ${needed}`,
    {
      subject: instance.id,
    },
  );
}
