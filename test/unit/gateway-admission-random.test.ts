import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type Action, Admission, AGENT_GRACE_MS, LEASE_GRACE_MS, LINGER_MS, SLOW_MS } from '../../gateway/admission.js';
import { noHost } from '../../gateway/refusals.js';
import { InitlessError } from '../../proto/rpc/errors.js';

const QUEUE_TIMEOUT_MS = 1_000;
const ABSENT = noHost('demo');
const AGENTS = ['a', 'b', 'c'];

const agent = fc.constantFrom(...AGENTS);
const pick = fc.nat();

/** What may happen, and how likely. */
const event = fc.oneof(
  { weight: 12, arbitrary: fc.record({ type: fc.constant('enter' as const) }) },
  { weight: 7, arbitrary: fc.record({ type: fc.constant('done' as const), pick, fate: fc.nat(5) }) },
  { weight: 6, arbitrary: fc.record({ type: fc.constant('grant' as const), pick, share: fc.boolean() }) },
  { weight: 3, arbitrary: fc.record({ type: fc.constant('reserve' as const), agent }) },
  { weight: 3, arbitrary: fc.record({ type: fc.constant('deny' as const), pick, retry: fc.nat(2) }) },
  { weight: 2, arbitrary: fc.record({ type: fc.constant('leave' as const), pick }) },
  { weight: 2, arbitrary: fc.record({ type: fc.constant('revoke' as const), pick }) },
  { weight: 2, arbitrary: fc.record({ type: fc.constant('recall' as const), pick }) },
  { weight: 2, arbitrary: fc.record({ type: fc.constant('down' as const), agent }) },
  { weight: 3, arbitrary: fc.record({ type: fc.constant('up' as const), agent }) },
  { weight: 2, arbitrary: fc.record({ type: fc.constant('silent' as const), agent, silent: fc.boolean() }) },
  { weight: 2, arbitrary: fc.record({ type: fc.constant('doubt' as const), pick, doubtful: fc.boolean() }) },
  { weight: 2, arbitrary: fc.record({ type: fc.constant('resume' as const), agent, mask: fc.nat(15) }) },
  {
    weight: 2,
    arbitrary: fc.record({
      type: fc.constant('configure' as const),
      hosts: fc.integer({ min: 0, max: 3 }),
      traits: fc.nat(),
      maxConcurrency: fc.integer({ min: 1, max: 4 }),
      queueLimit: fc.integer({ min: 1, max: 6 }),
    }),
  },
  { weight: 6, arbitrary: fc.record({ type: fc.constant('wait' as const), ms: fc.nat(700) }) },
  { weight: 1, arbitrary: fc.record({ type: fc.constant('wait' as const), ms: fc.nat(20_000) }) },
);

type Event = typeof event extends fc.Arbitrary<infer T> ? T : never;

interface Waiter {
  ticket: number;
  deadline: number;
}

interface Lease {
  agent: string;
  instance: string;
  slots: number;
  inFlight: number;
  /** Reserved and not activated. */
  asleep: boolean;
  idleSince: number;
  /** Takes no more requests: revoked, broken, recalled while idle, or beyond what the route allows. */
  over: boolean;
  /** Its instance is out of reach. */
  doubtful: boolean;
  /** It is over then, unless its agent confirms it. */
  unsureUntil: number;
}

/** Vitest's own expectations take too long to be asked millions of times. */
function must(holds: boolean, what: string): asserts holds {
  if (!holds) throw new Error(`broken: ${what}`);
}

/** Plays clients and agents around an admission, and keeps books of its own. */
class World {
  now = 0;
  readonly admission = new Admission('demo');
  readonly queue: Waiter[] = [];
  readonly leases = new Map<string, Lease>();
  /** Acquires under way, with their agents, and when they were asked. */
  readonly acquires = new Map<number, { agent: string; at: number }>();
  /** Agents that are there and do not answer. */
  readonly silent = new Set<string>();
  /** Agents of the route that are being drained. */
  #draining = new Set<string>();
  /** Agents of the route that have no share. */
  #shareless = new Set<string>();
  /** Agents that have ever denied anything: whether they can be asked is the admission's to know. */
  readonly denied = new Set<string>();
  /** Agents whose stream is there. */
  readonly up = new Set(AGENTS);
  /** Agents that the route leads to. */
  #hosts: string[] = [];
  /** How often each ticket was served or refused, or left. */
  readonly outcomes = new Map<number, number>();
  /** Requests that wait for a second time; the queue's limit does not count them. */
  readonly #again = new Set<number>();
  #limits = { maxConcurrency: 2, queueLimit: 5, queueTimeoutMs: QUEUE_TIMEOUT_MS };
  #ids = 0;

