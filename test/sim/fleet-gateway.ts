import { type Action, Admission } from '../../gateway/admission.js';
import { noHost } from '../../gateway/refusals.js';
import type { Route } from '../../proto/gen/initless/v1/routing.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import type { Clock } from './clock.js';
import type { Found, LeaseAnswer, SimHost } from './fleet-host.js';

/** What became of a request. */
export type Outcome =
  /** Answered; by an instance that ran, was parked, or had to be started while it waited. */
  | { kind: 'answered'; found: Found }
  /** Refused, with the code of the error. */
  | { kind: 'refused'; code: string }
  /** Sent to an instance that ended with its host. */
  | { kind: 'cut' };

interface Held {
  host: string;
  instance: string;
  /** How its instance was found, for those who waited for it. */
  found: Found;
  tickets: Set<number>;
}

interface Ticket {
  service: string;
  durationMs: number;
  lease: string;
  /** It was sent. */
  sent: boolean;
  over: boolean;
}

/** What a gateway needs of the world. */
export interface GatewayHooks {
  host: (name: string) => SimHost;
  outcome: (ticket: number, outcome: Outcome) => void;
  /** A request is sent over a lease. */
  sent: (host: string, lease: string, service: string) => void;
  /** Between gateway and agent, milliseconds, one way. */
  delay: () => number;
}

const RETRY_AFTER_MS = 50;

/** A gateway: the real admission of each service, over agents that answer after a while or are gone. */
export class SimGateway {
  readonly name: string;
  readonly #clock: Clock;
  readonly #hooks: GatewayHooks;
  readonly #services = new Map<string, Admission>();
  readonly #leases = new Map<string, Held>();
  readonly #tickets = new Map<number, Ticket>();
  readonly #ticks = new Map<string, { at: number; cancel: () => void }>();
  /** Agents whose stream is there, and how many times it was opened. */
  readonly #streams = new Map<string, number>();
  #opened = 0;
  #count = 0;

  constructor(name: string, clock: Clock, hooks: GatewayHooks) {
    this.name = name;
    this.#clock = clock;
    this.#hooks = hooks;
  }

