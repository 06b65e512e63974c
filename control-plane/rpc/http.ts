import { createServer, type Server } from 'node:http';
import { type ServiceState, serviceStateToJSON } from '../../proto/gen/initless/v1/types.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { verdict } from '../core/view.js';
import type { Reconciler } from '../reconciler.js';
import type { Gateways } from './routing-service.js';

/** What the HTTP side tells. */
export interface HttpParts {
  reconciler: Reconciler;
  gateways: Gateways;
  /** Whether requests are taken. */
  isReady: () => boolean;
}

/** Health, readiness and metrics over HTTP. */
export class HttpSide {
  readonly #server: Server;

  constructor(parts: HttpParts) {
    this.#server = createServer((request, response) => {
      const send = (status: number, text: string, type = 'text/plain; charset=utf-8') =>
        response.writeHead(status, { 'content-type': type, 'cache-control': 'no-store' }).end(text);
      if (request.method !== 'GET' && request.method !== 'HEAD') send(405, 'only GET and HEAD\n');
      else if (request.url === '/healthz') send(200, 'ok\n');
      else if (request.url === '/readyz')
        send(parts.isReady() ? 200 : 503, parts.isReady() ? 'ready\n' : 'not ready\n');
      else if (request.url === '/metrics') send(200, metrics(parts), 'text/plain; version=0.0.4; charset=utf-8');
      else send(404, 'there is /healthz, /readyz and /metrics\n');
    });
    this.#server.requestTimeout = 10_000;
  }

  /** Listens on "HOST:PORT" and gives the port. Errors: PORT_TAKEN. */
  listen(address: string): Promise<number> {
    const { host, port } = splitAddress(address);
    return new Promise((resolve, reject) => {
      this.#server.once('error', (cause: NodeJS.ErrnoException) => {
        const next = { subject: address, nextStep: `'ss -ltnp' shows what listens there`, cause };
        reject(
          cause.code === 'EADDRINUSE'
            ? new InitlessError('PORT_TAKEN', `${address} is taken by another program`, next)
            : cause,
        );
      });
      this.#server.listen(port, host, () => {
        const bound = this.#server.address();
        resolve(typeof bound === 'object' && bound !== null ? bound.port : port);
      });
    });
  }

  /** Stops. */
  close(): Promise<void> {
    return new Promise((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }
}

/** Host and port of "HOST:PORT" or "[HOST]:PORT". Errors: BAD_REQUEST. */
export function splitAddress(address: string): { host: string; port: number } {
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(address);
  const port = Number(match?.[3]);
  if (match === null || port > 65_535) {
    throw new InitlessError('BAD_REQUEST', `${JSON.stringify(address)} is not an address such as 127.0.0.1:7070`);
  }
  return { host: match[1] ?? match[2]!, port };
}

/** Text in Prometheus' format. */
function metrics({ reconciler, gateways }: HttpParts): string {
  const snapshot = reconciler.snapshot();
  const states = new Map<string, number>();
  for (const record of snapshot.services) {
    if (record.removed) continue;
    const { state } = verdict(record, snapshot);
    states.set(stateName(state), (states.get(stateName(state)) ?? 0) + 1);
  }
  const connected = snapshot.hosts.filter((host) => host.connected);
  const lines = [
    '# HELP initless_services Services by state.',
    '# TYPE initless_services gauge',
    ...[...states].sort().map(([state, count]) => `initless_services{state="${state}"} ${count}`),
    '# HELP initless_hosts Hosts whose agents are connected.',
    '# TYPE initless_hosts gauge',
    `initless_hosts ${connected.length}`,
    '# HELP initless_instances Instances on connected hosts.',
    '# TYPE initless_instances gauge',
    ...connected.map((host) => `initless_instances{host="${host.name}"} ${host.instances.length}`),
    '# HELP initless_gateways Gateways that are connected.',
    '# TYPE initless_gateways gauge',
    `initless_gateways ${gateways.size}`,
    '# HELP initless_commands Commands to agents under way.',
    '# TYPE initless_commands gauge',
    `initless_commands ${snapshot.work.length}`,
  ];
  return `${lines.join('\n')}\n`;
}

function stateName(state: ServiceState): string {
  return serviceStateToJSON(state).replace('SERVICE_STATE_', '').toLowerCase();
}
