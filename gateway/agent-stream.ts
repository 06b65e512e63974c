import { waitForChannelReady } from 'nice-grpc';
import type { Logger } from 'pino';
import {
  type Acquire,
  AgentServiceDefinition,
  type Confirmed,
  type Denied,
  type FillEnded,
  type Granted,
  type LeaseRequest,
  type LeaseResponse,
  type Reserved,
  type Resumed,
} from '../proto/gen/initless/v1/agent.js';
import { InstanceState } from '../proto/gen/initless/v1/types.js';
import { connect, createRpcClient } from '../proto/rpc/client.js';
import { sleep } from '../proto/rpc/deadline.js';
import { errorOf, fromGrpcError, InitlessError, toInitlessError } from '../proto/rpc/errors.js';
import { PushStream } from '../proto/rpc/push-stream.js';
import { Backoff } from './backoff.js';
import { knock } from './knock.js';
import { Pulse } from './pulse.js';

/** Once an agent accepts connections, gRPC over one of them takes at most this long, milliseconds. */
const CONNECT_MS = 5_000;
/** A stream that held for this long, milliseconds, was a good one: the next attempt comes at once. */
const GOOD_STREAM_MS = 5_000;
/** An agent that was told that this gateway stops has this long, milliseconds, to take note. */
const GOODBYE_MS = 1_000;
/** An agent says within this time, milliseconds, which leases stand, or its stream is opened anew. */
const HELLO_MS = 5_000;
/** The connection to an agent that does not even answer HTTP/2's pings is given up after the sum of these. */
const KEEP_ALIVE = { 'grpc.keepalive_time_ms': 5_000, 'grpc.keepalive_timeout_ms': 5_000 };

/** A lease that is held. */
export interface HeldLease {
  /** Unique among all leases of all agents, also over their restarts. */
  key: string;
  /** Agent that granted it: its lease address. */
  agent: string;
  /** Host of that agent. */
  host: string;
  /** What the agent said. */
  granted: Pick<Granted, 'leaseId' | 'instance' | 'address' | 'slots' | 'origin' | 'found' | 'filling'>;
  /** Whether it is more than reserved. */
  isInUse(): boolean;
  /** Has the instance thawed, if the lease only reserved it until now: requests are sent over it from now on. */
  activate(): void;
  /**
   * Asks whether what fills its instance's memory is still there; while the stream is down it must be asked again later.
   *
   * @param number grows with each.
   */
  confirm(number: number): void;
  /** Gives all but so many slots back. */
  shrink(slots: number): void;
  /** Gives it back, after no request was in flight over it for that long. */
  release(idleMs: number): void;
}

/** The answer to an acquire. */
export type Answer =
  | { kind: 'granted'; lease: HeldLease }
  | { kind: 'denied'; error: InitlessError; retryAfterMs: number };

/** What the owner of the leases is told. */
export interface WakeEvents {
  /** An agent can be asked. */
  up(agent: string): void;
  /** An agent's stream is gone, and with it all that was asked of it. Its leases may still stand. */
  down(agent: string): void;
  /** An agent whose stream is there does not answer, or answers again. */
  silent(agent: string, silent: boolean): void;
  /** The agent is back and has confirmed a lease, by its key. */
  resumed(lease: string): void;
  /** An agent reserved a parked instance of a service. */
  reserved(service: string, lease: HeldLease): void;
  /** A lease, by its key, takes no more requests. `neverRan`: its instance has processed nothing, and will not. */
  revoked(lease: string, neverRan: boolean): void;
  /**
   * The instance of a lease, by its key, that was granted while its memory was being filled has all of it: what it has
   * answered is right. With a failure it never will, and nothing that it has answered may be used.
   */
  fillEnded(lease: string, failure: InitlessError | undefined): void;
  /** The answers that a lease's instance had given before the confirm of that number are right. */
  confirmed(lease: string, number: number): void;
  /** Others need what is not used of a lease, by its key. */
  recalled(lease: string): void;
}

/**
 * The lease stream to one agent, opened again when it breaks. Leases outlive it: the next one says which are still held.
 */
