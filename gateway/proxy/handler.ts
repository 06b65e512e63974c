import { randomUUID } from 'node:crypto';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { Logger } from 'pino';
import { InitlessError, toInitlessError } from '../../proto/rpc/errors.js';
import type { Metrics } from '../metrics.js';
import { RefusedError } from '../pool.js';
import type { Pools } from '../pools.js';
import { type Refusal, withdrawn } from '../refusals.js';
import { answerError, errorBody, errorHeaders, servingStatus } from './answer.js';
import { forward, type Outcome, type Passage } from './forward.js';
import { framingOf, requestIdOf, valuesOf } from './headers.js';
import { SentBody } from './sent-body.js';
import { requestFault, targetOf } from './strict.js';
import { isTunnel, type Switch, takeAsOrdinary, upgradeResponse } from './tunnel.js';

/** A request is sent again at most this often. */
const MAX_RETRIES = 2;
/** Status, in log and metrics only, of a request whose client went away. */
const CLIENT_GONE = 499;

/** How a request ended, for log and metrics. */
interface Ending {
  status: number;
  error?: InitlessError;
}

/** What a request brings beyond itself. */
interface Manner {
  awaitsContinue: boolean;
  switchProtocol?: Switch;
}

/** The HTTP side: takes clients' requests, has them admitted, and passes them on. */
export class ReverseProxy {
  readonly #pools: Pools;
  readonly #metrics: Metrics;
  readonly #log: Logger;
  /** Requests that each connection has under way. */
  readonly #underWay = new WeakMap<object, number>();
  /** Connections that end with an answer already given: what else comes over them is not to be trusted, or not wanted. */
  readonly #ending = new WeakSet<object>();

  constructor(pools: Pools, metrics: Metrics, log: Logger) {
    this.#pools = pools;
    this.#metrics = metrics;
    this.#log = log;
  }

