import http from 'node:http';
import type { Socket } from 'node:net';
import type { Logger } from 'pino';
import type { Route } from '../proto/gen/initless/v1/routing.js';
import type { Listener } from '../proto/gen/initless/v1/types.js';
import { sleep } from '../proto/rpc/deadline.js';
import { Backoff } from './backoff.js';

/** A client has this long, milliseconds, to send a request's headers; bodies may take as long as they take. */
const HEADERS_MS = 60_000;
/** An idle client connection is closed after this long, milliseconds: above what load balancers in front keep theirs. */
const KEEP_ALIVE_MS = 65_000;

/** Between looks at connections that are still busy while a listener closes, milliseconds. */
const DRAIN_STEP_MS = 50;

/** What {@link Listeners} is made with. */
export interface ListenersOptions {
  /** The gateway's id. */
  gateway: string;
  /** Addresses, without port, that every service listens on. */
  addresses: readonly string[];
  /** How long requests in flight may take when their listener closes, milliseconds. */
  drainMs: number;
  /** Lets a server answer for a service. */
  attach: (server: http.Server, service: string) => void;
  /** Told of all listeners after each change. */
  report: (listeners: Listener[]) => void;
  log: Logger;
}

/** One listener for each service and address; says which of them listen. */
export class Listeners {
  readonly #gateway: string;
  readonly #addresses: readonly string[];
  readonly #drainMs: number;
  readonly #attach: ListenersOptions['attach'];
  readonly #report: ListenersOptions['report'];
  readonly #log: Logger;
  /** By service. */
  readonly #current = new Map<string, { port: number; doors: Door[] }>();
  /** Closing, with what they still answer. */
  readonly #closing = new Set<Promise<void>>();

  constructor({ gateway, addresses, drainMs, attach, report, log }: ListenersOptions) {
    this.#gateway = gateway;
    this.#addresses = addresses;
    this.#drainMs = drainMs;
    this.#attach = attach;
    this.#report = report;
    this.#log = log;
  }

