import http from 'node:http';
import { InitlessError } from '../proto/rpc/errors.js';
import type { Metrics } from './metrics.js';

/** What the health server tells of. */
export interface HealthSource {
  metrics: Metrics;
  /** Why requests should not be sent here. Undefined: they may be. */
  notReady(): string | undefined;
}

/**
 * Serves /healthz (the process answers), /readyz (it has routes and listens) and /metrics on "HOST:PORT". Gives the
 * port it listens on. Errors: PORT_TAKEN.
 */
export async function serveHealth(
  address: { host: string; port: number },
  source: HealthSource,
): Promise<{ port: number; close(): void }> {
  const server = http.createServer((req, res) => {
    const [status, body] = answerTo(req.url?.split('?')[0], source);
    res.writeHead(status, { 'Content-Type': 'text/plain; charset=utf-8', 'Cache-Control': 'no-store' });
    res.end(body);
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => {
      if (cause.code !== 'EADDRINUSE') return reject(cause);
      const where = `${address.host}:${address.port}`;
      reject(
        new InitlessError('PORT_TAKEN', `cannot listen on ${where}: another program does`, {
          subject: where,
          nextStep: "stop what listens there ('ss -ltnp' shows it), or choose another address with --http-listen",
          cause,
        }),
      );
    });
    server.listen(address.port, address.host, resolve);
  });
  const bound = server.address();
  return {
    port: bound !== null && typeof bound === 'object' ? bound.port : address.port,
    close: () => {
      server.close();
      server.closeAllConnections();
    },
  };
}

function answerTo(path: string | undefined, { metrics, notReady }: HealthSource): [number, string] {
  switch (path) {
    case '/healthz':
      return [200, 'ok\n'];
    case '/readyz': {
      const why = notReady();
      return why === undefined ? [200, 'ready\n'] : [503, `${why}\n`];
    }
    case '/metrics':
      return [200, metrics.text()];
    default:
      return [404, 'there are /healthz, /readyz and /metrics\n'];
  }
}
