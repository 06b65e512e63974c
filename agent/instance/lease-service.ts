import type { CallContext } from 'nice-grpc';
import type { Logger } from 'pino';
import type {
  Acquire,
  AgentServiceImplementation,
  GatewayHello,
  GetHostResponse,
  LeaseRequest,
  LeaseResponse,
} from '../../proto/gen/initless/v1/agent.js';
import { InstanceState } from '../../proto/gen/initless/v1/types.js';
import { withDeadline } from '../../proto/rpc/deadline.js';
import { InitlessError, problemOf, toInitlessError } from '../../proto/rpc/errors.js';
import { PushStream } from '../../proto/rpc/push-stream.js';
import type { Instance } from './instance.js';
import type { Instances } from './instances.js';
import { type Grant, instanceOf, LEASE_GRACE_MS, type Lease, takerOf } from './leases.js';
import { type Reason, reasonOnWire, stateOnWire } from './lifecycle.js';

/** What a gateway that found every instance busy waits before it asks again, when nothing tells it earlier. */
const RETRY_AFTER_MS = 50;

/** What leases are granted from, and who is told of them. */
export interface LeaseServiceParts {
  instances: Instances;
  describe: () => GetHostResponse;
  /** Told after the leases on an instance have changed, and never before the gateway is. */
  changed: (instance: Instance) => void;
  log: Logger;
}

/** One gateway's stream. */
interface GatewayStream {
  /** Empty before its hello. */
  gateway: string;
  out: PushStream<LeaseResponse>;
  /** Whether parked instances may be reserved for it. */
  takesReserved: boolean;
  /** Leases held over it, reserved ones too. */
  leases: Set<string>;
  /** Acquires under way, by request id; they are aborted when nobody waits for the answer any more. */
  acquires: Map<number, AbortController>;
  /** Why this side ends it. */
  failure: InitlessError | undefined;
}

/**
 * The agent's side towards gateways: leases over one stream each. They belong to the gateway, not to the stream: one
 * that breaks leaves them standing for {@link LEASE_GRACE_MS}, so that neither side's restart is noticed by requests.
 */
export class LeaseService implements AgentServiceImplementation {
  readonly #parts: LeaseServiceParts;
  /** The stream of each gateway that is connected. */
  readonly #streams = new Map<string, GatewayStream>();
  /** Gateways that are away and hold leases. */
  readonly #graces = new Map<string, NodeJS.Timeout>();

  constructor(parts: LeaseServiceParts) {
    this.#parts = parts;
  }

  async getHost(): Promise<GetHostResponse> {
    return this.#parts.describe();
  }

  /** Begins the grace period of every gateway that holds leases granted by an earlier agent. */
  awaitGateways(): void {
    const held = this.#parts.instances.list().flatMap((instance) => [...instance.leases.values()]);
    for (const gateway of new Set(held.map((lease) => lease.gateway))) this.#await(gateway);
  }