export class AgentStream {
  /** Whether a route names it. */
  wanted = true;
  readonly address: string;
  /** Its name, as the route says. */
  host: string;
  readonly #gateway: string;
  readonly #log: Logger;
  readonly #events: WakeEvents;
  readonly #whenSpare: (stream: AgentStream) => void;
  readonly #stopping = new AbortController();
  /** The sending half; undefined while the stream is down. */
  #out: PushStream<LeaseRequest> | undefined;
  /** Ends the stream at once. */
  #cut: AbortController | undefined;
  /** Whether the agent has answered this stream's hello. */
  #up = false;
  #silent = false;
  /** Resolves when no stream is open or will be; does not reject. */
  readonly #ended: Promise<void>;
  readonly #answers = new Map<number, (answer: Answer) => void>();
  /** Leases held, by their id; they outlive a stream that breaks. */
  readonly #leases = new Map<string, { instance: string; slots: number; asleep: boolean; filling: boolean }>();
  #nextRequest = 1;
  #saidGoodbye = false;

  /** @param whenSpare called whenever nothing is held or asked for any more. */
  constructor(
    address: string,
    host: string,
    gateway: string,
    log: Logger,
    events: WakeEvents,
    whenSpare: (stream: AgentStream) => void,
  ) {
    this.address = address;
    this.host = host;
    this.#gateway = gateway;
    this.#log = log.child({ host, agent: address });
    this.#events = events;
    this.#whenSpare = whenSpare;
    this.#ended = this.#run();
  }

  get up(): boolean {
    return this.#up;
  }

  /** Whether its stream is there but it does not answer. */
  get silent(): boolean {
    return this.#silent;
  }

  /** Whether something is held or asked for over it. */
  get busy(): boolean {
    return this.#answers.size > 0 || this.#leases.size > 0;
  }

  acquire(request: Omit<Acquire, 'requestId'>, answer: (answer: Answer) => void): () => void {
    const requestId = this.#nextRequest++;
    this.#answers.set(requestId, answer);
    this.#send({ $case: 'acquire', value: { ...request, requestId } });
    return () => {
      if (!this.#answers.delete(requestId)) return;
      this.#send({ $case: 'cancel', value: { requestId } });
      this.#spare();
    };
  }

  close(): void {
    this.#stopping.abort(new InitlessError('CANCELLED', 'the gateway no longer needs this agent'));
  }

  /**
   * Ends the sending half once what was said is sent, with which the agent takes back what is still held, and waits until
   * the agent has ended the other half.
   */
  async sayGoodbye(): Promise<void> {
    this.#saidGoodbye = true;
    if (this.#out === undefined) this.close();
    else this.#out.end();
    const timer = setTimeout(() => this.close(), GOODBYE_MS);
    await this.#ended;
    clearTimeout(timer);
  }

  #send(message: NonNullable<LeaseRequest['message']>): void {
    try {
      this.#out?.push({ message });
    } catch (error) {
      // An agent that does not read cannot be told anything: the stream is opened anew.
      this.#log.warn({ error: toInitlessError(error).message }, 'the agent does not read its lease stream');
      this.#cut?.abort(error);
    }
  }

  #spare(): void {
    if (!this.busy) this.#whenSpare(this);
  }

