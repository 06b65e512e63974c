import type { Logger } from 'pino';
import { InstanceState, instanceStateToJSON, type Origin, originToJSON } from '../proto/gen/initless/v1/types.js';
import { sleep } from '../proto/rpc/deadline.js';
import { InitlessError } from '../proto/rpc/errors.js';
import { type Action, Admission, type GrantedLease, LEASE_GRACE_MS, type Limits } from './admission.js';
import type { Answer, HeldLease } from './agent-stream.js';
import { capacityOf, type HostCapacity } from './capacity.js';
import type { AgentChoice } from './choice.js';
import { attemptToConnect } from './knock.js';
import type { Metrics } from './metrics.js';
import { Fill } from './proxy/fill.js';
import { Upstream } from './proxy/upstream.js';
import type { Refusal } from './refusals.js';
import type { Wake } from './wake.js';

/**
 * Beyond the time that a request may wait for an instance, an answer is held this long, milliseconds, for the rest of the
 * instance's memory.
 */
const HOLD_MS = 30_000;
/** An instance accepts a connection within this time, milliseconds, or gets no requests until it does. */
const REACH_MS = 500;
/** The instances of an agent that does not answer are looked at this often, milliseconds. */
const LOOK_MS = 500;

/** A request's place in an instance. */
export interface Slot {
  /** Where to send it. */
  upstream: Upstream;
  /** Whether the instance may prove never to have run: what is sent to it should be kept, to be sent again. */
  fresh: boolean;
  /** What is awaited before anything of an answer may get out; undefined: nothing is. */
  fill: Fill | undefined;
  /** How long it is awaited, milliseconds. */
  holdMs: number;
  /** Whether the lease still stands; once it does not, nothing new should be sent over it. */
  stands(): boolean;
  /**
   * `move` is called when the instance is found out of reach: the request had better be served elsewhere, if it may be.
   * Returns what stops that.
   */
  onDoubt(move: () => void): () => void;
  /** Whether it is certain that the instance has processed nothing, and will not. */
  neverRan(): boolean;
  /** The request is over; only the first call counts. `broken`: the instance could not be reached. */
  release(broken?: boolean): void;
}

/** Thrown to a request that is not served. */
export class RefusedError extends Error {
  readonly refusal: Refusal;

  constructor(refusal: Refusal) {
    super(refusal.error.message);
    this.refusal = refusal;
  }
}

interface Held {
  lease: HeldLease;
  upstream: Upstream;
  stands: boolean;
  /** It was reserved, and no request over it is over yet. */
  fresh: boolean;
  neverRan: boolean;
  /** What has the requests in flight move to another instance, where they may. */
  movers: Set<() => void>;
  /** Since when its instance is out of reach. Undefined: it is not, as far as is known. */
  badSince: number | undefined;
  /** Undefined: the instance had all of its memory when it was leased. */
  fill: Fill | undefined;
}

interface Taker {
  resolve(slot: Slot): void;
  reject(error: Error): void;
}

/** One service's instances as the gateway sees them: carries out what {@link Admission} decides. */
export class Pool {
  readonly service: string;
  readonly #admission: Admission;
  readonly #wake: Wake;
  readonly #metrics: Metrics;
  readonly #log: Logger;
  readonly #held = new Map<string, Held>();
  readonly #cancels = new Map<number, () => void>();
  readonly #takers = new Map<number, Taker>();
  readonly #whenSettled: () => void;
  #timer: { at: number; handle: NodeJS.Timeout } | undefined;
  #nextTicket = 1;
  #queueTimeoutMs = 0;
  /** Hosts of the route. */
  #hosts: string[] = [];
  /** Agents whose instances are being looked at. */
  readonly #looking = new Set<string>();
  #closed = false;

  /** @param whenSettled called when nothing is held, asked for or waited for any more. */
  constructor(service: string, wake: Wake, metrics: Metrics, log: Logger, whenSettled: () => void) {
    this.service = service;
    this.#admission = new Admission(service);
    this.#wake = wake;
    this.#metrics = metrics;
    this.#log = log;
    this.#whenSettled = whenSettled;
  }