  /** Listens for exactly these routes: what is new is opened, what is gone is closed once its requests are answered. */
  setRoutes(routes: readonly Route[]): void {
    const wanted = new Map(routes.map((route) => [route.service, route.hostPort]));
    for (const [service, { port, doors }] of [...this.#current]) {
      if (wanted.get(service) === port) continue;
      this.#current.delete(service);
      for (const door of doors) this.#close(door);
    }
    for (const [service, port] of wanted) {
      if (this.#current.has(service)) continue;
      const doors = this.#addresses.map((address) => {
        const attach = (server: http.Server) => this.#attach(server, service);
        // Alone, "::" stands for IPv4 too.
        const ipv6Only = this.#addresses.length > 1;
        return new Door({ address, port, ipv6Only }, attach, () => this.#changed(), this.#log.child({ service }));
      });
      this.#current.set(service, { port, doors });
    }
    this.#changed();
  }

  /** Whether each listener has been tried: it listens, or it was said why not. */
  get tried(): boolean {
    return [...this.#current.values()].every(({ doors }) => doors.every(({ state }) => state !== 'opening'));
  }

  /** Closes all; resolves when what was in flight is over, at the latest after the drain time. */
  async close(): Promise<void> {
    this.setRoutes([]);
    await Promise.all(this.#closing);
  }

  #close(door: Door): void {
    const closed = door.close(this.#drainMs).finally(() => this.#closing.delete(closed));
    this.#closing.add(closed);
  }

  #changed(): void {
    const tried = [...this.#current].filter(([, { doors }]) => doors.every(({ state }) => state !== 'opening'));
    this.#report(
      tried.map(([service, { doors }]) => {
        // An address that this machine does not have is no fault as long as another one serves.
        const relevant = doors.some(({ state }) => state === 'listening')
          ? doors.filter(({ state }) => state !== 'absent')
          : doors;
        return {
          gateway: this.#gateway,
          service,
          address: relevant.map(({ name }) => name).join(', '),
          listening: relevant.every(({ state }) => state === 'listening'),
          error: relevant
            .map(({ error }) => error)
            .filter((error) => error !== '')
            .join('; '),
        };
      }),
    );
  }
}

/** One server on one address; tries again until it listens or is closed. */
class Door {
  readonly name: string;
  /** `absent`: the machine does not have the address. */
  state: 'opening' | 'listening' | 'absent' | 'failed' = 'opening';
  /** Why it does not listen. Empty: it does, or has not been tried. */
  error = '';
  readonly #address: string;
  readonly #port: number;
  readonly #ipv6Only: boolean;
  readonly #server: http.Server;
  readonly #sockets = new Set<Socket>();
  readonly #changed: () => void;
  readonly #log: Logger;
  readonly #stopping = new AbortController();

  constructor(
    { address, port, ipv6Only }: { address: string; port: number; ipv6Only: boolean },
    attach: (server: http.Server) => void,
    changed: () => void,
    log: Logger,
  ) {
    this.name = address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
    this.#address = address;
    this.#port = port;
    this.#ipv6Only = ipv6Only;
    this.#changed = changed;
    this.#log = log;
    this.#server = http.createServer({
      requestTimeout: 0,
      headersTimeout: HEADERS_MS,
      keepAliveTimeout: KEEP_ALIVE_MS,
      insecureHTTPParser: false,
      // Ours is the same rule, with an answer that says so, for what follows on the connection too.
      requireHostHeader: false,
    });
    // Headers are bounded by their size. Node's bound on their number hides the rest from us while its parser obeys it.
    this.#server.maxHeadersCount = 0;
    this.#server.on('connection', (socket) => {
      // A connection whose wish to upgrade is ignored comes here again.
      if (this.#sockets.has(socket)) return;
      this.#sockets.add(socket);
      socket.once('close', () => this.#sockets.delete(socket));
    });
    this.#server.on('error', (error) => {
      if (this.state === 'listening') this.#log.error({ address: this.name, error: error.message }, 'listener failed');
    });
    attach(this.#server);
    void this.#open();
  }

  /** Takes no more connections, ends idle ones, and cuts what is still busy after `drainMs`. */
  async close(drainMs: number): Promise<void> {
    this.#stopping.abort(new Error(`the listener on ${this.name} closes`));
    if (this.#server.listening) this.#server.close();
    const until = performance.now() + drainMs;
    while (this.#sockets.size > 0) {
      this.#server.closeIdleConnections();
      const left = until - performance.now();
      if (left <= 0) {
        this.#log.warn({ address: this.name, connections: this.#sockets.size }, 'cut connections that were still busy');
        for (const socket of this.#sockets) socket.destroy();
        break;
      }
      await sleep(Math.min(left, DRAIN_STEP_MS));
    }
    if (this.state === 'listening') this.#log.info({ address: this.name }, 'no longer listening');
  }

  async #open(): Promise<void> {
    const { signal } = this.#stopping;
    const backoff = new Backoff(100, 5_000);
    while (!signal.aborted) {
      const error = await this.#listen();
      if (signal.aborted) {
        this.#server.close();
        return;
      }
      if (error === undefined) {
        this.#become('listening', '');
        this.#log.info({ address: this.name }, 'listening');
        return;
      }
      this.#become(...this.#explain(error));
      // Rejects only when the door is closed meanwhile.
      await sleep(backoff.next(), signal).catch(() => {});
    }
  }

  /** Resolves with the error if it cannot listen. */
  #listen(): Promise<NodeJS.ErrnoException | undefined> {
    const server = this.#server;
    return new Promise((resolve) => {
      const onError = (error: NodeJS.ErrnoException) => {
        server.off('listening', onListening);
        resolve(error);
      };
      const onListening = () => {
        server.off('error', onError);
        resolve(undefined);
      };
      server.once('error', onError);
      server.once('listening', onListening);
      server.listen({ host: this.#address, port: this.#port, ipv6Only: this.#ipv6Only });
    });
  }

  #explain(error: NodeJS.ErrnoException): ['absent' | 'failed', string] {
    switch (error.code) {
      case 'EADDRINUSE':
        return ['failed', `port ${this.#port} is taken by another program on ${this.#address}`];
      case 'EADDRNOTAVAIL':
      case 'EAFNOSUPPORT':
        return ['absent', `this machine has no address ${this.#address}`];
      case 'EACCES':
        return ['failed', `port ${this.#port} on ${this.#address} needs more privileges`];
      default:
        return ['failed', `cannot listen on ${this.name}: ${error.message}`];
    }
  }

  #become(state: Door['state'], error: string): void {
    if (this.state === state && this.error === error) return;
    this.state = state;
    this.error = error;
    if (error !== '') this.#log.warn({ address: this.name }, `${error}; trying again`);
    this.#changed();
  }
}
