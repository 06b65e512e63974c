import http from 'node:http';
import net, { type AddressInfo } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { pino } from 'pino';
import { runGateway } from '../../gateway/gateway.js';
import {
  type Route,
  type RouteHost,
  type RoutesHello,
  RoutingServiceDefinition,
  type WatchRoutesRequest,
  type WatchRoutesResponse,
} from '../../proto/gen/initless/v1/routing.js';
import type { Listener } from '../../proto/gen/initless/v1/types.js';
import { PushStream } from '../../proto/rpc/push-stream.js';
import { createRpcServer, type RpcServer } from '../../proto/rpc/server.js';
import { FakeAgent, type Script } from './fake-agent.js';
import { freePort } from './free-port.js';

/** What a client got. */
export interface Got {
  status: number;
  headers: http.IncomingHttpHeaders;
  rawHeaders: string[];
  trailers: NodeJS.Dict<string>;
  body: string;
}

/** What a client asks. */
export interface Ask {
  method?: string;
  path?: string;
  headers?: http.OutgoingHttpHeaders;
  body?: string | Buffer;
  agent?: http.Agent;
  port?: number;
  host?: string;
}

/** A request's log line. */
export type LogLine = Record<string, unknown> & { msg: string };

/** A gateway with a control plane that serves what the test says, one fake agent, and one service, "demo". */
export class GatewayHarness {
  readonly agent: FakeAgent;
  readonly log: LogLine[] = [];
  /** What the gateway last said of its listeners. */
  listeners: Listener[] = [];
  readonly hellos: string[] = [];
  /** The table that each hello named, as "NAME VERSION". */
  readonly tables: string[] = [];
  /** What a new stream is sent first; undefined: the whole table of {@link routes}. */
  firstResponse: ((has: RoutesHello) => WatchRoutesResponse | undefined) | undefined;
  port = 0;
  httpPort = 0;
  routes: Route[] = [];
  #rpc: RpcServer | undefined;
  #rpcPort = 0;
  readonly #watchers = new Set<PushStream<WatchRoutesResponse>>();
  readonly #gateways: { stop: AbortController; done: Promise<void> }[] = [];
  readonly #cleanups: (() => Promise<void> | void)[] = [];

  private constructor(agent: FakeAgent) {
    this.agent = agent;
  }

  /** Starts all of it; the agent answers acquires with `script`. */
  static async start(
    script: Script,
    route: Partial<Route> = {},
    gateway: { listen?: string[]; drainMs?: number; waitFor?: boolean } = {},
  ): Promise<GatewayHarness> {
    const harness = new GatewayHarness(await FakeAgent.start(script));
    harness.port = await freePort();
    harness.routes = [harness.route(route)];
    await harness.bootControlPlane();
    await harness.bootGateway(gateway);
    if (gateway.waitFor !== false) await harness.listening('demo');
    return harness;
  }

  /** A route to "demo" on the fake agent. */
  route(changes: Partial<Route> = {}): Route {
    return {
      service: 'demo',
      hostPort: this.port,
      maxConcurrency: 100,
      queueTimeoutMs: 5_000,
      queueLimit: 1_000,
      hosts: [routeHost('host1', this.agent.address)],
      problem: undefined,
      ...changes,
    };
  }

  /** Makes this the route table. */
  setRoutes(routes: Route[]): void {
    this.routes = routes;
    this.say(wholeTable(routes));
  }