  constructor() {
    this.#configure(2, 0);
  }

  play(happened: Event): void {
    switch (happened.type) {
      case 'enter':
        this.#enter(false);
        break;
      case 'done':
        this.#done(happened.pick, happened.fate);
        break;
      case 'grant':
        this.#grant(happened.pick, happened.share);
        break;
      case 'reserve':
        this.#reserve(happened.agent);
        break;
      case 'deny': {
        const [acquire, asked] = this.#pick(this.acquires, happened.pick) ?? [];
        if (acquire === undefined || asked === undefined) break;
        this.denied.add(asked.agent);
        this.acquires.delete(acquire);
        const code = (['RESTORE_FAILED', 'EXHAUSTED', 'ELSEWHERE'] as const)[happened.retry] ?? 'EXHAUSTED';
        const error = new InitlessError(code, 'no');
        this.#apply(this.admission.denied(acquire, error, happened.retry * 100, this.now));
        break;
      }
      case 'leave': {
        const waiter = this.queue[happened.pick % Math.max(1, this.queue.length)];
        if (waiter === undefined) break;
        this.#outcome(waiter.ticket);
        this.#apply(this.admission.leave(waiter.ticket, this.now));
        break;
      }
      case 'revoke': {
        const [key, lease] = this.#pick(this.leases, happened.pick) ?? [];
        if (key === undefined || lease === undefined) break;
        lease.over = true;
        this.#apply(this.admission.revoked(key, this.now));
        break;
      }
      case 'recall': {
        const [key, lease] = this.#pick(this.leases, happened.pick) ?? [];
        if (key === undefined || lease === undefined) break;
        if (lease.inFlight === 0) lease.over = true;
        this.#apply(this.admission.recalled(key, this.now));
        if (this.leases.has(key)) must(lease.slots <= lease.inFlight, 'a recall leaves no idle slot');
        break;
      }
      case 'down':
        if (!this.up.delete(happened.agent)) break;
        this.silent.delete(happened.agent);
        for (const lease of this.leases.values()) {
          if (lease.agent !== happened.agent || lease.asleep) continue;
          lease.unsureUntil = Math.min(lease.unsureUntil, this.now + LEASE_GRACE_MS);
        }
        this.#apply(this.admission.agentDown(happened.agent, this.now));
        must(
          ![...this.acquires.values()].some((asked) => asked.agent === happened.agent),
          'nothing is asked of an agent that is away',
        );
        break;
      case 'up':
        if (this.up.has(happened.agent)) break;
        this.up.add(happened.agent);
        this.silent.delete(happened.agent);
        this.#apply(this.admission.agentUp(happened.agent, this.now));
        break;
      case 'silent':
        if (!this.up.has(happened.agent)) break;
        if (happened.silent) this.silent.add(happened.agent);
        else this.silent.delete(happened.agent);
        this.#apply(this.admission.agentSilent(happened.agent, happened.silent, this.now));
        break;
      case 'doubt': {
        const [key, lease] = this.#pick(this.leases, happened.pick) ?? [];
        if (key === undefined || lease === undefined) break;
        lease.doubtful = happened.doubtful;
        this.#apply(this.admission.doubted(key, happened.doubtful, this.now));
        break;
      }
      case 'resume':
        this.#resume(happened.agent, happened.mask);
        break;
      case 'configure':
        this.#limits = { ...this.#limits, maxConcurrency: happened.maxConcurrency, queueLimit: happened.queueLimit };
        this.#configure(happened.hosts, happened.traits);
        break;
      case 'wait':
        this.pass(happened.ms);
        break;
    }
  }

  /** Lets time pass, with a tick whenever one is due. */
  pass(ms: number): void {
    const until = this.now + ms;
    for (;;) {
      const next = this.admission.nextTick;
      if (next === undefined || next > until) break;
      must(next > this.now, 'a tick is due later than now');
      this.now = next;
      this.#apply(this.admission.tick(this.now));
    }
    this.now = until;
    must(
      this.queue.every(({ deadline }) => deadline > until),
      'nobody waits longer than queue_timeout',
    );
  }

