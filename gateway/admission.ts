import type { InitlessError } from '../proto/rpc/errors.js';
import {
  type AgentChoice,
  type AgentState,
  type Bearings,
  canServe,
  choose,
  mayBeParked,
  newAgent,
  noteGrant,
  update,
} from './choice.js';
import { agentDown, noHost, type Pending, queueFull, type Refusal, timedOut } from './refusals.js';

/**
 * A lease without a request in flight is kept this long, milliseconds: requests that come faster than that cost no round
 * trip to an agent, and an instance that nobody uses is free to be parked, removed or leased by others a second later.
 * Its agent is told how long nothing was in flight, so that `idle_timeout` counts from the last request.
 */
export const LINGER_MS = 1_000;
/**
 * Leases whose agent cannot be reached are used for this long, milliseconds, after its stream was lost, unless it is back
 * and has confirmed them by then.
 */
export const LEASE_GRACE_MS = 15_000;
/** Requests wait this long, milliseconds, for an agent that cannot be reached; after that they are refused at once. */
export const AGENT_GRACE_MS = 5_000;
/** An agent is not asked again for this long, milliseconds, after it refused while other instances still serve. */
const REFUSED_PAUSE_MS = 1_000;
/** An agent that is busy is not asked more often than this, milliseconds, whatever it says. */
const BUSY_PAUSE_MS = 20;
/** What is not answered after this long, milliseconds, is asked of another host too, if instances may be parked there. */
export const SLOW_MS = 2_000;
/** An acquire is given up this long, milliseconds, after the bound that its agent was given. */
const ANSWER_GRACE_MS = 1_000;
/** A denial this close to an acquire's bound, milliseconds, is taken for the bound's own. */
const BOUND_SLACK_MS = 50;
/** Acquires of one service that may be under way at a time. */
const MAX_PENDING = 100;

/** What a route allows. */
export interface Limits {
  /** Requests in flight per instance. */
  maxConcurrency: number;
  /** Requests that may wait at a time. */
  queueLimit: number;
  /** How long one may wait, milliseconds. */
  queueTimeoutMs: number;
}

/** A lease as an agent granted it, or reserved it. */
export interface GrantedLease {
  /** Key; unique among all leases of all agents. */
  lease: string;
  /** Agent that granted it. */
  agent: string;
  /** Instance it is on. */
  instance: string;
  /** Requests in flight that it allows. */
  slots: number;
}

/** What is to be done after something happened. */
export type Action =
  | { do: 'assign'; ticket: number; lease: string }
  /** Comes before the first assignment to a reserved lease. */
  | { do: 'activate'; lease: string }
  | { do: 'refuse'; ticket: number; refusal: Refusal }
  | { do: 'acquire'; acquire: number; agent: string; timeoutMs: number; suspects: string[] }
  | { do: 'cancel'; acquire: number; agent: string }
  | { do: 'shrink'; lease: string; slots: number }
  | { do: 'release'; lease: string; idleMs: number };

interface LeaseState extends GrantedLease {
  /** It is reserved: nothing was sent over it, and its instance is parked until it is activated. */
  asleep: boolean;
  inFlight: number;
  /** Since when nothing is in flight. */
  idleSince: number;
  /** Takes no more requests; released as soon as those in flight are done. */
  retiring: boolean;
  /** Its instance cannot be reached at the moment: it gets no requests until that is over. */
  doubtful: boolean;
  /** It retires then, unless its agent, which is or was away, has confirmed it. Infinity: its agent is there. */
  unsureUntil: number;
}

interface Waiter {
  ticket: number;
  deadline: number;
}

interface PendingAcquire {
  agent: string;
  /** From then on it is not relied on. */
  slowAt: number;
  /** When the bound that its agent was given is over. */
  boundAt: number;
  /** When it is no longer waited for. */
  giveUpAt: number;
}

/**
 * Admission control of one service: which lease serves the next request, who waits, when another instance is asked for,
 * and who is refused. It does nothing itself: every method takes the time (milliseconds on any clock that does not run
 * back) and returns what is to be done, in order. Requests are served first come, first served, by the oldest lease with
 * a free slot, so that the newest instances run idle first, and by a reserved lease only when no instance that runs has one.
 * What a host has that is being drained, or that has left the route, is used only while no other host can serve.
 */
