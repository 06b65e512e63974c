import net from 'node:net';
import type { CallContext } from 'nice-grpc';
import {
  type Acquire,
  AgentServiceDefinition,
  type AgentServiceImplementation,
  type HeldLease,
  type LeaseRequest,
  type LeaseResponse,
} from '../../proto/gen/initless/v1/agent.js';
import { GoneReason, InstanceState, Origin } from '../../proto/gen/initless/v1/types.js';
import { type ErrorCode, InitlessError, problemOf } from '../../proto/rpc/errors.js';
import { PushStream } from '../../proto/rpc/push-stream.js';
import { createRpcServer, type RpcServer } from '../../proto/rpc/server.js';

/** An acquire that waits for its answer. */
export interface AskedLease {
  acquire: Acquire;
  /** Who asks. */
  gateway: string;
  /** Answers with a lease on an instance. Returns the lease's id. */
  grant(instance: string, address: string, slots?: number): string;
  /** The same, on an instance whose memory is still being filled. */
  grantFilling(instance: string, address: string, slots?: number): string;
  deny(code: ErrorCode, message: string, retryAfterMs?: number): void;
}

/** What an agent does with an acquire. */
export type Script = (asked: AskedLease) => void | Promise<void>;

/** A TCP proxy in front of an agent: what cuts it off from gateways without a word, as a hung machine is. */
export class Line {
  readonly #server: net.Server;
  readonly #sockets = new Set<net.Socket>();
  #hangs = false;

  private constructor(server: net.Server) {
    this.#server = server;
  }

  /** A line to "ADDRESS:PORT". */
  static async to(target: string): Promise<Line> {
    const at = target.lastIndexOf(':');
    const server = net.createServer((client) => {
      const upstream = net.connect({ host: target.slice(0, at), port: Number(target.slice(at + 1)) });
      for (const [from, to] of [
        [client, upstream],
        [upstream, client],
      ] as const) {
        line.#sockets.add(from);
        from.on('error', () => {});
        from.on('close', () => {
          line.#sockets.delete(from);
          to.destroy();
        });
        from.pipe(to);
        if (line.#hangs) from.pause();
      }
    });
    const line = new Line(server);
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', () => resolve()));
    return line;
  }

  /** "ADDRESS:PORT" of this end. */
  get address(): string {
    return `127.0.0.1:${(this.#server.address() as net.AddressInfo).port}`;
  }

  /** Lets nothing through any more, though the kernel still accepts; or lets everything through that waits. */
  hang(hangs: boolean): void {
    this.#hangs = hangs;
    for (const socket of this.#sockets) {
      if (hangs) socket.pause();
      else socket.resume();
    }
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }
}

interface GrantedLease {
  id: string;
  instance: string;
}

/** A scriptable agent that speaks AgentService to gateways on a real gRPC server. */
export class FakeAgent {
  /** What it does with acquires. */
  script: Script;
  readonly acquires: Acquire[] = [];
  /** Request ids of cancelled acquires. */
  readonly cancelled: number[] = [];
  /** Leases that were given back. */
  readonly released: string[] = [];
  /** For how long no request had been in flight over each of them, milliseconds. */
  readonly idleMs: number[] = [];
  /** Reserved leases that were activated. */
  readonly activated: string[] = [];
  /** Leases of which slots were given back, as "LEASE SLOTS". */
  readonly shrunk: string[] = [];
  /** Confirms that were asked for, as "LEASE NUMBER". */
  readonly confirmsAsked: string[] = [];
  /** Leases that are held: they outlive a stream that breaks, and a crash. */
  readonly held = new Map<string, GrantedLease>();
  /** Those of them whose instance is still being filled. */
  readonly filling = new Set<string>();
  /** Whether what fills them is there, so that whole answers are confirmed. */
  confirms = false;
  /** Ids of the gateways that said hello, in order. */
  readonly hellos: string[] = [];
  /** What each hello named as held. */
  readonly named: HeldLease[][] = [];
  #server: RpcServer | undefined;
  #port = 0;
  /** Streams, and the gateways that they are of. */
  readonly #streams = new Map<PushStream<LeaseResponse>, string>();
  #nextLease = 1;

  constructor(script: Script) {
    this.script = script;
  }

  static async start(script: Script): Promise<FakeAgent> {
    const agent = new FakeAgent(script);
    await agent.boot();
    return agent;
  }

  /** "ADDRESS:PORT" where gateways reach it. */
  get address(): string {
    return `127.0.0.1:${this.#port}`;
  }

  /** Starts its server (again), on the same port as before. */
  async boot(): Promise<void> {
    this.#server = createRpcServer(['initless.v1.AgentService'], () => {});
    this.#server.add(AgentServiceDefinition, this.#implementation());
    this.#port = await this.#server.listen(this.address);
    this.#server.setReady(true);
  }

  /** Ends as a crash would: all streams break. */
  async crash(): Promise<void> {
    await this.#server?.stop(0);
    this.#server = undefined;
    this.#streams.clear();
  }