  /** Sends that to the gateways, whatever it is. */
  say(response: WatchRoutesResponse): void {
    for (const watcher of this.#watchers) watcher.push(response);
  }

  async bootControlPlane(): Promise<void> {
    this.#rpc = createRpcServer(['initless.v1.RoutingService'], () => {});
    const watch = (requests: AsyncIterable<WatchRoutesRequest>, signal: AbortSignal) => this.#watch(requests, signal);
    this.#rpc.add(RoutingServiceDefinition, {
      watchRoutes: (requests, context) => watch(requests, context.signal),
    });
    this.#rpcPort = await this.#rpc.listen(`127.0.0.1:${this.#rpcPort}`);
  }

  /** Ends the control plane as a crash would. */
  async crashControlPlane(): Promise<void> {
    await this.#rpc?.stop(0);
    this.#watchers.clear();
  }

  async bootGateway({ listen = ['127.0.0.1'], drainMs = 2_000, id = 'gateway-test' } = {}): Promise<void> {
    const stop = new AbortController();
    const sink = { write: (line: string) => void this.log.push(JSON.parse(line)) };
    let done: Promise<void> = Promise.resolve();
    await new Promise<void>((resolve, reject) => {
      done = runGateway(
        {
          controlPlane: `127.0.0.1:${this.#rpcPort}`,
          listen,
          http: { host: '127.0.0.1', port: 0 },
          id,
          drainMs,
          log: pino({ level: 'debug' }, sink),
          onStarted: (port) => {
            this.httpPort = port;
            resolve();
          },
        },
        stop.signal,
      );
      done.catch(reject);
    });
    this.#gateways.push({ stop, done });
  }

  /** Stops the gateways; resolves when they have ended. */
  async stopGateway(): Promise<void> {
    const gateways = this.#gateways.splice(0);
    for (const { stop } of gateways) stop.abort(new Error('the test is over'));
    await Promise.all(gateways.map(({ done }) => done));
  }

  /** An instance: an HTTP server on loopback. Gives "ADDRESS:PORT". */
  async upstream(handler: http.RequestListener, prepare: (server: http.Server) => void = () => {}): Promise<string> {
    const server = http.createServer(handler);
    prepare(server);
    const port = await new Promise<number>((resolve) => {
      server.listen(0, '127.0.0.1', () => resolve((server.address() as AddressInfo).port));
    });
    const sockets = new Set<net.Socket>();
    server.on('connection', (socket) => {
      sockets.add(socket);
      socket.on('close', () => sockets.delete(socket));
    });
    this.#cleanups.push(() => {
      server.close();
      for (const socket of sockets) socket.destroy();
    });
    return `127.0.0.1:${port}`;
  }

  /** An instance that speaks bytes. Gives "ADDRESS:PORT". */
  async rawUpstream(onConnection: (socket: net.Socket) => void): Promise<string> {
    const sockets = new Set<net.Socket>();
    const server = net.createServer((socket) => {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => sockets.delete(socket));
      onConnection(socket);
    });
    const port = await new Promise<number>((resolve) => {
      server.listen(0, '127.0.0.1', () => resolve((server.address() as AddressInfo).port));
    });
    this.#cleanups.push(() => {
      server.close();
      for (const socket of sockets) socket.destroy();
    });
    return `127.0.0.1:${port}`;
  }

  /** Waits until the gateway says that it listens for a service. */
  async listening(service: string): Promise<void> {
    await eventually(`the listener of ${service}`, () =>
      this.listeners.some((listener) => listener.service === service && listener.listening),
    );
  }

  /** Text of /metrics. */
  async metrics(): Promise<string> {
    return (await this.ask({ path: '/metrics', port: this.httpPort })).body;
  }

  /** Asks the gateway, as a client, over a connection of its own. */
  ask({
    method = 'GET',
    path = '/',
    headers = {},
    body,
    agent,
    port = this.port,
    host = '127.0.0.1',
  }: Ask = {}): Promise<Got> {
    return new Promise((resolve, reject) => {
      const request = http.request({ host, port, method, path, headers, agent: agent ?? false });
      request.on('error', reject);
      request.on('response', (response) => {
        const chunks: Buffer[] = [];
        response.on('data', (chunk: Buffer) => chunks.push(chunk));
        response.on('error', reject);
        response.on('end', () =>
          resolve({
            status: response.statusCode ?? 0,
            headers: response.headers,
            rawHeaders: response.rawHeaders,
            trailers: response.trailers,
            body: Buffer.concat(chunks).toString(),
          }),
        );
      });
      request.end(body);
    });
  }

  /** A connection to the gateway to write bytes on; `text` grows as they come back. */
  async dial(): Promise<{ socket: net.Socket; text: () => string; ended: Promise<void> }> {
    const socket = net.connect({ host: '127.0.0.1', port: this.port });
    let text = '';
    socket.on('data', (chunk) => {
      text += chunk.toString('latin1');
    });
    socket.on('error', () => {});
    const ended = new Promise<void>((resolve) => socket.once('close', () => resolve()));
    this.#cleanups.push(() => void socket.destroy());
    await new Promise<void>((resolve) => socket.once('connect', () => resolve()));
    return { socket, text: () => text, ended };
  }

  async close(): Promise<void> {
    for (const cleanup of this.#cleanups.reverse()) await cleanup();
    await this.stopGateway();
    await this.crashControlPlane();
    await this.agent.crash();
  }

  async *#watch(requests: AsyncIterable<WatchRoutesRequest>, signal: AbortSignal): AsyncGenerator<WatchRoutesResponse> {
    const out = new PushStream<WatchRoutesResponse>('fake control plane');
    this.#watchers.add(out);
    signal.addEventListener('abort', () => out.end());
    const read = async () => {
      for await (const { message } of requests) {
        if (message?.$case === 'hello') {
          this.hellos.push(message.value.gateway);
          this.tables.push(`${message.value.table} ${message.value.version}`);
          const first = this.firstResponse ? this.firstResponse(message.value) : wholeTable(this.routes);
          if (first !== undefined) out.push(first);
        }
        if (message?.$case === 'listeners') this.listeners = message.value.listeners;
      }
      out.end();
    };
    void read().catch(() => out.end());
    try {
      yield* out;
    } finally {
      this.#watchers.delete(out);
    }
  }
}

/** Waits until something holds; fails after `ms` milliseconds, naming it. */
export async function eventually(what: string, holds: () => boolean | Promise<boolean>, ms = 5_000): Promise<void> {
  const until = performance.now() + ms;
  while (!(await holds())) {
    if (performance.now() > until) throw new Error(`gave up after ${ms} ms; pending was: ${what}`);
    await delay(5);
  }
}

/** A host of a route, with room. */
export function routeHost(host: string, leaseAddress: string, changes: Partial<RouteHost> = {}): RouteHost {
  return { host, leaseAddress, maxRunning: 10, parked: 0, draining: false, ...changes };
}

function wholeTable(routes: Route[]): WatchRoutesResponse {
  return { routes, table: '', version: 0, isChange: false, removed: [] };
}
