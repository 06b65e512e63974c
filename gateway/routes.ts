import { waitForChannelReady } from 'nice-grpc';
import type { Logger } from 'pino';
import {
  type Route,
  RoutingServiceDefinition,
  type WatchRoutesRequest,
  type WatchRoutesResponse,
} from '../proto/gen/initless/v1/routing.js';
import type { Listener } from '../proto/gen/initless/v1/types.js';
import { connect, createRpcClient } from '../proto/rpc/client.js';
import { sleep } from '../proto/rpc/deadline.js';
import { fromGrpcError, InitlessError, toInitlessError } from '../proto/rpc/errors.js';
import { PushStream } from '../proto/rpc/push-stream.js';
import { Backoff } from './backoff.js';
import { applyToTable, NO_TABLE } from './table.js';

/** A stream that held for this long, milliseconds, was a good one: the next attempt comes at once. */
const GOOD_STREAM_MS = 5_000;
/** The control plane accepts a connection within this time, milliseconds, or the next attempt follows. */
const CONNECT_MS = 5_000;

/** Watches the route table, and tells the control plane of the listeners. */
export class Routes {
  readonly #controlPlane: string;
  readonly #gateway: string;
  readonly #log: Logger;
  readonly #onTable: (routes: readonly Route[]) => void;
  #out: PushStream<WatchRoutesRequest> | undefined;
  #listeners: Listener[] = [];
  /** What is in force. It is kept over streams, so that the next one brings only what has changed. */
  #table = NO_TABLE;

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
    out.push({
      message: {
        $case: 'hello',
        value: { gateway: this.#gateway, table: this.#table.name, version: this.#table.version },
      },
    });
    if (this.#listeners.length > 0) {
      out.push({ message: { $case: 'listeners', value: { listeners: this.#listeners } } });
    }
    this.#out = out;
    try {
      // Whoever has the table already is sent nothing: that the stream is there must be seen otherwise.
      await waitForChannelReady(channel, new Date(Date.now() + CONNECT_MS));
      onReached();
      const client = createRpcClient(RoutingServiceDefinition, channel);
      for await (const response of client.watchRoutes(out, { signal })) this.#take(response);
    } finally {
      this.#out = undefined;
      out.end();
      channel.close();
    }
  }

  /** Takes a whole table, or a change, in. Errors: INTERNAL for a change that does not follow; the next stream brings the whole. */
  #take(response: WatchRoutesResponse): void {
    const { routes, version, isChange, removed } = response;
    const next = applyToTable(this.#table, response);
    if (next === undefined) {
      const text = `version ${version} of the route table is a change that does not follow version ${this.#table.version}`;
      this.#table = { ...this.#table, name: '', version: 0 };
      throw new InitlessError('INTERNAL', text, { nextStep: 'nothing: the whole table is asked for' });
    }
    this.#table = next;
    const changed = routes.map(({ service, hostPort }) => `${service}:${hostPort}`);
    this.#log.info({ version, isChange, changed, removed, services: next.routes.size }, 'route table');
    this.#putInForce([...next.routes.values()]);
  }

  /** A fault in what is made of a table must not be taken for one of the stream. */
  #putInForce(routes: readonly Route[]): void {
    try {
      this.#onTable(routes);
    } catch (error) {
      this.#log.error({ error: toInitlessError(error) }, 'the route table could not be put in force');
    }
  }
}
