import type { CallContext } from 'nice-grpc';
import { pino } from 'pino';
import type { Instance } from '../../agent/instance/instance.js';
import { Instances } from '../../agent/instance/instances.js';
import { LeaseService } from '../../agent/instance/lease-service.js';
import type { Lease } from '../../agent/instance/leases.js';
import type { Granted, HeldLease, LeaseRequest, LeaseResponse, Reserved } from '../../proto/gen/initless/v1/agent.js';
import type { ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import type { ServiceConfig } from '../../proto/gen/initless/v1/types.js';
import type { InitlessError } from '../../proto/rpc/errors.js';
import { PushStream } from '../../proto/rpc/push-stream.js';
import { FILLER, runningInstance, webRevision } from './agent-instance-fixture.js';

/** An agent's leases, on instances that start, freeze and go at once, or when the test says so. */
export class LeaseWorld {
  /** What happened, in order: "start web-1", "freeze web-1", "thaw web-1", "noted web-1", "gone web-1 idle". */
  readonly happened: string[] = [];
  /** Leases that were counted as granted, as "web parked". */
  readonly granted: string[] = [];
  /** Messages of the lease service's log. */
  readonly log: string[] = [];
  /** Lets starts, and freezes, go on; they wait only while there is one. */
  startGate: Promise<void> | undefined;
  freezeGate: Promise<void> | undefined;
  /** Where instances that are started, or taken over, from now on are reached. */
  address = (id: string) => `host:${id}`;
  /** Whether instances that are started, or taken over, from now on are still to be filled. */
  filling = false;
  /** What ends the fill of an instance's memory, by instance. */
  readonly endFill = new Map<string, (failure: InitlessError | undefined) => void>();
  readonly instances: Instances;
  readonly service: LeaseService;
  #starts = 0;

  constructor() {
    this.instances = new Instances({
      log: pino({ level: 'silent' }),
      starter: { start: (assignment) => this.#start(assignment) },
      places: { clear: async () => {} },
      freezer: {
        freeze: async (id) => {
          await this.freezeGate;
          this.happened.push(`freeze ${id}`);
        },
        thaw: async (id) => void this.happened.push(`thaw ${id}`),
        wasOutOfMemory: async () => false,
      },
      exits: { watch: () => () => {}, statusOf: async () => undefined },
      lazy: {
        watch: (id, _folder, _filler, onEnd) => {
          this.endFill.set(id, onEnd);
          return () => this.endFill.delete(id);
        },
      },
      onState: (instance) => {
        this.instances.track(instance);
        if (instance.state === 'gone') this.happened.push(`gone ${instance.id} ${instance.reason}`);
      },
      onGranted: (service, found) => void this.granted.push(`${service} ${found}`),
      onReservable: () => this.service?.reserve(),
      onCalledBack: (leases, reason) => this.service.callBack(leases, reason),
      onFillEnded: (_instance, leases, failure) => this.service.fillEnded(leases, failure),
      onRevoked: (leases, reason, neverRan) => this.service.revoke(leases, reason, neverRan),
    });
    this.service = new LeaseService({
      instances: this.instances,
      describe: () => ({ host: 'h', engine: undefined, instances: [], checkpoints: [] }),
      changed: ({ id }) => void this.happened.push(`noted ${id}`),
      log: pino({}, { write: (line) => void this.log.push(JSON.parse(line).msg) }),
    });
  }

  /** Serves "web", two slots an instance and two instances at most unless told otherwise. */
  serve(more: Partial<ServiceConfig> = {}, revision = 'r1'): void {
    this.instances.assign([webRevision(more, revision)]);
  }

  /** Takes an instance over that an earlier agent started and granted leases on. */
  adopt(id: string, leases: readonly Lease[], state: 'running' | 'parked' = 'running'): Instance {
    const instance = runningInstance(id, webRevision({}, 'r1'), this.address(id));
    if (state === 'parked') instance.apply({ type: 'park' });
    if (this.filling) instance.filler = FILLER;
    for (const lease of leases) instance.leases.set(lease.id, { ...lease });
    void this.instances.adopt([instance]);
    return instance;
  }

  /** An instance that is parked. */
  async park(): Promise<Instance> {
    const { id } = await this.#start(webRevision({}, 'r1'));
    return this.instances.park(id);
  }

  /** All leases, as "LEASE GATEWAY SLOTS", and "asleep" after those that only reserve their instance. */
  get held(): string[] {
    const leases = this.instances.list().flatMap((instance) => [...instance.leases.values()]);
    return leases.map(({ id, gateway, slots, asleep }) => `${id} ${gateway} ${slots}${asleep ? ' asleep' : ''}`);
  }

  /** A gateway that connects and names what it holds. It takes no reserved leases unless told otherwise. */
  connect(gateway: string, leases: Named[] = [], takesReserved = false): GatewayEnd {
    const end = this.open();
    const named = leases.map((lease) => ({ asleep: false, ...lease }));
    end.say({ $case: 'hello', value: { gateway, leases: named, takesReserved } });
    return end;
  }

  /** A stream over which nothing has been said yet. */
  open(): GatewayEnd {
    return new GatewayEnd(this.service);
  }

  async #start(assignment: ServiceAssignment): Promise<Instance> {
    const id = `${assignment.config?.serviceName}-${++this.#starts}`;
    this.happened.push(`start ${id}`);
    await this.startGate;
    const instance = runningInstance(id, assignment, this.address(id));
    if (this.filling) instance.filler = FILLER;
    this.instances.track(instance);
    return instance;
  }
}

/** A lease in a hello; one that is used unless it says otherwise. */
type Named = Omit<HeldLease, 'asleep'> & Partial<HeldLease>;

/** A gateway's end of a lease stream, without a network. */
export class GatewayEnd {
  readonly got: NonNullable<LeaseResponse['message']>[] = [];
  /** How the stream ended. Undefined: it did not, or without an error. */
  error: unknown;
  /** Resolves when the agent has ended its half. */
  readonly over: Promise<void>;
  readonly #requests = new PushStream<LeaseRequest>('test');
  readonly #connection = new AbortController();
  #nextRequest = 1;

  constructor(service: LeaseService) {
    const context = { signal: this.#connection.signal } as unknown as CallContext;
    const responses = service.lease(this.#received(), context);
    this.over = (async () => {
      for await (const { message } of responses) if (message) this.got.push(message);
    })().catch((error: unknown) => {
      this.error = error;
    });
  }

  say(message: NonNullable<LeaseRequest['message']>): void {
    this.#requests.push({ message });
  }

  /** Asks for a lease; gives the request's id. */
  acquire(timeoutMs = 1_000): number {
    const requestId = this.#nextRequest++;
    this.say({ $case: 'acquire', value: { requestId, service: 'web', timeoutMs, suspects: [] } });
    return requestId;
  }

  release(leaseId: string, idleMs = 0): void {
    this.say({ $case: 'release', value: { leaseId, idleMs } });
  }

  activate(leaseId: string): void {
    this.say({ $case: 'activate', value: { leaseId } });
  }

  /** What was reserved for it so far. */
  get reserved(): Reserved[] {
    return this.got.flatMap((message) => (message.$case === 'reserved' ? [message.value] : []));
  }

  /** The grants so far. */
  get granted(): Granted[] {
    return this.got.flatMap((message) => (message.$case === 'granted' ? [message.value] : []));
  }

  /** What it was told, in a form that is easy to compare. */
  get told(): string[] {
    return this.got.map(wordsOf);
  }

  /** Says that it is done, as a gateway does that stops. */
  finish(): void {
    this.#requests.end();
  }

  /** Breaks off, as a connection does that is cut. */
  cut(): void {
    this.#connection.abort();
    this.#requests.end();
  }

  async *#received(): AsyncGenerator<LeaseRequest> {
    yield* this.#requests;
    this.#connection.signal.throwIfAborted();
  }
}

function wordsOf(message: NonNullable<LeaseResponse['message']>): string {
  switch (message.$case) {
    case 'granted':
      return `granted ${message.value.instance} ${message.value.slots}${message.value.filling ? ' filling' : ''}`;
    case 'denied':
      return `denied ${message.value.problem?.code}`;
    case 'resumed':
      return ['resumed', message.value.leaseIds.join(), message.value.filling.length > 0 ? 'filling' : '']
        .join(' ')
        .trim();
    case 'confirmed':
      return `confirmed ${message.value.leaseId} ${message.value.number}`;
    case 'fillEnded':
      return `${message.value.problem ? 'not filled' : 'filled'} ${message.value.leaseId}`;
    case 'revoked':
      return `revoked ${message.value.leaseId}${message.value.neverRan ? ' never ran' : ''}`;
    case 'reserved':
      return `reserved ${message.value.instance} ${message.value.slots}`;
    case 'recall':
      return `recall ${message.value.leaseIds.join()}`;
  }
}

/** Lets everything happen that can happen without time passing. */
export async function settle(): Promise<void> {
  for (let round = 0; round < 200; round++) await Promise.resolve();
}
