import { get } from 'node:http';
import { InitlessError } from '../../../proto/rpc/errors.js';

/** An answer, and how long it took from the connection's start to the last byte. */
export interface Answer {
  status: number;
  body: string;
  ms: number;
}

const SHOWN_BYTES = 64 * 1024;

/** One GET over a connection of its own, past any proxy. Errors: UPSTREAM_FAILED, DEADLINE, and the signal's reason. */
export function call(url: string, timeoutMs: number, signal: AbortSignal): Promise<Answer> {
  const startedAt = performance.now();
  return new Promise((resolve, reject) => {
    const request = get(url, { agent: false, signal, timeout: timeoutMs }, (response) => {
      let body = '';
      response.setEncoding('utf8');
      response.on('data', (piece: string) => {
        if (body.length < SHOWN_BYTES) body += piece;
      });
      response.on('end', () => resolve({ status: response.statusCode ?? 0, body, ms: performance.now() - startedAt }));
      response.on('error', fail);
    });
    const fail = (cause: Error) =>
      reject(
        signal.aborted
          ? signal.reason
          : new InitlessError('UPSTREAM_FAILED', `GET ${url}: ${cause.message}`, {
              subject: url,
              nextStep: "'initless status' shows whether the gateway runs, 'initless service ls' what it listens for",
              cause,
            }),
      );
    request.on('timeout', () =>
      request.destroy(new InitlessError('DEADLINE', `nothing came for ${timeoutMs} ms`, { subject: url })),
    );
    request.on('error', fail);
  });
}
