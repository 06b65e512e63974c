import type {
  RoutesHello,
  RoutingServiceImplementation,
  WatchRoutesRequest,
  WatchRoutesResponse,
} from '../../proto/gen/initless/v1/routing.js';
import type { Listener } from '../../proto/gen/initless/v1/types.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { PushStream } from '../../proto/rpc/push-stream.js';
import { routesOf } from '../core/routes.js';
import type { EventLog } from '../events.js';
import type { Reconciler } from '../reconciler.js';
import { RouteTable } from './route-table.js';

interface Gateway {
  id: string;
  outgoing: PushStream<WatchRoutesResponse>;
  /** The table that it has once it has read what it was sent. */
  has: Pick<RoutesHello, 'table' | 'version'>;
  listeners: Listener[];
}

/** Tables that may wait for a gateway that does not read. */
const BACKLOG = 100;

/** The control plane's side towards gateways: who is there, what they listen on, and the table they go by. */
export class Gateways {
  readonly #reconciler: Reconciler;
  readonly #events: EventLog;
  readonly #gateways = new Set<Gateway>();
  readonly #table = new RouteTable();

  constructor(reconciler: Reconciler, events: EventLog) {
    this.#reconciler = reconciler;
    this.#events = events;
    reconciler.changes.subscribe(() => this.#publish());
  }

  /** What all gateways listen on, or tried to. */
  listeners(): Listener[] {
    return [...this.#gateways].flatMap((gateway) => gateway.listeners);
  }

  /** How many are connected. */
  get size(): number {
    return this.#gateways.size;
  }

  /** Ends all connections; gateways keep the table they have. */
  close(): void {
    for (const gateway of this.#gateways) gateway.outgoing.end();
  }

  /** The service that gateways call. */
  service(): RoutingServiceImplementation {
    return { watchRoutes: (requests, context) => this.#watch(requests, context.signal) };
  }

  async *#watch(requests: AsyncIterable<WatchRoutesRequest>, signal: AbortSignal): AsyncGenerator<WatchRoutesResponse> {
    const incoming = requests[Symbol.asyncIterator]();
    const first = await incoming.next();
    const hello = first.done ? undefined : first.value.message;
    if (hello?.$case !== 'hello' || hello.value.gateway === '') {
      throw new InitlessError('BAD_REQUEST', 'a gateway says hello first, with its id');
    }
    const id = hello.value.gateway;
    for (const other of this.#gateways) if (other.id === id) other.outgoing.end();
    const outgoing = new PushStream<WatchRoutesResponse>(`routes for ${id}`, BACKLOG);
    const gateway: Gateway = { id, outgoing, has: hello.value, listeners: [] };
    this.#gateways.add(gateway);
    const end = () => outgoing.end();
    signal.addEventListener('abort', end, { once: true });
    if (signal.aborted) end();
    this.#events.add({ kind: 'gateway.connected', message: `the gateway ${id} is connected` });
    const reading = this.#read(gateway, incoming);
    reading.catch(() => undefined); // It is waited for below; until then it must not count as unhandled.
    try {
      this.#table.update(routesOf(this.#reconciler.snapshot(), Date.now()));
      this.#send(gateway);
      yield* outgoing;
    } finally {
      signal.removeEventListener('abort', end);
      this.#gateways.delete(gateway);
      this.#events.add({ kind: 'gateway.lost', message: `the gateway ${id} is not connected any more` });
    }
    await reading;
  }

  async #read(gateway: Gateway, incoming: AsyncIterator<WatchRoutesRequest>): Promise<void> {
    try {
      for (;;) {
        const next = await incoming.next();
        if (next.done) return;
        const message = next.value.message;
        if (message?.$case === 'hello') throw new InitlessError('BAD_REQUEST', 'a gateway says hello once');
        if (message?.$case === 'listeners') this.#report(gateway, message.value.listeners);
      }
    } catch (error) {
      // Any other error is the connection's end.
      if (error instanceof InitlessError) throw error;
    } finally {
      gateway.outgoing.end();
    }
  }

  #report(gateway: Gateway, listeners: Listener[]): void {
    const before = new Set(gateway.listeners.filter((one) => one.error !== '').map((one) => one.service + one.error));
    gateway.listeners = listeners.map((one) => ({ ...one, gateway: gateway.id }));
    for (const { service, error } of gateway.listeners) {
      if (error !== '' && !before.has(service + error)) {
        this.#events.add({ kind: 'listener.failed', service, message: `${service} is not reachable: ${error}` });
      }
    }
  }

  #publish(): void {
    if (this.#gateways.size === 0) return;
    this.#table.update(routesOf(this.#reconciler.snapshot(), Date.now()));
    for (const gateway of this.#gateways) this.#send(gateway);
  }

  #send(gateway: Gateway): void {
    const response = this.#table.since(gateway.has.table, gateway.has.version);
    if (response === undefined) return;
    gateway.has = { table: response.table, version: response.version };
    try {
      gateway.outgoing.push(response);
    } catch {
      // It does not read; when it connects again it gets what it lacks.
      gateway.outgoing.end();
    }
  }
}