  /** Requests that wait, and requests in flight. */
  get counts(): { waiting: number; inFlight: number } {
    return { waiting: this.#admission.waiting, inFlight: this.#admission.inFlight };
  }

  /** What is held of each host. */
  get capacity(): HostCapacity[] {
    const leases = this.#admission.leases.flatMap(({ lease, ...counts }) => {
      const held = this.#held.get(lease);
      return held ? [{ ...counts, host: held.lease.host }] : [];
    });
    return capacityOf(leases, this.#hosts);
  }

  /** Whether nothing is held, asked for or waited for. */
  get settled(): boolean {
    return this.#admission.settled;
  }

  /** Takes a route's limits and agents; `absent` answers requests while there are none. */
  configure(limits: Limits, agents: readonly AgentChoice[], absent: Refusal): void {
    this.#queueTimeoutMs = limits.queueTimeoutMs;
    this.#hosts = agents.map(({ host }) => host);
    this.#carryOut(this.#admission.configure(limits, agents, absent, performance.now()));
  }

  /**
   * A place in an instance, as soon as there is one. `again`: for a request that comes back. Rejects with
   * {@link RefusedError}, or with CANCELLED as soon as `gone` aborts.
   */
  take(gone: AbortSignal, again: boolean): Promise<Slot> {
    const ticket = this.#nextTicket++;
    return new Promise<Slot>((resolve, reject) => {
      if (gone.aborted) return reject(goneError());
      const onGone = () => {
        this.#takers.delete(ticket);
        reject(goneError());
        this.#carryOut(this.#admission.leave(ticket, performance.now()));
      };
      gone.addEventListener('abort', onGone, { once: true });
      const settle = () => gone.removeEventListener('abort', onGone);
      this.#takers.set(ticket, {
        resolve: (slot) => {
          settle();
          resolve(slot);
        },
        reject: (error) => {
          settle();
          reject(error);
        },
      });
      const now = performance.now();
      this.#carryOut(again ? this.#admission.enterAgain(ticket, now) : this.#admission.enter(ticket, now));
    });
  }

  /** An agent can be asked. */
  agentUp(agent: string): void {
    this.#carryOut(this.#admission.agentUp(agent, performance.now()));
  }

  /** An agent's stream is gone, and what was asked of it too. */
  agentDown(agent: string): void {
    this.#carryOut(this.#admission.agentDown(agent, performance.now()));
    void this.#lookAt(agent);
  }

  /** An agent whose stream is there does not answer, or answers again. */
  agentSilent(agent: string, silent: boolean): void {
    this.#carryOut(this.#admission.agentSilent(agent, silent, performance.now()));
    if (silent) void this.#lookAt(agent);
  }

  /** An agent that was away has confirmed a lease. */
  resumed(key: string): void {
    const held = this.#held.get(key);
    if (held === undefined) return;
    this.#admission.resumed(key);
    held.fill?.askAgain();
  }

  /** An agent reserved a parked instance. */
  reserved(lease: HeldLease): void {
    this.#carryOut(this.#admission.reserved(this.#hold(lease, true), performance.now()));
  }

  /** The instance of a lease has all of its memory, or with a failure never will: no answer of it may be used then. */
  fillEnded(key: string, failure: InitlessError | undefined): void {
    this.#held.get(key)?.fill?.end(failure);
  }

  /** What the instance of a lease had answered before that confirm is right. */
  confirmed(key: string, number: number): void {
    this.#held.get(key)?.fill?.confirmed(number);
  }

  /** Others need what is not used of a lease. */
  recalled(key: string): void {
    if (this.#held.has(key)) this.#carryOut(this.#admission.recalled(key, performance.now()));
  }

  /** A lease takes no more requests. `neverRan`: those in flight over it are sent again. */
  revoked(key: string, neverRan: boolean): void {
    const held = this.#held.get(key);
    if (!held) return;
    held.stands = false;
    held.neverRan = neverRan;
    this.#carryOut(this.#admission.revoked(key, performance.now()));
    // Nobody answers any more: they need not wait for the instance's end.
    if (neverRan) held.upstream.close();
  }

  /** Gives everything back at once; no request may be in flight or come any more. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer?.handle);
    for (const cancel of this.#cancels.values()) cancel();
    for (const { upstream, lease } of this.#held.values()) {
      upstream.close();
      lease.release(0);
    }
    this.#held.clear();
  }

  #carryOut(actions: readonly Action[]): void {
    for (const action of actions) this.#carryOutOne(action);
    this.#arm();
    if (this.#admission.settled) this.#whenSettled();
  }

  #carryOutOne(action: Action): void {
    switch (action.do) {
      case 'assign':
        this.#assign(action.ticket, action.lease);
        break;
      case 'activate':
        this.#activate(action.lease);
        break;
      case 'refuse':
        this.#takers.get(action.ticket)?.reject(new RefusedError(action.refusal));
        this.#takers.delete(action.ticket);
        break;
      case 'acquire':
        this.#acquire(action);
        break;
      case 'cancel':
        this.#cancels.get(action.acquire)?.();
        this.#cancels.delete(action.acquire);
        break;
      case 'shrink':
        this.#held.get(action.lease)?.lease.shrink(action.slots);
        break;
      case 'release': {
        const held = this.#held.get(action.lease);
        this.#held.delete(action.lease);
        // First the connections: an instance that is frozen with one open would find it dead when it is thawed.
        held?.upstream.close();
        held?.lease.release(action.idleMs);
        break;
      }
    }
  }

  #assign(ticket: number, key: string): void {
    const held = this.#held.get(key);
    const taker = this.#takers.get(ticket);
    this.#takers.delete(ticket);
    if (!held || !taker) throw new InitlessError('INTERNAL', `${this.service}: ticket ${ticket} got no lease ${key}`);
    let over = false;
    taker.resolve({
      upstream: held.upstream,
      fresh: held.fresh,
      fill: held.fill,
      holdMs: this.#queueTimeoutMs + HOLD_MS,
      stands: () => held.stands,
      onDoubt: (move) => {
        held.movers.add(move);
        return () => held.movers.delete(move);
      },
      neverRan: () => held.neverRan,
      release: (broken = false) => {
        if (over) return;
        over = true;
        held.fresh = false;
        if (broken) {
          this.#admission.broken(key);
          // It may be the host: nothing more goes there before its other instances are known to be reached.
          void this.#lookAt(held.lease.agent, true);
        }
        this.#carryOut(this.#admission.done(key, performance.now()));
      },
    });
  }

  /** The agent is told first; the requests follow at once. */
  #activate(key: string): void {
    const held = this.#held.get(key);
    if (!held) throw new InitlessError('INTERNAL', `${this.service}: there is no lease ${key} to activate`);
    held.lease.activate();
    setImmediate(() => this.#noteGrant(held.lease, 0));
  }

  #acquire({ acquire, agent, timeoutMs, suspects }: Extract<Action, { do: 'acquire' }>): void {
    const since = performance.now();
    const request = { service: this.service, timeoutMs, suspects };
    this.#cancels.set(
      acquire,
      this.#wake.acquire(agent, request, (answer) => {
        this.#cancels.delete(acquire);
        this.#carryOut(this.#answered(acquire, answer, since));
      }),
    );
  }

  #hold(lease: HeldLease, fresh: boolean): GrantedLease {
    const { key, agent } = lease;
    const { instance, address, slots, filling } = lease.granted;
    const upstream = new Upstream(instance, address);
    const fill = filling ? new Fill((number) => lease.confirm(number)) : undefined;
    this.#held.set(key, {
      lease,
      upstream,
      stands: true,
      fresh,
      neverRan: false,
      movers: new Set(),
      badSince: undefined,
      fill,
    });
    return { lease: key, agent, instance, slots };
  }

  #answered(acquire: number, answer: Answer, since: number): Action[] {
    const now = performance.now();
    if (answer.kind === 'denied') {
      const { error, retryAfterMs } = answer;
      return this.#admission.denied(acquire, error, retryAfterMs, now);
    }
    const { lease } = answer;
    const actions = this.#admission.granted(acquire, this.#hold(lease, false), now, isMade(lease));
    // Those who waited go first.
    setImmediate(() => this.#noteGrant(lease, now - since));
    return actions;
  }

  /**
   * Looks whether an agent's instances are reached, until it answers itself or nothing of it is held any more. One that is not
   * gets no requests, those that have sent nothing to it and those that may be repeated move on at once, and the others have
   * as long as a lease outlives its agent.
   *
   * @param suspected whether none counts as reached before it was.
   */
  async #lookAt(agent: string, suspected = false): Promise<void> {
    const ours = () => [...this.#held].filter(([, { lease }]) => lease.agent === agent && lease.isInUse());
    if (suspected) for (const [key] of ours()) this.#doubt(key, true);
    if (this.#looking.has(agent)) return;
    this.#looking.add(agent);
    for (;;) {
      await Promise.all(ours().map(([key, held]) => this.#lookAtOne(key, held)));
      const isWell = this.#wake.answers(agent) && ours().every(([, { badSince }]) => badSince === undefined);
      if (this.#closed || isWell || ours().length === 0) break;
      await sleep(LOOK_MS);
    }
    this.#looking.delete(agent);
    // What was suspected meanwhile is well too.
    if (!this.#closed) for (const [key] of ours()) this.#doubt(key, false);
  }

  async #lookAtOne(key: string, held: Held): Promise<void> {
    const { upstream, lease } = held;
    const isReached = (await attemptToConnect(upstream.address, REACH_MS)) === undefined;
    if (this.#closed || this.#held.get(key) !== held) return;
    // Whether one that was just activated was thawed, nobody can say while its agent is away.
    const isUnsure = held.fresh && !this.#wake.answers(lease.agent);
    const now = performance.now();
    held.badSince = isReached && !isUnsure ? undefined : (held.badSince ?? now);
    const isLost = !isReached || (isUnsure && this.#admission.hasOther(lease.agent, now));
    this.#doubt(key, isLost);
    if (isLost) for (const move of [...held.movers]) move();
    if (held.badSince === undefined || now - held.badSince < LEASE_GRACE_MS) return;
    this.#admission.broken(key);
    upstream.close();
    this.#carryOut(this.#admission.tick(performance.now()));
  }

  #doubt(key: string, isDoubtful: boolean): void {
    this.#carryOut(this.#admission.doubted(key, isDoubtful, performance.now()));
  }

  #noteGrant({ granted: { instance, origin, found }, host }: HeldLease, tookMs: number): void {
    const labels = { origin: originText(origin), found: stateText(found) };
    this.#metrics.add('wakes_total', { service: this.service, ...labels });
    const ms = Math.round(tookMs * 10) / 10;
    this.#log.info({ service: this.service, instance, host, ...labels, ms }, 'lease granted');
  }

  /** Sees to it that the next thing that time brings is not missed. A timer that comes early does no harm. */
  #arm(): void {
    const at = this.#admission.nextTick;
    if (at === undefined || (this.#timer && this.#timer.at <= at)) return;
    clearTimeout(this.#timer?.handle);
    const handle = setTimeout(
      () => {
        this.#timer = undefined;
        this.#carryOut(this.#admission.tick(performance.now()));
      },
      Math.max(1, Math.ceil(at - performance.now())),
    );
    this.#timer = { at, handle };
  }
}

/** Whether an instance was made for its lease. */
function isMade({ granted }: HeldLease): boolean {
  return granted.found === InstanceState.INSTANCE_STATE_UNSPECIFIED;
}

function goneError(): InitlessError {
  return new InitlessError('CANCELLED', 'the client went away');
}

/** "restored" or "cold". */
function originText(origin: Origin): string {
  return originToJSON(origin).replace('ORIGIN_', '').toLowerCase();
}

/** State an instance was found in; "none" when it was made for the lease. */
function stateText(state: InstanceState): string {
  if (state === InstanceState.INSTANCE_STATE_UNSPECIFIED) return 'none';
  return instanceStateToJSON(state).replace('INSTANCE_STATE_', '').toLowerCase();
}
