import type { ServerResponse } from 'node:http';
import { httpStatusOf, type InitlessError } from '../../proto/rpc/errors.js';
import type { Refusal } from '../refusals.js';

/** Seconds after which to try again where nothing better is known. */
const RETRY_AFTER_S = 5;

/**
 * Status for a request that cannot be served: 502, 503 or 504, whatever the error means to who manages the service
 * (to its client, "no such checkpoint" is not a 404).
 */
export function servingStatus(error: InitlessError): number {
  const status = httpStatusOf(error);
  if (status === 502 || status === 503 || status === 504) return status;
  return status === 500 ? 502 : 503;
}

/** One line of JSON that says what went wrong. */
export function errorBody(error: InitlessError, requestId: string): string {
  const { code, message, nextStep } = error;
  return `${JSON.stringify({ error: { code, message, next_step: nextStep }, request_id: requestId })}\n`;
}

/** Headers of such an answer, names and values in turn. */
export function errorHeaders(status: number, body: string, requestId: string, retryAfterMs?: number): string[] {
  const headers = ['Content-Type', 'application/json', 'Content-Length', String(Buffer.byteLength(body))];
  headers.push('Cache-Control', 'no-store', 'X-Request-Id', requestId);
  if (status === 503) {
    const seconds = retryAfterMs === undefined ? RETRY_AFTER_S : Math.max(1, Math.ceil(retryAfterMs / 1000));
    headers.push('Retry-After', String(seconds));
  }
  return headers;
}

/** Answers a request that cannot be served. `close`: what the client sends next could not be told apart. */
export function answerError(
  res: ServerResponse,
  status: number,
  { error, retryAfterMs }: Refusal,
  requestId: string,
  close: boolean,
): void {
  const body = errorBody(error, requestId);
  const headers = errorHeaders(status, body, requestId, retryAfterMs);
  if (close) headers.push('Connection', 'close');
  res.writeHead(status, headers);
  // Node leaves the body of an answer to HEAD out.
  res.end(body);
}
