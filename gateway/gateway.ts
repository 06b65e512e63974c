import type { Logger } from 'pino';
import { serveHealth } from './health.js';
import { Listeners } from './listeners.js';
import { Metrics } from './metrics.js';
import { Pools } from './pools.js';
import { ReverseProxy } from './proxy/handler.js';
import { Routes } from './routes.js';

/** What a gateway needs to know. */
export interface GatewayOptions {
  /** Control plane, "HOST:PORT". */
  controlPlane: string;
  /** Addresses, without port, that services listen on. */
  listen: readonly string[];
  /** Where /healthz, /readyz and /metrics are. Port 0: any. */
  http: { host: string; port: number };
  /** Its id: the same after a restart, and no other gateway's. */
  id: string;
  /** How long requests in flight may take when a listener closes or the gateway stops, milliseconds. */
  drainMs: number;
  log: Logger;
  /** Told the port of /healthz once it answers. */
  onStarted?: (httpPort: number) => void;
}

/** Runs a gateway until the signal aborts and what was in flight is over. Errors: PORT_TAKEN (the health address). */
export async function runGateway(options: GatewayOptions, signal: AbortSignal): Promise<void> {
  const { id, log } = options;
  const metrics = new Metrics();
  let hasTable = false;
  const notReady = () => {
    if (signal.aborted) return 'stopping';
    if (!hasTable) return `no route table yet from the control plane at ${options.controlPlane}`;
    return listeners.tried ? undefined : 'listeners are being opened';
  };

  // From the instances to the clients.
  const pools = new Pools(id, metrics, log);
  const proxy = new ReverseProxy(pools, metrics, log);
  const listeners: Listeners = new Listeners({
    gateway: id,
    addresses: options.listen,
    drainMs: options.drainMs,
    attach: (server, service) => proxy.attach(server, service),
    report: (report) => routes.report(report),
    log,
  });
  const routes: Routes = new Routes(options.controlPlane, id, log, (table) => {
    pools.setRoutes(table);
    listeners.setRoutes(table);
    hasTable = true;
  });

  // Start.
  metrics.onCollect(() => metrics.set('ready', {}, notReady() === undefined ? 1 : 0));
  const health = await serveHealth(options.http, { metrics, notReady });
  options.onStarted?.(health.port);
  log.info({ controlPlane: options.controlPlane, http: `${options.http.host}:${health.port}` }, 'gateway started');
  await routes.run(signal);

  // Stop: take nothing new, finish what is under way, give the leases back.
  log.info('stopping');
  await listeners.close();
  await pools.close();
  health.close();
  log.info('stopped');
}