  async *lease(requests: AsyncIterable<LeaseRequest>, context: CallContext): AsyncGenerator<LeaseResponse> {
    const stream: GatewayStream = {
      gateway: '',
      out: new PushStream<LeaseResponse>('leases of a gateway'),
      takesReserved: false,
      leases: new Set(),
      acquires: new Map(),
      failure: undefined,
    };
    /** Whether the gateway said that it is done, rather than broke off. */
    let finished = false;
    const reading = this.#read(stream, requests).then(
      () => {
        finished = !context.signal.aborted;
        stream.out.end();
      },
      (error: unknown) => {
        stream.out.end();
        if (!context.signal.aborted) throw error;
      },
    );
    // Awaited below; a stream that is cut meanwhile must not count as unhandled.
    reading.catch(() => {});
    try {
      yield* stream.out;
      if (stream.failure) throw stream.failure;
      await reading;
    } finally {
      stream.out.end();
      this.#left(stream, finished);
    }
  }

  /**
   * Tells gateways that leases ended before they were released.
   *
   * @param neverRan the leases only reserved their instance, which is never thawed.
   */
  revoke(leases: readonly string[], reason: Reason, neverRan: boolean): void {
    this.callBack(leases, reason, neverRan);
    for (const { leases: held } of this.#streams.values()) for (const lease of leases) held.delete(lease);
  }

  /** Has gateways send nothing new over leases, and give them back when what is in flight over them is done. */
  callBack(leases: readonly string[], reason: Reason, neverRan = false): void {
    for (const stream of this.#streams.values()) {
      for (const leaseId of leases.filter((id) => stream.leases.has(id))) {
        this.#send(stream, { $case: 'revoked', value: { leaseId, reason: reasonOnWire(reason), neverRan } });
      }
    }
  }

  /** Tells gateways that what was answered over leases until now is right, or with a failure that it must not be used. */
  fillEnded(leases: readonly string[], failure: InitlessError | undefined): void {
    for (const stream of this.#streams.values()) {
      for (const leaseId of leases.filter((id) => stream.leases.has(id))) {
        this.#send(stream, { $case: 'fillEnded', value: { leaseId, problem: failure && problemOf(failure) } });
      }
    }
  }

  /**
   * Reserves parked instances that nobody has for the gateways that are connected, so that a request need not ask first.
   *
   * @param except gateway that gets none now: it has just given one back.
   */
  reserve(except?: string): void {
    const { instances, changed, log } = this.#parts;
    const takers = [...this.#streams.values()].filter(
      (stream) => stream.takesReserved && stream.failure === undefined && stream.gateway !== except,
    );
    if (takers.length === 0) return;
    for (const instance of instances.reservable()) {
      const gateway = takerOf(
        instance.service,
        takers.map((stream) => stream.gateway),
        instances.list(),
      );
      const stream = takers.find((taker) => taker.gateway === gateway);
      if (stream === undefined) continue;
      const lease = instances.reserve(instance, stream.gateway);
      stream.leases.add(lease.id);
      this.#send(stream, { $case: 'reserved', value: reserved(instance, lease) });
      changed(instance);
      log.debug({ gateway, service: instance.service, instance: instance.id }, 'parked instance reserved');
    }
  }

  async #read(stream: GatewayStream, requests: AsyncIterable<LeaseRequest>): Promise<void> {
    for await (const { message } of requests) {
      if (stream.failure) return;
      if (message === undefined) continue;
      if ((message.$case === 'hello') !== (stream.gateway === ''))
        throw new InitlessError('BAD_REQUEST', 'the first message on a lease stream, and no other, must be hello');
      switch (message.$case) {
        case 'hello':
          this.#hello(stream, message.value);
          break;
        case 'acquire':
          void this.#acquire(stream, message.value);
          break;
        case 'release': {
          const { leaseId, idleMs } = message.value;
          if (stream.leases.delete(leaseId)) this.#release(stream, leaseId, idleMs);
          break;
        }
        case 'activate': {
          const { leaseId } = message.value;
          if (stream.leases.has(leaseId)) this.#activate(stream, leaseId);
          break;
        }
        case 'confirm': {
          const { leaseId, number } = message.value;
          if (stream.leases.has(leaseId) && this.#parts.instances.isServed(leaseId))
            this.#send(stream, { $case: 'confirmed', value: { leaseId, number } });
          break;
        }
        case 'shrink': {
          const { leaseId, slots } = message.value;
          if (stream.leases.has(leaseId)) this.#changed(this.#parts.instances.shrink(leaseId, slots));
          break;
        }
        case 'cancel':
          stream.acquires.get(message.value.requestId)?.abort(unwanted());
          break;
      }
    }
  }

  #hello(stream: GatewayStream, { gateway, leases, takesReserved }: GatewayHello): void {
    if (gateway === '') throw new InitlessError('BAD_REQUEST', 'a gateway must say its id');
    const { instances, changed, log } = this.#parts;
    const before = this.#streams.get(gateway);
    if (before) this.#replace(before);
    clearTimeout(this.#graces.get(gateway));
    this.#graces.delete(gateway);
    stream.gateway = gateway;
    stream.takesReserved = takesReserved;
    this.#streams.set(gateway, stream);
    const touched = new Set(this.#heldBy(gateway));
    const stand = instances.resume(gateway, leases);
    for (const { id } of stand) stream.leases.add(id);
    const leaseIds = stand.map(({ id }) => id);
    const filling = leaseIds.filter((id) => instances.get(instanceOf(id)).filling);
    this.#send(stream, { $case: 'resumed', value: { leaseIds, filling } });
    for (const instance of new Set([...touched, ...this.#heldBy(gateway)])) {
      changed(instance);
      if (instances.isSuperseded(instance)) this.callBack([...instance.leases.keys()], 'superseded');
    }
    log.info({ gateway, named: leases.length, stand: stand.length }, 'gateway connected');
    this.reserve();
  }

  /** Nothing comes before the thaw: a request's bytes are there, or will be in a moment. */
  #activate({ gateway }: GatewayStream, leaseId: string): void {
    const instance = this.#parts.instances.activate(leaseId);
    if (instance === undefined) return;
    this.#parts.changed(instance);
    const { service, id } = instance;
    setImmediate(() =>
      this.#parts.log.info({ gateway, service, instance: id, found: 'parked', ms: 0 }, 'lease granted'),
    );
  }

  #release({ gateway }: GatewayStream, leaseId: string, idleMs: number): void {
    const instance = this.#parts.instances.release(leaseId, idleMs);
    if (instance === undefined) return;
    this.#parts.changed(instance);
    if (instance.state === 'parked') this.reserve(gateway);
  }

  /** The one that came last is the gateway's; what it says of the leases counts. */
  #replace(stream: GatewayStream): void {
    const { gateway } = stream;
    this.#parts.log.warn({ gateway }, 'another lease stream of the gateway takes the place of its earlier one');
    this.#end(
      stream,
      new InitlessError('ALREADY_CONNECTED', `another gateway with the id ${gateway} has connected`, {
        subject: gateway,
        nextStep: 'give each gateway an id of its own with --id',
      }),
    );
  }

  /** A stream is over. A gateway that said so holds nothing any more; another one may come back. */
  #left(stream: GatewayStream, finished: boolean): void {
    for (const acquire of stream.acquires.values()) acquire.abort(unwanted());
    const { gateway } = stream;
    if (this.#streams.get(gateway) !== stream) return;
    this.#streams.delete(gateway);
    if (finished) {
      this.#endAll(gateway, (lease) => this.#parts.instances.release(lease));
      this.reserve();
    } else this.#await(gateway);
  }

  #await(gateway: string): void {
    const held = this.#heldBy(gateway);
    if (held.length === 0) return;
    const { log } = this.#parts;
    log.info({ gateway, instances: held.length }, 'the gateway is away; its leases stand for a while');
    const timer = setTimeout(() => {
      this.#graces.delete(gateway);
      log.warn({ gateway, afterMs: LEASE_GRACE_MS }, 'the gateway did not come back; its leases are given back');
      this.#endAll(gateway, (lease) => this.#parts.instances.abandon(lease));
    }, LEASE_GRACE_MS);
    this.#graces.set(gateway, timer);
  }

  #heldBy(gateway: string): Instance[] {
    return this.#parts.instances
      .list()
      .filter(({ leases }) => [...leases.values()].some((lease) => lease.gateway === gateway));
  }

  #endAll(gateway: string, end: (lease: string) => void): void {
    for (const instance of this.#heldBy(gateway)) {
      for (const lease of [...instance.leases.values()]) {
        if (lease.gateway === gateway) end(lease.id);
      }
      this.#parts.changed(instance);
    }
  }

  #changed(instance: Instance | undefined): void {
    if (instance) this.#parts.changed(instance);
  }

  async #acquire(stream: GatewayStream, request: Acquire): Promise<void> {
    const start = performance.now();
    const { instances, changed, log } = this.#parts;
    const { requestId, service, suspects, timeoutMs } = request;
    const { gateway } = stream;
    const stop = new AbortController();
    stream.acquires.set(requestId, stop);
    try {
      const lease = await withDeadline(timeoutMs, `an instance of ${service}`, stop.signal, (signal) =>
        instances.acquire(service, suspects, gateway, signal),
      );
      // Nobody waits any more: the instance stays for the next one.
      if (stop.signal.aborted) {
        instances.release(lease.id);
        return;
      }
      stream.leases.add(lease.id);
      this.#send(stream, { $case: 'granted', value: granted(requestId, lease) });
      changed(lease.instance);
      const ms = Math.round((performance.now() - start) * 10) / 10;
      log.info({ gateway, service, instance: lease.instance.id, found: lease.found ?? 'none', ms }, 'lease granted');
    } catch (error) {
      if (stop.signal.aborted) return;
      const failure = toInitlessError(error);
      const retryAfterMs = ['EXHAUSTED', 'ELSEWHERE'].includes(failure.code) ? RETRY_AFTER_MS : 0;
      this.#send(stream, { $case: 'denied', value: { requestId, problem: problemOf(failure), retryAfterMs } });
      if (retryAfterMs > 0) this.#recall(service, gateway);
      else log.warn({ gateway, service, code: failure.code, error: failure.message }, 'lease denied');
    } finally {
      stream.acquires.delete(requestId);
    }
  }

  /** Asks the other gateways for slots of a service that they hold and do not use, for one that found none. */
  #recall(service: string, gateway: string): void {
    const ours = this.#parts.instances.list().filter((instance) => instance.service === service);
    // It has one that it does not know of yet.
    if (ours.some(({ reserved }) => reserved?.gateway === gateway)) return;
    const held = new Set(ours.flatMap((instance) => [...instance.leases.keys()]));
    for (const stream of this.#streams.values()) {
      if (stream.gateway === gateway) continue;
      const leaseIds = [...stream.leases].filter((id) => held.has(id));
      if (leaseIds.length > 0) this.#send(stream, { $case: 'recall', value: { leaseIds } });
    }
  }

  #send(stream: GatewayStream, message: NonNullable<LeaseResponse['message']>): void {
    try {
      stream.out.push({ message });
    } catch (error) {
      // A gateway that does not read cannot be told anything: it comes again over another stream, or its leases end.
      this.#end(stream, toInitlessError(error));
    }
  }

  #end(stream: GatewayStream, failure: InitlessError): void {
    stream.failure = failure;
    stream.out.end();
    for (const acquire of stream.acquires.values()) acquire.abort(unwanted());
  }
}

function reserved({ id, service, address, origin }: Instance, lease: Lease) {
  return { leaseId: lease.id, service, instance: id, address, slots: lease.slots, origin };
}

function unwanted(): InitlessError {
  return new InitlessError('CANCELLED', 'nobody waits for this lease any more');
}

function granted(requestId: number, lease: Grant) {
  return {
    requestId,
    leaseId: lease.id,
    instance: lease.instance.id,
    address: lease.instance.address,
    slots: lease.slots,
    origin: lease.instance.origin,
    found: lease.found ? stateOnWire(lease.found) : InstanceState.INSTANCE_STATE_UNSPECIFIED,
    stages: lease.found ? [] : lease.instance.stages,
    filling: lease.instance.filling,
  };
}
