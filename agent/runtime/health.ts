import http from 'node:http';
import type { HealthCheck } from '../../proto/gen/initless/v1/types.js';
import { sleep } from '../../proto/rpc/deadline.js';
import { InitlessError } from '../../proto/rpc/errors.js';

/** Pause between two attempts: short enough not to be seen in a 100 ms restore, long enough to leave a CPU to the start. */
const PAUSE_MS = 4;
/** Pause after a wrong answer: what answers is asked less often, so as not to fill its log. */
const MISMATCH_PAUSE_MS = 50;
/** What is read of a body at most; more than that never equals a `wanted`. */
const MAX_BODY = 1024 * 1024;

/** What one attempt gave. */
export type Attempt =
  | { kind: 'healthy' }
  /** It answered, but not what is wanted. */
  | { kind: 'mismatch'; status: number; body: string }
  /** It did not answer. */
  | { kind: 'silent'; reason: string };

/**
 * Whether `body` with `status` is what `check` wants: a 2xx status, and for a `wanted` that is a JSON object or array the
 * same JSON, for any other text a body that contains it. Pure.
 */
export function matches(check: HealthCheck, status: number, body: string): boolean {
  if (status < 200 || status > 299) return false;
  const wanted = check.wanted.trim();
  if (wanted === '') return true;
  if (/^[[{]/.test(wanted)) {
    const json = parsed(wanted);
    if (json !== undefined) return canonical(json) === canonical(parsed(body));
  }
  return body.includes(wanted);
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    // Not JSON: it is compared as text.
    return undefined;
  }
}

function canonical(value: unknown): string {
  return JSON.stringify(value, (_, inner: unknown) =>
    inner !== null && typeof inner === 'object' && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  );
}

/** Asks `http://address/path` once with GET, on a connection of its own. Never throws but for an abort. */
export function get(
  address: string,
  path: string,
  timeoutMs: number,
  signal?: AbortSignal,
): Promise<{ status: number; body: string } | { reason: string }> {
  const [host, port] = address.split(':');
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(signal.reason);
      return;
    }
    const request = http.request({ host, port, path, method: 'GET', agent: false, headers: { connection: 'close' } });
    let reason: string | undefined;
    const timer = setTimeout(() => {
      reason = `no answer within ${timeoutMs} ms`;
      request.destroy();
    }, timeoutMs);
    const onAbort = () => request.destroy();
    signal?.addEventListener('abort', onAbort, { once: true });
    const settle = () => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
    };
    request.on('response', (response) => {
      let body = '';
      response.setEncoding('utf8');
      response.on('data', (text: string) => {
        if (body.length <= MAX_BODY) body += text;
        else request.destroy();
      });
      response.on('end', () => {
        settle();
        resolve({ status: response.statusCode ?? 0, body });
      });
      response.on('error', (error) => request.destroy(error));
      response.on('close', () => {
        if (response.complete) return;
        settle();
        if (signal?.aborted) reject(signal.reason);
        else resolve({ reason: reason ?? 'the connection broke in the middle of the answer' });
      });
    });
    request.on('error', (error) => {
      settle();
      if (signal?.aborted) reject(signal.reason);
      else resolve({ reason: reason ?? error.message });
    });
    request.end();
  });
}

/** Asks once and compares. */
export async function attempt(address: string, check: HealthCheck, signal?: AbortSignal): Promise<Attempt> {
  const answer = await get(address, check.path, check.timeoutMs, signal);
  if ('reason' in answer) return { kind: 'silent', reason: answer.reason };
  if (matches(check, answer.status, answer.body)) return { kind: 'healthy' };
  return { kind: 'mismatch', status: answer.status, body: answer.body };
}

/**
 * Asks back to back until the answer is right.
 * Errors: HEALTH_MISMATCH with what came back, HEALTH_TIMEOUT when nothing did; both name the path and the bound.
 *
 * @param ended rejects when the process is gone, so that nobody waits for a dead one.
 */
export async function untilHealthy(
  address: string,
  check: HealthCheck,
  timeoutMs: number,
  ended?: Promise<never>,
  signal?: AbortSignal,
): Promise<void> {
  const until = performance.now() + timeoutMs;
  let last: Attempt = { kind: 'silent', reason: 'not asked yet' };
  for (;;) {
    const asked = attempt(address, check, signal);
    last = await (ended ? Promise.race([asked, ended]) : asked);
    if (last.kind === 'healthy') return;
    if (performance.now() >= until) throw healthError(address, check, timeoutMs, last);
    await sleep(last.kind === 'mismatch' ? MISMATCH_PAUSE_MS : PAUSE_MS, signal);
  }
}

function healthError(
  address: string,
  check: HealthCheck,
  timeoutMs: number,
  last: Exclude<Attempt, { kind: 'healthy' }>,
): InitlessError {
  if (last.kind === 'mismatch') {
    const wanted = check.wanted === '' ? 'a 2xx status' : `a 2xx status and ${check.wanted}`;
    return new InitlessError(
      'HEALTH_MISMATCH',
      `health check GET ${check.path}: wanted ${wanted}, for ${timeoutMs} ms; last came ${last.status} ${shortened(last.body)}`,
      { subject: address, nextStep: "correct 'health_check.wanted' in config.yaml, or what the service answers" },
    );
  }
  return new InitlessError(
    'HEALTH_TIMEOUT',
    `health check GET ${check.path}: no answer for ${timeoutMs} ms; last: ${last.reason}`,
    {
      subject: address,
      nextStep: "see what it printed with 'initless service logs'; a slow start wants a longer 'start_timeout'",
    },
  );
}

function shortened(body: string): string {
  const line = body.trim().replaceAll(/\s+/g, ' ');
  return line.length > 200 ? `${line.slice(0, 200)}...` : line === '' ? '(empty body)' : line;
}