export class Admission {
  readonly #service: string;
  #limits: Limits = { maxConcurrency: 1, queueLimit: 0, queueTimeoutMs: 0 };
  /** In the order in which they are tried. */
  #agents = new Map<string, AgentState>();
  /** Answer while no host serves the service. */
  #absent: Refusal;
  readonly #leases = new Map<string, LeaseState>();
  readonly #pending = new Map<number, PendingAcquire>();
  readonly #queue: Waiter[] = [];
  /** No waiter's deadline is earlier. */
  #earliestDeadline = Number.POSITIVE_INFINITY;
  #nextAcquire = 1;
  /** The time of the last decisions. */
  #settledAt = 0;

  constructor(service: string) {
    this.#service = service;
    this.#absent = noHost(service);
  }

  /** Requests that wait. */
  get waiting(): number {
    return this.#queue.length;
  }

  /** Requests in flight, over all leases. */
  get inFlight(): number {
    return [...this.#leases.values()].reduce((sum, { inFlight }) => sum + inFlight, 0);
  }

  /** The leases that are held, for a view of them. */
  get leases(): { lease: string; slots: number; inFlight: number; asleep: boolean; usable: boolean }[] {
    return [...this.#leases.values()].map((state) => {
      const { lease, slots, inFlight, asleep } = state;
      return { lease, slots, inFlight, asleep, usable: this.#isUsable(state) };
    });
  }

  /** Whether a host other than that of an agent could serve at this moment. */
  hasOther(agent: string, now: number): boolean {
    return canServe(new Map([...this.#agents].filter(([other]) => other !== agent)), this.#bearings(now));
  }

  /** Whether nothing is held, asked for or waited for; what is only reserved does not count. */
  get settled(): boolean {
    if (this.#pending.size > 0 || this.#queue.length > 0) return false;
    return [...this.#leases.values()].every(({ asleep }) => asleep);
  }

  /** When {@link tick} must be called next. Undefined: only something else can change anything. */
  get nextTick(): number | undefined {
    const now = this.#settledAt;
    let at = Number.POSITIVE_INFINITY;
    // What was due then has had its effect; what has become due since has not.
    const consider = (time: number) => {
      if (time > now && time < at) at = time;
    };
    for (const { giveUpAt, slowAt } of this.#pending.values()) {
      consider(giveUpAt);
      if (this.#queue.length > 0) consider(slowAt);
    }
    for (const { asleep, idleSince, inFlight, unsureUntil } of this.#leases.values()) {
      if (inFlight === 0 && !asleep) consider(idleSince + LINGER_MS);
      consider(unsureUntil);
    }
    if (this.#queue.length > 0) {
      consider(this.#earliestDeadline);
      for (const agent of this.#agents.values()) {
        consider(agent.up ? agent.askAgainAt : agent.downSince + AGENT_GRACE_MS);
      }
    }
    return Number.isFinite(at) ? at : undefined;
  }

  /** Takes a route's limits and hosts, in the order in which they are to be tried; `absent` is the answer without any. */
  configure(limits: Limits, choices: readonly AgentChoice[], absent: Refusal, now: number): Action[] {
    this.#limits = {
      maxConcurrency: Math.max(1, limits.maxConcurrency),
      // Whoever wakes a sleeping service waits for it.
      queueLimit: Math.max(1, limits.queueLimit),
      queueTimeoutMs: limits.queueTimeoutMs,
    };
    this.#absent = absent;
    const shrunk = this.#fit();
    const before = this.#agents;
    this.#agents = new Map();
    for (const choice of choices) {
      const known = before.get(choice.agent);
      this.#agents.set(choice.agent, known ? update(known, choice) : newAgent(choice, now));
    }
    // What an agent that is no longer asked has reserved is of no use here.
    for (const lease of this.#leases.values())
      if (lease.asleep && !this.#agents.has(lease.agent)) lease.retiring = true;
    return [...shrunk, ...this.#settle(now)];
  }

  /** A request arrives. */
  enter(ticket: number, now: number): Action[] {
    // Who waits, waits because no slot is free.
    if (this.#queue.length < this.#limits.queueLimit) {
      this.#wait(ticket, now, 'last');
      return this.#settle(now);
    }
    return [{ do: 'refuse', ticket, refusal: queueFull(this.#service, this.#queue.length) }];
  }

  /** A request that was assigned could not be sent, and comes back: it is the first to be served, with a fresh deadline. */
  enterAgain(ticket: number, now: number): Action[] {
    this.#wait(ticket, now, 'first');
    return this.#settle(now);
  }

  /** Nobody waits for the answer to that request any more. */
  leave(ticket: number, now: number): Action[] {
    const index = this.#queue.findIndex((waiter) => waiter.ticket === ticket);
    if (index === -1) return [];
    this.#queue.splice(index, 1);
    return [...(this.#queue.length === 0 ? this.#cancel() : []), ...this.#settle(now)];
  }

  /** A request that was assigned to a lease is over. */
  done(lease: string, now: number): Action[] {
    const state = this.#leases.get(lease);
    if (state === undefined) return [];
    state.inFlight -= 1;
    state.idleSince = now;
    return this.#settle(now);
  }

  /** A lease's instance cannot be reached: it gets no more requests, and the next acquire tells its agent to look at it. */
  broken(lease: string): void {
    const state = this.#leases.get(lease);
    if (state === undefined || state.retiring) return;
    state.retiring = true;
    this.#agents.get(state.agent)?.suspects.add(state.instance);
  }

  /** An agent granted a lease. `made`: it had to make the instance. */
  granted(acquire: number, lease: GrantedLease, now: number, made = false): Action[] {
    this.#pending.delete(acquire);
    const agent = this.#agents.get(lease.agent);
    if (agent) noteGrant(agent, made, now);
    // Others that could not serve may be able to later: nobody has to be told what they said.
    for (const state of this.#agents.values()) {
      if (state.refusal === undefined) continue;
      state.refusal = undefined;
      state.askAgainAt = now + REFUSED_PAUSE_MS;
    }
    this.#hold(lease, false, now);
    const actions = this.#settle(now);
    // Whoever did not answer in time has been stood in for.
    return this.#queue.length === 0 ? [...actions, ...this.#cancel((pending) => this.#isSlow(pending, now))] : actions;
  }

  /** An agent reserved a parked instance. */
  reserved(lease: GrantedLease, now: number): Action[] {
    this.#hold(lease, true, now);
    const agent = this.#agents.get(lease.agent);
    if (agent) agent.dryUntil = 0;
    const actions = this.#settle(now);
    // What was asked for those whom it serves is not needed any more.
    return this.#queue.length === 0 ? [...actions, ...this.#cancel()] : actions;
  }

  /** An agent has no instance; `retryAfterMs` 0 says not to ask again. The others are asked at once, if they can be. */
  denied(acquire: number, error: InitlessError, retryAfterMs: number, now: number): Action[] {
    const pending = this.#pending.get(acquire);
    const agent = this.#agents.get(pending?.agent ?? '');
    this.#pending.delete(acquire);
    // At the bound of the requests that it was for, it says nothing about those that still wait: they are asked for again.
    if (pending && agent && now < pending.boundAt - BOUND_SLACK_MS) {
      agent.lastDenial = { error };
      const busy = error.code === 'EXHAUSTED' || error.code === 'ELSEWHERE';
      if (busy) agent.probing = true;
      if (busy || retryAfterMs > 0) agent.askAgainAt = now + Math.max(retryAfterMs, BUSY_PAUSE_MS);
      else if (this.#usable() > 0) agent.askAgainAt = now + REFUSED_PAUSE_MS;
      else agent.refusal = { error };
    }
    return this.#settle(now);
  }

  /** A lease takes no more requests. */
  revoked(lease: string, now: number): Action[] {
    const state = this.#leases.get(lease);
    if (state) state.retiring = true;
    return this.#settle(now);
  }

  /** An agent that was away has confirmed a lease. */
  resumed(lease: string): void {
    const state = this.#leases.get(lease);
    if (state) state.unsureUntil = Number.POSITIVE_INFINITY;
  }

  /** Others need the slots of a lease that no request uses. */
  recalled(lease: string, now: number): Action[] {
    const state = this.#leases.get(lease);
    if (state === undefined) return [];
    const actions: Action[] = [];
    if (state.inFlight === 0) state.retiring = true;
    else if (state.inFlight < state.slots) {
      state.slots = state.inFlight;
      actions.push({ do: 'shrink', lease, slots: state.slots });
    }
    return [...actions, ...this.#settle(now)];
  }

  /** An agent's stream is there. */
  agentUp(agent: string, now: number): Action[] {
    const state = this.#agents.get(agent);
    if (state) {
      state.up = true;
      state.silent = false;
      state.refusal = undefined;
      state.askAgainAt = 0;
      state.probing = false;
    }
    return this.#settle(now);
  }

  /**
   * An agent's stream is lost, and with it what was asked of it. Its leases are used on for {@link LEASE_GRACE_MS}; what it
   * reserved cannot be used meanwhile, but stays.
   */
  agentDown(agent: string, now: number): Action[] {
    const state = this.#agents.get(agent);
    if (state?.up) {
      state.up = false;
      state.downSince = now;
    }
    const lost = this.#cancel((pending) => pending.agent === agent);
    for (const lease of this.#leases.values()) {
      // One that was not confirmed since the last time is not given the whole of it again.
      if (lease.agent === agent && !lease.asleep) lease.unsureUntil = Math.min(lease.unsureUntil, now + LEASE_GRACE_MS);
    }
    return [...lost, ...this.#settle(now)];
  }

  /**
   * An agent whose stream is there does not answer, or answers again. Until it does, what was asked of it is asked of others
   * that can serve, and what it reserved is not used.
   */
  agentSilent(agent: string, silent: boolean, now: number): Action[] {
    const state = this.#agents.get(agent);
    if (state) state.silent = silent;
    return this.#settle(now);
  }

  /** A lease's instance cannot be reached at the moment, or can again. */
  doubted(lease: string, doubtful: boolean, now: number): Action[] {
    const state = this.#leases.get(lease);
    if (state) state.doubtful = doubtful;
    return this.#settle(now);
  }

  /** Time has passed. */
  tick(now: number): Action[] {
    return this.#settle(now);
  }

  #wait(ticket: number, now: number, where: 'first' | 'last'): void {
    const deadline = now + this.#limits.queueTimeoutMs;
    if (where === 'first') this.#queue.unshift({ ticket, deadline });
    else this.#queue.push({ ticket, deadline });
    this.#earliestDeadline = Math.min(this.#earliestDeadline, deadline);
  }

  #hold(lease: GrantedLease, asleep: boolean, now: number): void {
    this.#leases.set(lease.lease, {
      ...lease,
      asleep,
      slots: Math.max(1, lease.slots),
      inFlight: 0,
      idleSince: now,
      retiring: false,
      doubtful: false,
      unsureUntil: Number.POSITIVE_INFINITY,
    });
  }

  #settle(now: number): Action[] {
    this.#settledAt = now;
    const actions: Action[] = [];
    for (const lease of this.#leases.values()) if (lease.unsureUntil <= now) lease.retiring = true;
    this.#serve(now, actions);
    this.#giveUp(now, actions);
    this.#expire(now, actions);
    this.#moveOn(now, actions);
    this.#ask(now, actions);
    this.#refuseAll(now, actions);
    this.#releaseIdle(now, actions);
    return actions;
  }

  /** Gives free slots to those who wait. */
  #serve(now: number, actions: Action[]): void {
    const [last, first] = partition(
      [...this.#leases.values()],
      ({ agent }) => this.#agents.get(agent)?.draining !== false,
    );
    this.#serveBy(first, actions);
    if (this.#queue.length > 0 && last.length > 0 && !this.#waitsForOther(now)) this.#serveBy(last, actions);
    if (this.#queue.length === 0) this.#earliestDeadline = Number.POSITIVE_INFINITY;
  }

  #serveBy(leases: readonly LeaseState[], actions: Action[]): void {
    for (const lease of leases) if (!lease.asleep) this.#fill(lease, actions);
    for (const lease of leases) {
      if (this.#queue.length === 0) break;
      const agent = this.#agents.get(lease.agent);
      if (!lease.asleep || !this.#isUsable(lease) || !agent?.up || agent.silent) continue;
      lease.asleep = false;
      actions.push({ do: 'activate', lease: lease.lease });
      this.#fill(lease, actions);
    }
  }

  /** Whether a host that is there to stay can be asked, or has been and has time to answer. */
  #waitsForOther(now: number): boolean {
    const stays = (agent: string) => this.#agents.get(agent)?.draining === false;
    const asked = [...this.#pending.values()].some((pending) => stays(pending.agent) && !this.#isSlow(pending, now));
    return asked || canServe(this.#agents, this.#bearings(now));
  }

  /** Whether an acquire is not relied on any more. */
  #isSlow({ agent, slowAt }: PendingAcquire, now: number): boolean {
    return slowAt <= now || this.#agents.get(agent)?.silent === true;
  }

  #bearings(now: number): Bearings {
    const asked = new Set([...this.#pending.values()].map(({ agent }) => agent));
    return { now, isAsked: (agent) => asked.has(agent), serves: (agent) => this.#usable(agent) > 0 };
  }

  #fill(lease: LeaseState, actions: Action[]): void {
    while (this.#isUsable(lease) && lease.inFlight < lease.slots) {
      const waiter = this.#queue.shift();
      if (waiter === undefined) return;
      lease.inFlight += 1;
      actions.push({ do: 'assign', ticket: waiter.ticket, lease: lease.lease });
    }
  }

  /** Drops acquires that their agent did not answer in time. */
  #giveUp(now: number, actions: Action[]): void {
    actions.push(...this.#cancel(({ giveUpAt }) => giveUpAt <= now));
  }

  /** Keeps the leases on each instance within what the route allows now, the oldest first. */
  #fit(): Action[] {
    const actions: Action[] = [];
    const taken = new Map<string, number>();
    for (const [key, lease] of this.#leases) {
      if (lease.retiring) continue;
      const before = taken.get(lease.instance) ?? 0;
      const slots = Math.min(lease.slots, this.#limits.maxConcurrency - before);
      taken.set(lease.instance, before + Math.max(0, slots));
      if (slots <= 0) lease.retiring = true;
      else if (slots < lease.slots) {
        lease.slots = slots;
        actions.push({ do: 'shrink', lease: key, slots });
      }
    }
    return actions;
  }

  /** Refuses those whose time is over. */
  #expire(now: number, actions: Action[]): void {
    if (this.#earliestDeadline > now) return;
    let next = Number.POSITIVE_INFINITY;
    const stay: Waiter[] = [];
    const refusal = this.#timeoutRefusal();
    for (const waiter of this.#queue) {
      if (waiter.deadline > now) {
        stay.push(waiter);
        next = Math.min(next, waiter.deadline);
      } else actions.push({ do: 'refuse', ticket: waiter.ticket, refusal });
    }
    this.#queue.splice(0, this.#queue.length, ...stay);
    this.#earliestDeadline = next;
    if (stay.length === 0) actions.push(...this.#cancel());
  }

  /** Takes what was asked of agents that do not answer from them, if there is one that does. */
  #moveOn(now: number, actions: Action[]): void {
    if (this.#queue.length === 0) return;
    const isSilent = ({ agent }: PendingAcquire) => this.#agents.get(agent)?.silent === true;
    if (![...this.#pending.values()].some(isSilent)) return;
    const other = choose(this.#agents, this.#bearings(now));
    if (other !== undefined && this.#agents.get(other)?.silent === false) actions.push(...this.#cancel(isSilent));
  }

  /** Asks for as many instances as those who wait need, and no more, but in place of what takes long. */
  #ask(now: number, actions: Action[]): void {
    while (this.#pending.size < MAX_PENDING) {
      const quick = [...this.#pending.values()].filter((pending) => !this.#isSlow(pending, now)).length;
      if (this.#queue.length <= quick * this.#limits.maxConcurrency) return;
      const standsIn = this.#queue.length <= this.#pending.size * this.#limits.maxConcurrency;
      const agent = standsIn ? this.#chooseStandIn(now) : choose(this.#agents, this.#bearings(now));
      const state = this.#agents.get(agent ?? '');
      if (agent === undefined || state === undefined) return;
      const latest = this.#queue.reduce((at, { deadline }) => Math.max(at, deadline), now);
      const timeoutMs = Math.max(1, Math.ceil(latest - now));
      const acquire = this.#nextAcquire++;
      const boundAt = now + timeoutMs;
      this.#pending.set(acquire, { agent, slowAt: now + SLOW_MS, boundAt, giveUpAt: boundAt + ANSWER_GRACE_MS });
      actions.push({ do: 'acquire', acquire, agent, timeoutMs, suspects: [...state.suspects] });
      state.suspects.clear();
    }
  }

  /** An agent of which nothing was asked yet, and that may have an instance parked. */
  #chooseStandIn(now: number): string | undefined {
    const bearings = this.#bearings(now);
    const others = [...this.#agents].filter(
      ([agent, state]) => !bearings.isAsked(agent) && mayBeParked(state, now) && !state.silent,
    );
    return choose(new Map(others), bearings);
  }

  /** Refuses everybody when no instance can come from anywhere. */
  #refuseAll(now: number, actions: Action[]): void {
    if (this.#queue.length === 0 || this.#pending.size > 0 || this.#usable() > 0) return;
    let refusal = this.#absent;
    for (const state of this.#agents.values()) {
      if (state.refusal !== undefined) refusal = state.refusal;
      else if (!state.up && state.downSince + AGENT_GRACE_MS <= now) refusal = agentDown(this.#service, state.host);
      else return;
    }
    for (const { ticket } of this.#queue.splice(0)) actions.push({ do: 'refuse', ticket, refusal });
    this.#earliestDeadline = Number.POSITIVE_INFINITY;
    for (const state of this.#agents.values()) state.refusal = undefined;
  }

  #releaseIdle(now: number, actions: Action[]): void {
    for (const [key, lease] of this.#leases) {
      const stays = lease.asleep || lease.idleSince + LINGER_MS > now;
      if (lease.inFlight > 0 || (stays && !lease.retiring)) continue;
      this.#leases.delete(key);
      actions.push({ do: 'release', lease: key, idleMs: now - lease.idleSince });
    }
  }

  /** Waits no longer for all acquires, or for those that a condition picks. */
  #cancel(picks: (pending: PendingAcquire) => boolean = () => true): Action[] {
    const picked = [...this.#pending].filter(([, pending]) => picks(pending));
    for (const [acquire] of picked) this.#pending.delete(acquire);
    return picked.map(([acquire, { agent }]) => ({ do: 'cancel', acquire, agent }));
  }

  #isUsable({ retiring, doubtful }: LeaseState): boolean {
    return !retiring && !doubtful;
  }

  /** Leases in use that take requests, of one agent or of all. */
  #usable(agent?: string): number {
    let count = 0;
    for (const lease of this.#leases.values()) {
      if (this.#isUsable(lease) && !lease.asleep && (agent === undefined || lease.agent === agent)) count += 1;
    }
    return count;
  }

  /** What a request is told whose time is over: what it waited for. */
  #timeoutRefusal(): Refusal {
    const agents = [...this.#agents.values()];
    const asked = [...this.#pending.values()].map(({ agent }) => this.#agents.get(agent)?.host ?? agent);
    const pending: Pending = {
      busy: this.#usable(),
      asked: [...new Set(asked)],
      away: agents.filter(({ up, silent }) => !up || silent).map(({ host }) => host),
      denial: agents.find(({ lastDenial }) => lastDenial !== undefined)?.lastDenial?.error,
    };
    return timedOut(this.#service, this.#limits.queueTimeoutMs, pending);
  }
}

/** Those for which something holds, and the others, each in their order. */
function partition<T>(all: readonly T[], holds: (one: T) => boolean): [T[], T[]] {
  return [all.filter(holds), all.filter((one) => !holds(one))];
}