  async #run(): Promise<void> {
    const { signal } = this.#stopping;
    const backoff = new Backoff(20, 2_000);
    let lostAt = performance.now();
    let reported = false;
    const report = (thrown: unknown) => {
      if (signal.aborted || reported) return;
      reported = true;
      const error = fromGrpcError(thrown, `lease stream to ${this.host}`);
      this.#log.warn({ error: error.message }, 'agent cannot be reached; trying again');
    };
    while (!signal.aborted) {
      try {
        await knock(this.address, lostAt, signal, report);
        const since = performance.now();
        try {
          await this.#connect(signal, () => {
            if (reported) this.#log.info('agent is reached again');
            reported = false;
          });
          if (!signal.aborted) this.#log.warn('the agent ended the lease stream');
        } finally {
          lostAt = performance.now();
          if (lostAt - since > GOOD_STREAM_MS) backoff.reset();
        }
      } catch (thrown) {
        report(thrown);
      }
      // Rejects only with the signal's reason, which ends the loop.
      await sleep(backoff.next(), signal).catch(() => {});
    }
  }

  async #connect(signal: AbortSignal, onReached: () => void): Promise<void> {
    const channel = connect(this.address, KEEP_ALIVE);
    const cut = new AbortController();
    const stop = () => {
      cut.abort(signal.reason);
      channel.close();
    };
    signal.addEventListener('abort', stop, { once: true });
    try {
      const ready = waitForChannelReady(channel, new Date(Date.now() + CONNECT_MS));
      // One that is closed is never ready, but says so only at the end of that time.
      ready.catch(() => {});
      await Promise.race([ready, aborted(signal)]);
      onReached();
      await this.#speak(channel, cut);
    } finally {
      signal.removeEventListener('abort', stop);
      channel.close();
    }
  }

  /** Opens the stream, says what is still held, and takes what comes until it ends. */
  async #speak(channel: ReturnType<typeof connect>, cut: AbortController): Promise<void> {
    const out = new PushStream<LeaseRequest>(`lease stream to ${this.host}`);
    const leases = [...this.#leases].map(([leaseId, { instance, slots, asleep }]) => ({
      leaseId,
      instance,
      slots,
      asleep,
    }));
    out.push({ message: { $case: 'hello', value: { gateway: this.#gateway, leases, takesReserved: true } } });
    const responses = createRpcClient(AgentServiceDefinition, channel).lease(out, { signal: cut.signal });
    this.#out = out;
    this.#cut = cut;
    const named = leases.map(({ leaseId }) => leaseId);
    const pulse = new Pulse(
      channel,
      () => this.busy,
      (silent) => this.#onSilent(silent),
    );
    const unanswered = new InitlessError('DEADLINE', `no answer to hello within ${HELLO_MS} ms`);
    const helloTimer = setTimeout(() => cut.abort(unanswered), HELLO_MS);
    try {
      for await (const response of responses) {
        clearTimeout(helloTimer);
        pulse.heard();
        this.#take(response, named);
      }
    } finally {
      clearTimeout(helloTimer);
      pulse.stop();
      this.#silent = false;
      this.#out = undefined;
      this.#up = false;
      out.end();
      this.#answers.clear();
      if (this.#saidGoodbye) this.close();
      // One that is being closed had nothing to lose, and its address may already have a successor.
      if (!this.#stopping.signal.aborted) {
        this.#events.down(this.address);
        this.#spare();
      }
    }
  }

  #onSilent(silent: boolean): void {
    if (!this.#up || this.#silent === silent) return;
    this.#silent = silent;
    if (silent) this.#log.warn('the agent does not answer; it is left out until it does');
    else this.#log.info('the agent answers again');
    this.#events.silent(this.address, silent);
  }

  /** @param named leases that this stream's hello named. */
  #take({ message }: LeaseResponse, named: readonly string[]): void {
    switch (message?.$case) {
      case 'granted':
        this.#onGranted(message.value);
        break;
      case 'denied':
        this.#onDenied(message.value);
        break;
      case 'revoked':
        this.#events.revoked(this.#keyOf(message.value.leaseId), message.value.neverRan);
        break;
      case 'reserved':
        this.#onReserved(message.value);
        break;
      case 'resumed':
        this.#onResumed(message.value, named);
        break;
      case 'fillEnded':
        this.#onFillEnded(message.value);
        break;
      case 'confirmed':
        this.#onConfirmed(message.value);
        break;
      case 'recall':
        for (const lease of message.value.leaseIds) this.#events.recalled(this.#keyOf(lease));
        break;
      case undefined:
        // A newer agent may say what this gateway does not know.
        break;
    }
  }

  #onResumed({ leaseIds, filling }: Resumed, named: readonly string[]): void {
    const stand = new Set(leaseIds);
    const still = new Set(filling);
    // What was released meanwhile is no longer held.
    const held = named.filter((lease) => this.#leases.has(lease));
    const lost = held.filter((lease) => !stand.has(lease));
    for (const lease of held) if (stand.has(lease)) this.#events.resumed(this.#keyOf(lease));
    for (const lease of held) {
      if (stand.has(lease) && !still.has(lease)) this.#endFill(lease, undefined);
    }
    for (const lease of lost) {
      this.#endFill(lease, new InitlessError('INSTANCE_LOST', `the agent of ${this.host} has lost its instance`));
      this.#leases.delete(lease);
      this.#events.revoked(this.#keyOf(lease), false);
    }
    if (held.length > 0) this.#log.info({ leases: held.length, lost: lost.length }, 'leases resumed');
    // Not before: until now it was not known which leases can be used.
    this.#up = true;
    this.#events.up(this.address);
    this.#spare();
  }

  #onGranted(granted: Granted): void {
    const { requestId, leaseId } = granted;
    const answer = this.#answers.get(requestId);
    this.#answers.delete(requestId);
    // Cancelled while the grant was on its way.
    if (answer === undefined) {
      this.#send({ $case: 'release', value: { leaseId, idleMs: 0 } });
      return;
    }
    answer({ kind: 'granted', lease: this.#hold(granted, false) });
  }

  #onReserved({ service, ...reserved }: Reserved): void {
    this.#log.debug({ service, instance: reserved.instance }, 'parked instance reserved');
    const found = InstanceState.INSTANCE_STATE_PARKED;
    // What is parked has all of its memory.
    this.#events.reserved(service, this.#hold({ ...reserved, found, filling: false }, true));
  }

  #hold(granted: HeldLease['granted'], asleep: boolean): HeldLease {
    const { leaseId, instance, slots, filling } = granted;
    const held = { instance, slots: Math.max(1, slots), asleep, filling };
    this.#leases.set(leaseId, held);
    return {
      key: this.#keyOf(leaseId),
      agent: this.address,
      host: this.host,
      granted,
      isInUse: () => !held.asleep,
      activate: () => {
        held.asleep = false;
        this.#send({ $case: 'activate', value: { leaseId } });
      },
      confirm: (number) => this.#send({ $case: 'confirm', value: { leaseId, number } }),
      shrink: (fewer) => {
        held.slots = fewer;
        this.#send({ $case: 'shrink', value: { leaseId, slots: fewer } });
      },
      release: (idleMs) => {
        // While the stream is down it is enough that the next hello does not name it.
        if (this.#leases.delete(leaseId)) {
          this.#send({ $case: 'release', value: { leaseId, idleMs: Math.round(idleMs) } });
        }
        this.#spare();
      },
    };
  }

  #onFillEnded({ leaseId, problem }: FillEnded): void {
    this.#endFill(leaseId, problem && errorOf(problem));
  }

  #onConfirmed({ leaseId, number }: Confirmed): void {
    this.#events.confirmed(this.#keyOf(leaseId), number);
  }

  #endFill(leaseId: string, failure: InitlessError | undefined): void {
    const held = this.#leases.get(leaseId);
    if (!held?.filling) return;
    held.filling = false;
    this.#events.fillEnded(this.#keyOf(leaseId), failure);
  }

  #onDenied({ requestId, problem, retryAfterMs }: Denied): void {
    const answer = this.#answers.get(requestId);
    this.#answers.delete(requestId);
    const error = problem
      ? errorOf(problem)
      : new InitlessError('INTERNAL', `the agent of ${this.host} denied a lease without a reason`);
    answer?.({ kind: 'denied', error, retryAfterMs });
    this.#spare();
  }

  #keyOf(leaseId: string): string {
    return `${this.address} ${leaseId}`;
  }
}

/** Rejects with the signal's reason once it aborts. */
function aborted(signal: AbortSignal): Promise<never> {
  const promise = new Promise<never>((_, reject) => {
    const end = () => reject(signal.reason);
    if (signal.aborted) end();
    else signal.addEventListener('abort', end, { once: true });
  });
  promise.catch(() => {});
  return promise;
}