  /** Reserves a parked instance for all gateways that are connected, or for one of them. Returns the lease's id. */
  reserve(service: string, instance: string, address: string, slots = 100, only?: string): string {
    const leaseId = `lease-${this.#nextLease++}`;
    this.held.set(leaseId, { id: leaseId, instance });
    const value = { leaseId, service, instance, address, slots, origin: Origin.ORIGIN_RESTORED };
    for (const [out, gateway] of this.#streams) {
      if (only === undefined || gateway === only) out.push({ message: { $case: 'reserved', value } });
    }
    return leaseId;
  }

  /** Says that all memory of a lease's instance is there, or with a message that it never will be. */
  endFill(leaseId: string, failure?: string): void {
    this.filling.delete(leaseId);
    const problem = failure === undefined ? undefined : problemOf(new InitlessError('RESTORE_FAILED', failure));
    for (const out of this.#streams.keys()) out.push({ message: { $case: 'fillEnded', value: { leaseId, problem } } });
  }

  /** Asks for what is not used of a lease. */
  recall(leaseId: string): void {
    for (const out of this.#streams.keys()) out.push({ message: { $case: 'recall', value: { leaseIds: [leaseId] } } });
  }

  /** Ends a lease before it is released. */
  revoke(leaseId: string, neverRan = false, reason = GoneReason.GONE_REASON_CRASHED): void {
    this.held.delete(leaseId);
    for (const out of this.#streams.keys())
      out.push({ message: { $case: 'revoked', value: { leaseId, reason, neverRan } } });
  }

  #implementation(): AgentServiceImplementation {
    return {
      lease: (requests: AsyncIterable<LeaseRequest>, context: CallContext) => this.#lease(requests, context),
      getHost: async () => ({ host: 'fake' }),
    };
  }

  async *#lease(requests: AsyncIterable<LeaseRequest>, context: CallContext): AsyncGenerator<LeaseResponse> {
    const out = new PushStream<LeaseResponse>('fake agent');
    this.#streams.set(out, '');
    context.signal.addEventListener('abort', () => out.end());
    const goodbye = () => {
      if (!context.signal.aborted) this.held.clear();
    };
    void this.#read(requests, out).then(goodbye, () => out.end());
    try {
      yield* out;
    } finally {
      this.#streams.delete(out);
    }
  }

  async #read(requests: AsyncIterable<LeaseRequest>, out: PushStream<LeaseResponse>): Promise<void> {
    for await (const { message } of requests) {
      switch (message?.$case) {
        case 'hello':
          this.hellos.push(message.value.gateway);
          this.#streams.set(out, message.value.gateway);
          this.named.push(message.value.leases);
          this.#resume(message.value.leases, out);
          break;
        case 'acquire':
          this.acquires.push(message.value);
          void this.script(this.#asked(message.value, out));
          break;
        case 'release':
          this.released.push(message.value.leaseId);
          this.idleMs.push(message.value.idleMs);
          this.held.delete(message.value.leaseId);
          break;
        case 'activate':
          this.activated.push(message.value.leaseId);
          break;
        case 'confirm':
          this.confirmsAsked.push(`${message.value.leaseId} ${message.value.number}`);
          if (this.confirms) out.push({ message: { $case: 'confirmed', value: message.value } });
          break;
        case 'shrink':
          this.shrunk.push(`${message.value.leaseId} ${message.value.slots}`);
          break;
        case 'cancel':
          this.cancelled.push(message.value.requestId);
          break;
      }
    }
    out.end();
  }

  /** What is named stands if it is still held; the rest has been given back. */
  #resume(named: readonly HeldLease[], out: PushStream<LeaseResponse>): void {
    const leaseIds = named.map(({ leaseId }) => leaseId).filter((id) => this.held.has(id));
    for (const id of [...this.held.keys()]) if (!leaseIds.includes(id)) this.held.delete(id);
    const filling = leaseIds.filter((id) => this.filling.has(id));
    out.push({ message: { $case: 'resumed', value: { leaseIds, filling } } });
  }

  #asked(acquire: Acquire, out: PushStream<LeaseResponse>): AskedLease {
    const { requestId } = acquire;
    const grant = (instance: string, address: string, slots: number, filling: boolean) => {
      const id = `lease-${this.#nextLease++}`;
      this.held.set(id, { id, instance });
      if (filling) this.filling.add(id);
      const value = {
        requestId,
        leaseId: id,
        instance,
        address,
        slots,
        origin: Origin.ORIGIN_RESTORED,
        found: filling ? InstanceState.INSTANCE_STATE_UNSPECIFIED : InstanceState.INSTANCE_STATE_PARKED,
        stages: [],
        filling,
      };
      out.push({ message: { $case: 'granted', value } });
      return id;
    };
    return {
      acquire,
      gateway: this.#streams.get(out) ?? '',
      grant: (instance, address, slots = 100) => grant(instance, address, slots, false),
      grantFilling: (instance, address, slots = 100) => grant(instance, address, slots, true),
      deny: (code, message, retryAfterMs = 0) => {
        const problem = problemOf(new InitlessError(code, message, { nextStep: 'do what the test says' }));
        out.push({ message: { $case: 'denied', value: { requestId, problem, retryAfterMs } } });
      },
    };
  }
}
