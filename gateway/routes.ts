import type { Logger } from 'pino';
import { type Route, RoutingServiceDefinition, type WatchRoutesRequest } from '../proto/gen/initless/v1/routing.js';
import type { Listener } from '../proto/gen/initless/v1/types.js';
import { connect, createRpcClient } from '../proto/rpc/client.js';
import { sleep } from '../proto/rpc/deadline.js';
import { fromGrpcError, toInitlessError } from '../proto/rpc/errors.js';
import { PushStream } from '../proto/rpc/push-stream.js';
import { Backoff } from './backoff.js';

/** A stream that held for this long, milliseconds, was a good one: the next attempt comes at once. */
const GOOD_STREAM_MS = 5_000;

/** Watches the route table, and tells the control plane of the listeners. */
export class Routes {
  readonly #controlPlane: string;
  readonly #gateway: string;
  readonly #log: Logger;
  readonly #onTable: (routes: readonly Route[]) => void;
  #out: PushStream<WatchRoutesRequest> | undefined;
  #listeners: Listener[] = [];

  /** @param onTable told of the whole table, at first and after each change; the last one stands while nothing comes. */
  constructor(controlPlane: string, gateway: string, log: Logger, onTable: (routes: readonly Route[]) => void) {
    this.#controlPlane = controlPlane;
    this.#gateway = gateway;
    this.#log = log.child({ controlPlane });
    this.#onTable = onTable;
  }

  /** Reports all listeners now, and again on every new stream. */
  report(listeners: Listener[]): void {
    this.#listeners = listeners;
    this.#out?.push({ message: { $case: 'listeners', value: { listeners } } });
  }

  /** Watches until the signal aborts; a stream that breaks is opened again. */
  async run(signal: AbortSignal): Promise<void> {
    const backoff = new Backoff(200, 2_000);
    let reported = false;
    while (!signal.aborted) {
      const since = performance.now();
      try {
        await this.#watch(signal, () => {
          if (reported) this.#log.info('control plane is reached again');
          reported = false;
        });
        if (!signal.aborted) this.#log.warn('the control plane ended the route stream');
      } catch (thrown) {
        const error = fromGrpcError(thrown, 'WatchRoutes');
        if (!signal.aborted && !reported) {
          this.#log.warn({ error: error.message }, 'control plane cannot be reached; the last routes stay in force');
          reported = true;
        }
      }
      if (performance.now() - since > GOOD_STREAM_MS) backoff.reset();
      // Rejects only with the signal's reason, which ends the loop.
      await sleep(backoff.next(), signal).catch(() => {});
    }
  }

  async #watch(signal: AbortSignal, onReached: () => void): Promise<void> {
    const channel = connect(this.#controlPlane);
    const out = new PushStream<WatchRoutesRequest>('route stream');
    out.push({ message: { $case: 'hello', value: { gateway: this.#gateway, table: '', version: 0 } } });
    if (this.#listeners.length > 0) {
      out.push({ message: { $case: 'listeners', value: { listeners: this.#listeners } } });
    }
    this.#out = out;
    try {
      for await (const { routes } of createRpcClient(RoutingServiceDefinition, channel).watchRoutes(out, { signal })) {
        onReached();
        this.#take(routes);
      }
    } finally {
      this.#out = undefined;
      out.end();
      channel.close();
    }
  }

  /** A fault in what is made of a table must not be taken for one of the stream. */
  #take(routes: readonly Route[]): void {
    this.#log.info({ services: routes.map(({ service, hostPort }) => `${service}:${hostPort}`) }, 'route table');
    try {
      this.#onTable(routes);
    } catch (error) {
      this.#log.error({ error: toInitlessError(error) }, 'the route table could not be put in force');
    }
  }
}