  /** Answers every request that is in flight. */
  answerAll(): void {
    for (const [key, lease] of [...this.leases]) {
      while (lease.inFlight > 0) this.#finish(key, lease);
    }
  }

  /** @param traits whether each is being drained, has no share, or is to keep instances parked: three bits for each. */
  #configure(hosts: number, traits: number): void {
    this.#hosts = AGENTS.slice(0, hosts);
    const has = (index: number, bit: number) => ((traits >> (3 * index + bit)) & 1) === 1;
    this.#draining = new Set(this.#hosts.filter((_, index) => has(index, 0)));
    this.#shareless = new Set(this.#hosts.filter((_, index) => has(index, 1)));
    for (const lease of this.leases.values()) if (lease.asleep && !this.#hosts.includes(lease.agent)) lease.over = true;
    const choices = this.#hosts.map((name, index) => ({
      ...{ agent: name, host: name, up: this.up.has(name), silent: this.silent.has(name) },
      ...{ draining: has(index, 0), maxRunning: has(index, 1) ? 0 : 5, parked: has(index, 2) ? 1 : 0 },
    }));
    const { maxConcurrency } = this.#limits;
    const taken = new Map<string, number>();
    const before = new Map([...this.leases].map(([key, { slots }]) => [key, slots]));
    for (const lease of this.leases.values()) {
      if (!this.#stands(lease)) continue;
      const room = maxConcurrency - (taken.get(lease.instance) ?? 0);
      if (room <= 0) lease.over = true;
      taken.set(lease.instance, (taken.get(lease.instance) ?? 0) + Math.max(0, Math.min(room, lease.slots)));
    }
    this.#apply(this.admission.configure(this.#limits, choices, ABSENT, this.now));
    for (const [key, lease] of this.leases) must(lease.slots <= (before.get(key) ?? 0), 'a lease does not grow');
    for (const instance of taken.keys()) {
      must(this.#slotsOn(instance) <= maxConcurrency, 'slots stay within a lowered max_concurrency');
    }
  }

  #enter(again: boolean): void {
    const ticket = ++this.#ids;
    const full = this.queue.length >= this.#limits.queueLimit;
    const deadline = this.now + QUEUE_TIMEOUT_MS;
    this.outcomes.set(ticket, 0);
    if (again) {
      this.#again.add(ticket);
      this.queue.unshift({ ticket, deadline });
      this.#apply(this.admission.enterAgain(ticket, this.now));
      return;
    }
    this.queue.push({ ticket, deadline });
    this.#apply(this.admission.enter(ticket, this.now));
    must(!full || this.outcomes.get(ticket) === 1, 'a full queue takes nobody');
  }

  #done(number: number, fate: number): void {
    const busy = new Map([...this.leases].filter(([, { inFlight }]) => inFlight > 0));
    const [key, lease] = this.#pick(busy, number) ?? [];
    if (key === undefined || lease === undefined) return;
    if (fate === 0) {
      lease.over = true;
      this.admission.broken(key);
    }
    this.#finish(key, lease);
    if (fate <= 1) this.#enter(true);
  }

  #finish(key: string, lease: Lease): void {
    lease.inFlight -= 1;
    lease.idleSince = this.now;
    this.#apply(this.admission.done(key, this.now));
  }

  /** As an agent does: never more slots on an instance than are free, all of them at once, and nothing of what is reserved. */
  #grant(number: number, share: boolean): void {
    const [acquire, asked] = this.#pick(this.acquires, number) ?? [];
    if (acquire === undefined || asked === undefined) return;
    const by = asked.agent;
    this.acquires.delete(acquire);
    const key = `L${++this.#ids}`;
    const { maxConcurrency } = this.#limits;
    const instances = [...this.leases.values()]
      .filter((lease) => lease.agent === by && !lease.asleep)
      .map(({ instance }) => instance);
    const free = (instance: string) =>
      [...this.leases.values()].reduce(
        (left, held) => left - (held.instance === instance ? held.slots : 0),
        maxConcurrency,
      );
    const instance = (share ? instances.find((name) => free(name) > 0) : undefined) ?? `i-${key}`;
    const slots = free(instance);
    const idleSince = this.now;
    const unsureUntil = Number.POSITIVE_INFINITY;
    const books = {
      agent: by,
      instance,
      slots,
      inFlight: 0,
      asleep: false,
      idleSince,
      over: false,
      doubtful: false,
      unsureUntil,
    };
    this.leases.set(key, books);
    this.#apply(this.admission.granted(acquire, { lease: key, agent: by, instance, slots }, this.now, !share));
  }

  /** As an agent does: a parked instance with all of its slots, by an agent that the service is known to be on. */
  #reserve(by: string): void {
    if (!this.up.has(by) || !this.#hosts.includes(by)) return;
    const key = `L${++this.#ids}`;
    const [instance, slots] = [`i-${key}`, this.#limits.maxConcurrency];
    const unsureUntil = Number.POSITIVE_INFINITY;
    const books = {
      agent: by,
      instance,
      slots,
      inFlight: 0,
      asleep: true,
      idleSince: this.now,
      over: false,
      doubtful: false,
      unsureUntil,
    };
    this.leases.set(key, books);
    this.#apply(this.admission.reserved({ lease: key, agent: by, instance, slots }, this.now));
    must(this.queue.length > 0 || this.acquires.size === 0, 'nothing is asked for when a reservation serves everybody');
  }

  /** The agent is back and confirms some of its leases; the others have ended. */
  #resume(name: string, mask: number): void {
    if (!this.up.has(name)) return;
    let index = 0;
    for (const [key, lease] of [...this.leases]) {
      if (lease.agent !== name || lease.unsureUntil === Number.POSITIVE_INFINITY) continue;
      if ((mask >> (index++ % 4)) & 1) {
        // One whose time was over stays so.
        if (!this.#stands(lease)) lease.over = true;
        lease.unsureUntil = Number.POSITIVE_INFINITY;
        this.admission.resumed(key);
      } else {
        lease.over = true;
        this.#apply(this.admission.revoked(key, this.now));
      }
    }
  }

  #apply(actions: readonly Action[]): void {
    for (const action of actions) this.#applyOne(action);
    must(this.admission.waiting === this.queue.length, 'the queue is what the books say');
    must(
      this.queue.filter(({ ticket }) => !this.#again.has(ticket)).length <= 6,
      'the queue is bounded, but for requests that come back',
    );
    const inFlight = [...this.leases.values()].reduce((sum, lease) => sum + lease.inFlight, 0);
    must(this.admission.inFlight === inFlight, 'what is in flight is what the books say');
    if (this.queue.length === 0) return;
    must(this.admission.nextTick !== undefined, 'who waits, waits for something that has an end');
    for (const lease of this.leases.values()) {
      const usable =
        this.#stands(lease) &&
        !lease.doubtful &&
        this.#isToStay(lease) &&
        (!lease.asleep || this.#answers(lease.agent));
      must(!usable || lease.inFlight >= lease.slots, 'nobody waits while a slot is free');
    }
  }

  #applyOne(action: Action): void {
    switch (action.do) {
      case 'assign': {
        const lease = this.leases.get(action.lease);
        must(lease !== undefined && this.#stands(lease), 'requests go over leases that stand');
        must(!lease.doubtful, 'nothing is sent where it cannot arrive');
        must(!lease.asleep, 'a reserved lease is activated before a request goes over it');
        must(this.queue[0]?.ticket === action.ticket, 'first come, first served');
        this.#outcome(action.ticket);
        lease.inFlight += 1;
        must(lease.inFlight <= lease.slots, 'never more in flight than slots');
        break;
      }
      case 'activate': {
        const lease = this.leases.get(action.lease);
        must(lease?.asleep === true && this.#stands(lease), 'only what is reserved and stands is activated, and once');
        must(this.#answers(lease.agent), 'an agent that is away could not be told');
        must(this.queue.length > 0, 'nothing is activated for nobody');
        for (const other of this.leases.values()) {
          if (other.doubtful || !this.#isToStay(other)) continue;
          const free = !other.asleep && this.#stands(other) && other.inFlight < other.slots;
          must(!free, 'what is reserved is used only when nothing that runs has a slot');
        }
        lease.asleep = false;
        break;
      }
      case 'refuse':
        this.#outcome(action.ticket);
        break;
      case 'acquire': {
        must(this.up.has(action.agent), 'only an agent that is there is asked');
        must(!this.acquires.has(action.acquire), 'each acquire has a number of its own');
        this.acquires.set(action.acquire, { agent: action.agent, at: this.now });
        const needed = Math.ceil(this.queue.length / this.#limits.maxConcurrency);
        const quick = [...this.acquires.values()].filter(
          (asked) => this.#answers(asked.agent) && this.now - asked.at < SLOW_MS,
        );
        must(quick.length <= needed, 'no more instances are asked for than are needed, but for what takes long');
        if (this.silent.has(action.agent)) {
          must(
            !this.#hosts.some((name) => this.#couldServe(name)),
            'who does not answer is asked only where nobody does',
          );
        }
        const youngest = Math.max(...this.queue.map(({ deadline }) => deadline));
        must(action.timeoutMs === Math.ceil(youngest - this.now), 'an acquire has the time of its youngest request');
        break;
      }
      case 'cancel':
        must(this.acquires.delete(action.acquire), 'only what is under way is cancelled');
        break;
      case 'shrink': {
        const lease = this.leases.get(action.lease);
        must(lease !== undefined && action.slots >= 1 && action.slots < lease.slots, 'a lease shrinks, not to nothing');
        lease.slots = action.slots;
        break;
      }
      case 'release': {
        const lease = this.leases.get(action.lease);
        must(lease?.inFlight === 0, 'no lease is released with a request in flight');
        must(action.idleMs === this.now - lease.idleSince, 'a release says how long nothing was in flight');
        must(!this.#stands(lease) || !lease.asleep, 'what is reserved stays');
        must(!this.#stands(lease) || action.idleMs >= LINGER_MS, 'a lease that stands lingers');
        this.leases.delete(action.lease);
        break;
      }
    }
  }

  /** A ticket is served or refused, or its client left. */
  #outcome(ticket: number): void {
    const at = this.queue.findIndex((waiter) => waiter.ticket === ticket);
    must(at !== -1, 'only who waits has an outcome');
    this.queue.splice(at, 1);
    this.outcomes.set(ticket, (this.outcomes.get(ticket) ?? 0) + 1);
  }

  #stands({ over, unsureUntil }: Lease): boolean {
    return !over && this.now < unsureUntil;
  }

  #answers(name: string): boolean {
    return this.up.has(name) && !this.silent.has(name);
  }

  /** Whether a lease is of a host that is there to stay. What others have is used only in need. */
  #isToStay({ agent: name }: Lease): boolean {
    return this.#hosts.includes(name) && !this.#draining.has(name);
  }

  /** Whether nothing is known against an agent. */
  #couldServe(name: string): boolean {
    return this.#answers(name) && !this.denied.has(name) && !this.#draining.has(name) && !this.#shareless.has(name);
  }

  #slotsOn(instance: string): number {
    let slots = 0;
    for (const lease of this.leases.values())
      if (lease.instance === instance && this.#stands(lease)) slots += lease.slots;
    return slots;
  }

  #pick<K, V>(from: ReadonlyMap<K, V>, number: number): [K, V] | undefined {
    return [...from][number % Math.max(1, from.size)];
  }
}

test('whatever happens, order and limits hold, each request has one outcome, and everything settles in the end', () => {
  let played = 0;
  fc.assert(
    fc.property(fc.array(event, { maxLength: 120, size: 'max' }), (events) => {
      const world = new World();
      for (const happened of events) world.play(happened);
      played += events.length;
      // Nobody answers any more: what waits is refused in time.
      world.pass(QUEUE_TIMEOUT_MS + AGENT_GRACE_MS);
      must(world.queue.length === 0, 'nobody waits for ever');
      world.answerAll();
      world.pass(LEASE_GRACE_MS);
      must(
        [...world.leases.values()].every(({ asleep }) => asleep),
        'every lease is released, but for what is only reserved',
      );
      must(world.acquires.size === 0, 'nothing is asked for');
      must(world.admission.settled && world.admission.nextTick === undefined, 'it settles');
      must(
        [...world.outcomes.values()].every((count) => count === 1),
        'each request has exactly one outcome',
      );
    }),
    { numRuns: 2_500 },
  );
  expect(played).toBeGreaterThan(100_000);
});
