import { createServer, type Server } from 'node:http';
import { InitlessError } from '../../proto/rpc/errors.js';
import { type MetricsParts, metrics, ProcessFigures } from './metrics.js';

/** What the HTTP side tells. */
export interface HttpParts extends MetricsParts {
  /** Whether requests are taken. */
  isReady: () => boolean;
}

/** Health, readiness and metrics over HTTP. */
export class HttpSide {
  readonly #server: Server;
  readonly #figures = new ProcessFigures();

  constructor(parts: HttpParts) {
    this.#server = createServer((request, response) => {
      const send = (status: number, text: string, type = 'text/plain; charset=utf-8') =>
        response.writeHead(status, { 'content-type': type, 'cache-control': 'no-store' }).end(text);
      if (request.method !== 'GET' && request.method !== 'HEAD') send(405, 'only GET and HEAD\n');
      else if (request.url === '/healthz') send(200, 'ok\n');
      else if (request.url === '/readyz')
        send(parts.isReady() ? 200 : 503, parts.isReady() ? 'ready\n' : 'not ready\n');
      else if (request.url === '/metrics')
        send(200, metrics(parts, this.#figures), 'text/plain; version=0.0.4; charset=utf-8');
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
    this.#figures.stop();
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