  /** Takes a route table. */
  routes(routes: readonly Route[]): void {
    for (const route of routes) {
      const { service, maxConcurrency, queueLimit, queueTimeoutMs, hosts } = route;
      const limits = { maxConcurrency, queueLimit, queueTimeoutMs };
      const choices = hosts.map(({ host, maxRunning, parked, draining }) => ({
        ...{ agent: host, host, up: this.#streams.has(host), silent: false },
        ...{ maxRunning, parked, draining },
      }));
      const admission = this.#of(service);
      this.#carryOut(service, admission.configure(limits, choices, noHost(service), this.#clock.now));
    }
    const named = new Set(routes.map((route) => route.service));
    for (const [service, admission] of this.#services) {
      if (named.has(service)) continue;
      const limits = { maxConcurrency: 1, queueLimit: 1, queueTimeoutMs: 1 };
      this.#carryOut(service, admission.configure(limits, [], noHost(service), this.#clock.now));
    }
  }

  /** A request comes in. */
  request(service: string, durationMs: number): number {
    this.#count += 1;
    const ticket = this.#count;
    this.#tickets.set(ticket, { service, durationMs, lease: '', sent: false, over: false });
    this.#carryOut(service, this.#of(service).enter(ticket, this.#clock.now));
    return ticket;
  }

  /** The stream to an agent is there. */
  connected(host: string): void {
    this.#opened += 1;
    this.#streams.set(host, this.#opened);
    const mine = [...this.#leases].filter(([, held]) => held.host === host).map(([id]) => id);
    const stand = new Set(this.#hooks.host(host).resume(this.name, mine));
    for (const lease of mine) {
      const admission = this.#admissionOf(lease);
      if (stand.has(lease)) admission?.resumed(lease);
      else this.revoked([lease], false);
    }
    for (const [service, admission] of this.#services)
      this.#carryOut(service, admission.agentUp(host, this.#clock.now));
  }

  /** A host is gone: what was sent to it is cut, and its stream with it. */
  disconnected(host: string): void {
    this.#streams.delete(host);
    for (const [service, admission] of this.#services) {
      this.#carryOut(service, admission.agentDown(host, this.#clock.now));
    }
    for (const [lease, held] of [...this.#leases]) {
      if (held.host !== host) continue;
      for (const ticket of [...held.tickets]) this.#cut(ticket, lease);
      this.revoked([lease], false);
    }
  }

  reserved(host: string, service: string, lease: string, instance: string, slots: number): void {
    const stream = this.#streams.get(host);
    this.#clock.after(this.#hooks.delay(), () => {
      if (stream === undefined || this.#streams.get(host) !== stream) return;
      // It ended on the way.
      if (!this.#hooks.host(host).instances.get(instance)?.leases.has(lease)) return;
      this.#leases.set(lease, { host, instance, found: 'parked', tickets: new Set() });
      const granted = { lease, agent: host, instance, slots };
      this.#carryOut(service, this.#of(service).reserved(granted, this.#clock.now));
    });
  }

  /** Leases take no more requests. What was sent to an instance that never ran is sent to another. */
  revoked(leases: readonly string[], neverRan: boolean): void {
    for (const lease of leases) {
      const held = this.#leases.get(lease);
      if (held === undefined) continue;
      const service = serviceOf(lease, held);
      const admission = this.#of(service);
      this.#carryOut(service, admission.revoked(lease, this.#clock.now));
      if (!neverRan) continue;
      for (const ticket of [...held.tickets]) {
        held.tickets.delete(ticket);
        this.#carryOut(service, admission.done(lease, this.#clock.now));
        this.#carryOut(service, admission.enterAgain(ticket, this.#clock.now));
      }
    }
  }

  /** Requests that have no outcome yet. */
  get pending(): number {
    return [...this.#tickets.values()].filter((ticket) => !ticket.over).length;
  }

  #of(service: string): Admission {
    let admission = this.#services.get(service);
    if (admission === undefined) {
      admission = new Admission(service);
      this.#services.set(service, admission);
    }
    return admission;
  }

  #admissionOf(lease: string): Admission | undefined {
    const held = this.#leases.get(lease);
    return held && this.#services.get(serviceOf(lease, held));
  }

  #carryOut(service: string, actions: readonly Action[]): void {
    for (const action of actions) this.#one(service, action);
    this.#arm(service);
  }

  #one(service: string, action: Action): void {
    switch (action.do) {
      case 'acquire':
        this.#acquire(service, action.acquire, action.agent);
        return;
      case 'assign':
        this.#send(action.ticket, action.lease);
        return;
      case 'activate': {
        const held = this.#leases.get(action.lease);
        if (held === undefined) return;
        const { host } = held;
        // The request and this word go at the same moment; the reservation holds until it is there.
        this.#hooks.host(host).activate(action.lease);
        return;
      }
      case 'refuse':
        this.#settle(action.ticket, { kind: 'refused', code: action.refusal.error.code });
        return;
      case 'release': {
        const held = this.#leases.get(action.lease);
        this.#leases.delete(action.lease);
        if (held === undefined) return;
        this.#toAgent(held.host, (agent) => agent.release(action.lease, action.idleMs));
        return;
      }
      case 'shrink': {
        const held = this.#leases.get(action.lease);
        if (held) this.#toAgent(held.host, (agent) => agent.shrink(action.lease, action.slots));
        return;
      }
      case 'cancel':
    }
  }

  #acquire(service: string, acquire: number, host: string): void {
    const stream = this.#streams.get(host);
    const isThere = () => stream !== undefined && this.#streams.get(host) === stream;
    this.#toAgent(host, (agent) =>
      agent.acquire(service, this.name, (answer) =>
        this.#clock.after(this.#hooks.delay(), () => {
          if (isThere()) this.#answered(service, acquire, host, answer);
        }),
      ),
    );
  }

  #answered(service: string, acquire: number, host: string, answer: LeaseAnswer): void {
    const admission = this.#of(service);
    const { now } = this.#clock;
    if ('denied' in answer) {
      const error = new InitlessError(answer.denied, answer.denied);
      const retry = answer.denied === 'NOT_READY' ? 0 : RETRY_AFTER_MS;
      this.#carryOut(service, admission.denied(acquire, error, retry, now));
      return;
    }
    const { lease, instance, slots, found } = answer;
    // It ended on the way: its revocation came before it.
    if (!this.#hooks.host(host).instances.get(instance)?.leases.has(lease)) {
      this.#carryOut(service, admission.denied(acquire, new InitlessError('NOT_READY', 'it ended'), 1, now));
      return;
    }
    const held: Held = { host, instance, found, tickets: new Set() };
    this.#leases.set(lease, held);
    this.#carryOut(service, admission.granted(acquire, { lease, agent: host, instance, slots }, now));
    // Those who come later find it running.
    held.found = 'running';
  }

  #send(ticket: number, lease: string): void {
    const request = this.#tickets.get(ticket)!;
    const held = this.#leases.get(lease)!;
    const { found } = held;
    if (found === 'parked') held.found = 'running';
    held.tickets.add(ticket);
    request.lease = lease;
    this.#hooks.sent(held.host, lease, request.service);
    this.#clock.after(request.durationMs, () => {
      if (request.over || request.lease !== lease || !held.tickets.delete(ticket)) return;
      this.#settle(ticket, { kind: 'answered', found });
      this.#carryOut(request.service, this.#of(request.service).done(lease, this.#clock.now));
    });
  }

  #cut(ticket: number, lease: string): void {
    const { service } = this.#tickets.get(ticket)!;
    this.#leases.get(lease)?.tickets.delete(ticket);
    this.#settle(ticket, { kind: 'cut' });
    this.#of(service).broken(lease);
    this.#carryOut(service, this.#of(service).done(lease, this.#clock.now));
  }

  #settle(ticket: number, outcome: Outcome): void {
    const request = this.#tickets.get(ticket)!;
    this.#hooks.outcome(ticket, outcome);
    request.over = true;
    this.#tickets.delete(ticket);
  }

  /** What is said to an agent whose stream is lost meanwhile is not heard. */
  #toAgent(host: string, say: (agent: SimHost) => void): void {
    const stream = this.#streams.get(host);
    if (stream === undefined) return;
    this.#clock.after(this.#hooks.delay(), () => {
      const agent = this.#hooks.host(host);
      if (agent.up && this.#streams.get(host) === stream) say(agent);
    });
  }

  #arm(service: string): void {
    const at = this.#of(service).nextTick;
    const armed = this.#ticks.get(service);
    if (armed?.at === at) return;
    armed?.cancel();
    this.#ticks.delete(service);
    if (at === undefined) return;
    const cancel = this.#clock.after(at - this.#clock.now, () => {
      this.#ticks.delete(service);
      this.#carryOut(service, this.#of(service).tick(this.#clock.now));
    });
    this.#ticks.set(service, { at, cancel });
  }
}

/** Instances are named after their service and their host. */
function serviceOf(lease: string, held: Held): string {
  return lease.slice(0, lease.indexOf(`-${held.host}-`));
}