  /** Lets a server answer for a service. */
  attach(server: Server, service: string): void {
    server.on('request', (req, res) => void this.#take(service, req, res, { awaitsContinue: false }));
    server.on('checkContinue', (req, res) => void this.#take(service, req, res, { awaitsContinue: true }));
    server.on('upgrade', (req, stream, head) => {
      const socket = stream as Socket;
      if (!isTunnel(req)) return takeAsOrdinary(server, req, socket, head);
      const { res, switchProtocol } = upgradeResponse(req, socket, head);
      void this.#take(service, req, res, { awaitsContinue: false, switchProtocol });
    });
    server.on('clientError', (error: NodeJS.ErrnoException, stream) =>
      this.#onBadClient(service, error, stream as Socket),
    );
  }

  async #take(service: string, req: IncomingMessage, res: ServerResponse, manner: Manner): Promise<void> {
    const { socket } = req;
    if (this.#ending.has(socket)) return;
    const since = performance.now();
    const requestId = requestIdOf(req.rawHeaders) ?? randomUUID();
    this.#underWay.set(socket, (this.#underWay.get(socket) ?? 0) + 1);
    // 'close' follows, which is what matters.
    res.on('error', () => {});
    let ending: Ending;
    try {
      ending = await this.#serve(service, requestId, req, res, manner);
    } catch (thrown) {
      const error = toInitlessError(thrown);
      this.#log.error({ service, requestId, error: error.stack ?? error.message }, 'fault in the gateway');
      ending = this.#answer(req, res, { error }, servingStatus(error), requestId, true);
    }
    this.#underWay.set(socket, (this.#underWay.get(socket) ?? 1) - 1);
    const { status, error } = ending;
    this.#metrics.add('requests_total', { service, status: String(status) });
    if (error === undefined) return;
    const ms = Math.round(performance.now() - since);
    // Without its query, where secrets may be.
    const path = req.url?.split('?')[0];
    const fields = { service, requestId, method: req.method, path, status, code: error.code, error: error.message, ms };
    this.#log.warn(fields, 'request failed');
  }

  async #serve(
    service: string,
    requestId: string,
    req: IncomingMessage,
    res: ServerResponse,
    { awaitsContinue, switchProtocol }: Manner,
  ): Promise<Ending> {
    const { httpVersion, rawHeaders, url = '' } = req;
    const fault = requestFault({ httpVersion, rawHeaders, url });
    const target = targetOf(url, valuesOf(rawHeaders, 'host')[0]);
    if (fault !== undefined || target === undefined) {
      const error = new InitlessError('BAD_REQUEST', `the request cannot be passed on: ${fault}`, {
        nextStep: 'correct the request',
      });
      return this.#answer(req, res, { error }, 400, requestId, true);
    }
    const pool = this.#pools.of(service);
    if (pool === undefined) {
      const refusal = withdrawn(service);
      return this.#answer(req, res, refusal, servingStatus(refusal.error), requestId, true);
    }
    const framing = framingOf(rawHeaders);
    const sent = new SentBody();
    const passage: Passage = { req, res, service, requestId, target, framing, sent, awaitsContinue, switchProtocol };

    const gone = new AbortController();
    res.once('close', () => {
      if (!res.writableFinished) gone.abort();
    });
    for (let retries = 0; ; retries += 1) {
      let outcome: Outcome;
      try {
        const slot = await pool.take(gone.signal, retries > 0);
        try {
          outcome = gone.signal.aborted ? { kind: 'gone' } : await forward(passage, slot);
          if (outcome.kind === 'failed' && outcome.broken) slot.release(true);
        } finally {
          slot.release();
        }
      } catch (thrown) {
        if (gone.signal.aborted) return { status: CLIENT_GONE };
        if (!(thrown instanceof RefusedError)) throw thrown;
        const { refusal } = thrown;
        return this.#answer(req, res, refusal, servingStatus(refusal.error), requestId, passage.awaitsContinue);
      }
      switch (outcome.kind) {
        case 'gone':
          return { status: CLIENT_GONE };
        case 'answered':
        case 'cut':
          return outcome;
        case 'failed': {
          const { error, again } = outcome;
          if (!again || retries === MAX_RETRIES) {
            return this.#answer(req, res, { error }, servingStatus(error), requestId, passage.awaitsContinue);
          }
          this.#metrics.add('retries_total', { service });
          this.#log.info({ service, requestId, error: error.message }, 'sending the request again');
        }
      }
    }
  }

  /** Answers with an error; a client that is in the middle of its answer can only be cut off. */
  #answer(
    req: IncomingMessage,
    res: ServerResponse,
    refusal: Refusal,
    status: number,
    requestId: string,
    close: boolean,
  ): Ending {
    if (res.headersSent) res.destroy();
    else answerError(res, status, refusal, requestId, close);
    if (close) this.#ending.add(req.socket);
    // What is left of its body is read and forgotten, so that a client that is still sending comes to the answer.
    if (!close) req.resume();
    return { status, error: refusal.error };
  }

  /** What Node's parser refuses. In the middle of a request, nothing can be said any more. */
  #onBadClient(service: string, cause: NodeJS.ErrnoException, socket: Socket): void {
    if (this.#ending.has(socket)) {
      socket.destroySoon();
      return;
    }
    if (!socket.writable || cause.code === 'ECONNRESET' || (this.#underWay.get(socket) ?? 0) > 0) {
      socket.destroy();
      return;
    }
    const [status, reason] = statusOfBadClient(cause);
    const requestId = randomUUID();
    const error = new InitlessError('BAD_REQUEST', `the request cannot be read: ${cause.message}`, {
      nextStep: 'correct the request',
    });
    const body = errorBody(error, requestId);
    const headers = errorHeaders(status, body, requestId);
    const lines = [`HTTP/1.1 ${status} ${reason}`, 'Connection: close'];
    for (let index = 0; index < headers.length; index += 2) lines.push(`${headers[index]}: ${headers[index + 1]}`);
    socket.end(`${lines.join('\r\n')}\r\n\r\n${body}`);
    socket.destroySoon();
    this.#metrics.add('requests_total', { service, status: String(status) });
    this.#log.warn({ service, requestId, status, code: error.code, error: error.message }, 'request failed');
  }
}

function statusOfBadClient({ code }: NodeJS.ErrnoException): [number, string] {
  if (code === 'HPE_HEADER_OVERFLOW') return [431, 'Request Header Fields Too Large'];
  if (code === 'ERR_HTTP_REQUEST_TIMEOUT') return [408, 'Request Timeout'];
  return [400, 'Bad Request'];
}
