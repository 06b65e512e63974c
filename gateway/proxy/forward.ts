import http, { type ClientRequest, type IncomingMessage, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { InitlessError } from '../../proto/rpc/errors.js';
import type { Slot } from '../pool.js';
import type { Fill } from './fill.js';
import { type Framing, requestHeaders, responseHeaders, tokensOf, trailersOf } from './headers.js';
import type { SentBody } from './sent-body.js';
import type { Switch } from './tunnel.js';

/** An instance accepts a connection within this time, milliseconds, or counts as broken. */
const CONNECT_MS = 5_000;
/** After this long, milliseconds, without "100 Continue" the body is sent anyway: many servers know no Expect. */
const CONTINUE_MS = 1_000;
/** Of an answer that is held, this much is taken from the instance, bytes, so that the whole of most of them is there. */
const HELD_BYTES = 256 * 1024;
/** Methods that may be sent twice (RFC 9110, 9.2.2), as far as we repeat them. */
const IDEMPOTENT = new Set(['GET', 'HEAD', 'OPTIONS', 'PUT', 'DELETE']);

/** A client's request, on its way through any number of attempts. */
export interface Passage {
  req: IncomingMessage;
  res: ServerResponse;
  service: string;
  requestId: string;
  /** Target in the form that servers take. */
  target: string;
  framing: Framing;
  /** What was sent of its body. */
  sent: SentBody;
  /** Whether the client sends its body only once it is told to. Cleared when it is. */
  awaitsContinue: boolean;
  /** Hands the client's connection over; only for a request to upgrade. */
  switchProtocol: Switch | undefined;
}

/** How an attempt ended. */
export type Outcome =
  /** The client has the whole answer, or its tunnel has ended. */
  | { kind: 'answered'; status: number }
  /** The client has seen nothing. `again`: it may be sent again. `broken`: the instance cannot be reached. */
  | { kind: 'failed'; error: InitlessError; again: boolean; broken: boolean }
  /** The instance broke off its answer, and so was the client's connection. */
  | { kind: 'cut'; status: number; error: InitlessError }
  /** The client went away. */
  | { kind: 'gone' };

/**
 * Sends a request to an instance and its answer to the client, each as it comes and no faster than it is taken.
 * Gives the slot back as soon as the instance has nothing more to do with the request.
 *
 * While the instance's memory is still being filled, nothing of its answer goes out before the agent has said that it is
 * right. It can say so of a whole answer; one that does not end, or is large, waits for the end of the fill, left where it
 * is, so that the connection to the instance holds it back. When the fill fails, the instance counts as one that never
 * answered.
 */
export function forward(passage: Passage, slot: Slot): Promise<Outcome> {
  return new Promise((resolve) => new Attempt(passage, slot, resolve));
}

class Attempt {
  readonly #passage: Passage;
  readonly #slot: Slot;
  readonly #resolve: (outcome: Outcome) => void;
  readonly #up: ClientRequest;
  #over = false;
  #timer: NodeJS.Timeout | undefined;
  /** The connection the request was sent on, and how much it had brought before. Undefined: no byte was sent. */
  #sentOn: { socket: Socket; bytesRead: number } | undefined;
  #bodyOffered = false;
  #answer: IncomingMessage | undefined;
  /** Whether the client has been told something of the answer, or is about to be. */
  #passing = false;
  /** The connection of an instance that switched protocols, which is no longer the request's. */
  #switched: Socket | undefined;
  readonly #stopDoubts: () => void;
  /** Lets go of what was being held. */
  readonly #letGo: (() => void)[] = [];

  constructor(passage: Passage, slot: Slot, resolve: (outcome: Outcome) => void) {
    this.#passage = passage;
    this.#slot = slot;
    this.#resolve = resolve;
    passage.res.on('close', this.#onClientClose);
    passage.res.on('finish', this.#onClientFinish);
    this.#stopDoubts = slot.onDoubt(() => this.#onDoubt());
    this.#up = this.#request();
  }

  #request(): ClientRequest {
    const { req, requestId, target, switchProtocol } = this.#passage;
    const { host, port, connections } = this.#slot.upstream;
    const method = req.method ?? 'GET';
    const up = http.request({
      agent: connections,
      host,
      port,
      method,
      path: target,
      headers: requestHeaders(req.rawHeaders, {
        method,
        client: req.socket.remoteAddress ?? '',
        port: req.socket.localPort ?? 0,
        requestId,
        upgrade: switchProtocol !== undefined,
        upstream: `${host}:${port}`,
      }),
    });
    up.maxHeadersCount = 0;
    up.on('socket', (socket) => this.#onSocket(socket));
    // Until its memory is filled, its word does not count; the body follows a second later without it.
    up.on('continue', () => {
      if (!this.#isFilling) this.#offerBody();
    });
    up.on('information', (information) => this.#onInformation(information));
    up.on('response', (answer) => this.#onResponse(answer));
    up.on('upgrade', (answer, socket, head) => this.#onUpgrade(answer, socket, head));
    up.on('error', (error) => this.#fail(error));
    up.on('close', () => {
      if (this.#answer === undefined) this.#fail(new Error('the connection was closed'));
    });
    return up;
  }

  #onSocket(socket: Socket): void {
    const ready = () => {
      clearTimeout(this.#timer);
      if (this.#over) return;
      if (!this.#slot.stands()) {
        this.#fail(new Error('its lease ended'));
        return;
      }
      this.#sentOn = { socket, bytesRead: socket.bytesRead };
      if (this.#passage.awaitsContinue) {
        this.#up.flushHeaders();
        this.#timer = setTimeout(() => this.#offerBody(), CONTINUE_MS);
      } else this.#offerBody();
    };
    if (!socket.connecting) {
      ready();
      return;
    }
    this.#timer = setTimeout(() => {
      this.#fail(Object.assign(new Error(`no connection within ${CONNECT_MS} ms`), { code: 'ETIMEDOUT' }));
    }, CONNECT_MS);
    socket.once('connect', ready);
  }

  /** Sends the body from now on, and tells a client that waits for it to begin. */
  #offerBody(): void {
    clearTimeout(this.#timer);
    if (this.#over || this.#bodyOffered) return;
    this.#bodyOffered = true;
    const { req, res, framing, sent } = this.#passage;
    if (framing === 'none') {
      this.#up.end();
      return;
    }
    // What an attempt before this one has taken from the client.
    for (const chunk of sent.chunks) this.#up.write(chunk);
    if (this.#passage.awaitsContinue) {
      this.#passage.awaitsContinue = false;
      res.writeContinue();
    }
    if (req.readableEnded) {
      this.#onBodyEnd();
      return;
    }
    if (this.#slot.fresh) req.on('data', this.#onBodyData);
    else sent.forget();
    req.on('end', this.#onBodyEnd);
    req.pipe(this.#up, { end: false });
  }

  readonly #onBodyData = (chunk: Buffer) => this.#passage.sent.keep(chunk);

  readonly #onBodyEnd = () => {
    const { req, framing } = this.#passage;
    if (framing === 'chunked') this.#up.addTrailers(trailersOf(req.rawTrailers));
    this.#up.end();
  };

  #stopBody(): void {
    const { req } = this.#passage;
    req.off('data', this.#onBodyData);
    req.off('end', this.#onBodyEnd);
    req.unpipe(this.#up);
  }

  #onInformation({ statusCode, rawHeaders }: http.InformationEvent): void {
    const { req, res, switchProtocol } = this.#passage;
    if (this.#over || this.#isFilling || req.httpVersion !== '1.1' || switchProtocol) return;
    if (statusCode === 102) res.writeProcessing();
    if (statusCode !== 103) return;
    const hints: Record<string, string | string[]> = { link: [] };
    const facts = { status: statusCode, chunks: false, head: false };
    const headers = responseHeaders(rawHeaders, facts);
    for (let index = 0; index < headers.length; index += 2) {
      const [name, value] = [headers[index] ?? '', headers[index + 1] ?? ''];
      // Node takes one link at a time.
      if (name.toLowerCase() === 'link') (hints.link as string[]).push(...value.split(/,\s*(?=<)/));
      else hints[name] = value;
    }
    try {
      res.writeEarlyHints(hints);
    } catch {
      // A hint that Node does not take for a link is left out; the answer itself follows.
    }
  }

  #onResponse(answer: IncomingMessage): void {
    if (this.#over) return;
    const codings = tokensOf(answer.rawHeaders, 'transfer-encoding');
    if (codings.length > 0 && codings.join() !== 'chunked') {
      this.#fail(new Error(`its answer has the transfer coding "${codings.join(', ')}"`));
      return;
    }
    this.#answer = answer;
    answer.on('error', (error) => this.#fail(error));
    answer.on('close', () => {
      if (!answer.readableEnded) this.#fail(new Error('the connection was closed'));
    });
    const { fill } = this.#slot;
    if (fill === undefined || fill.complete) this.#pass(answer);
    else this.#hold(answer, fill);
  }

  get #isFilling(): boolean {
    const { fill } = this.#slot;
    return fill !== undefined && !fill.complete;
  }

  /** Takes the answer in, as far as it may be held, until it is known to be right. */
  #hold(answer: IncomingMessage, fill: Fill): void {
    const held: Buffer[] = [];
    let size = 0;
    const onData = (chunk: Buffer) => {
      held.push(chunk);
      size += chunk.length;
      if (size >= HELD_BYTES) answer.pause();
    };
    const onEnd = () => {
      if (answer.complete) this.#letGo.push(fill.whenRight(onWord));
      else this.#fail(new Error('the answer was not complete'));
    };
    const onWord = this.#onWord(() => {
      answer.off('data', onData).off('end', onEnd);
      this.#pass(answer, held);
    });
    answer.on('data', onData).on('end', onEnd);
    this.#letGo.push(fill.whenOver(onWord));
  }

  /** What the agent's word does: `goOn`, once, or the end of the attempt, also when it does not come in time. */
  #onWord(goOn: () => void): (failure: InitlessError | undefined) => void {
    const { holdMs, upstream } = this.#slot;
    const { service } = this.#passage;
    const timer = setTimeout(() => {
      const error = new InitlessError(
        'UPSTREAM_TIMEOUT',
        `instance ${upstream.instance} of ${service} has answered, but the answer could not be used within ${holdMs} ms; pending was: its agent's word that no memory was missing`,
        {
          subject: service,
          nextStep: `see how it goes with 'initless events --service ${service}'; raise queue_timeout, or set 'memory: copied'`,
        },
      );
      this.#giveUp({ kind: 'failed', error, again: false, broken: false });
    }, holdMs);
    this.#letGo.push(() => clearTimeout(timer));
    return (failure) => {
      if (this.#over || this.#passing) return;
      if (failure) {
        this.#fail(failure);
        return;
      }
      this.#release();
      goOn();
    };
  }

  #release(): void {
    for (const letGo of this.#letGo.splice(0)) letGo();
  }

  /** Sends the answer to the client from now on, and before it what was held of it. */
  #pass(answer: IncomingMessage, held: readonly Buffer[] = []): void {
    const { req, res, framing, awaitsContinue } = this.#passage;
    const status = answer.statusCode ?? 502;
    const chunks = req.httpVersion === '1.1';
    const headers = responseHeaders(answer.rawHeaders, { status, chunks, head: req.method === 'HEAD' });
    // The client was not told to send its body: whatever it sends next could be either.
    if (awaitsContinue && framing !== 'none') headers.push('Connection', 'close');
    try {
      res.writeHead(status, answer.statusMessage ?? '', headers);
    } catch (error) {
      this.#fail(error as Error);
      return;
    }
    this.#passing = true;
    for (const chunk of held) res.write(chunk);
    if (answer.readableEnded) {
      this.#onAnswerEnd(answer);
      return;
    }
    answer.on('end', () => this.#onAnswerEnd(answer));
    answer.pipe(res, { end: false });
    // Headers without a body yet, as of an event stream, must not wait for it; others leave together with its beginning.
    setImmediate(() => {
      if (!this.#over && !answer.readableDidRead && !res.writableEnded) res.flushHeaders();
    });
  }

  #onAnswerEnd(answer: IncomingMessage): void {
    if (this.#over) return;
    if (!answer.complete) {
      this.#cut(new Error('the answer was not complete'));
      return;
    }
    this.#slot.release();
    if (!this.#up.writableFinished) {
      // Answered before it had the whole request, of which it wants no more.
      this.#stopBody();
      this.#up.destroy();
      this.#passage.req.resume();
    }
    this.#passage.res.addTrailers(trailersOf(answer.rawTrailers));
    this.#passage.res.end();
  }

  #onUpgrade(answer: IncomingMessage, socket: Socket, head: Buffer): void {
    const { switchProtocol } = this.#passage;
    if (this.#over || switchProtocol === undefined) {
      socket.destroy();
      this.#fail(new Error('it switched protocols without being asked to'));
      return;
    }
    this.#answer = answer;
    this.#switched = socket;
    const onError = (error: Error) => this.#fail(error);
    const onClose = () => this.#fail(new Error('the connection was closed'));
    socket.on('error', onError).on('close', onClose);
    const join = () => {
      socket.off('error', onError).off('close', onClose);
      this.#passing = true;
      this.#leaveClient();
      void switchProtocol(answer, socket, head).then(() => this.#finish({ kind: 'answered', status: 101 }));
    };
    const { fill } = this.#slot;
    if (fill === undefined || fill.complete) join();
    else this.#letGo.push(fill.whenOver(this.#onWord(join)));
  }

  readonly #onClientFinish = () => this.#finish({ kind: 'answered', status: this.#passage.res.statusCode });

  readonly #onClientClose = () => this.#giveUp({ kind: 'gone' });

  #leaveClient(): void {
    this.#passage.res.off('close', this.#onClientClose);
    this.#passage.res.off('finish', this.#onClientFinish);
  }

  /** Nothing of an answer has reached the client. */
  #fail(cause: NodeJS.ErrnoException): void {
    if (this.#over) return;
    if (this.#passing) {
      this.#cut(cause);
      return;
    }
    const sentOn = this.#sentOn;
    const { again, silent } = this.#standing();
    // A server may close an idle connection just as we use it; that says nothing about the instance.
    const stale = sentOn !== undefined && this.#up.reusedSocket;
    if (stale) this.#slot.upstream.closeIdle();
    this.#giveUp({ kind: 'failed', error: this.#errorOf(cause), again, broken: silent && !stale });
  }

  /** Whether the instance has said nothing of an answer, and whether the request may be sent to another one. */
  #standing(): { silent: boolean; again: boolean } {
    const { req, framing, sent } = this.#passage;
    const sentOn = this.#sentOn;
    const silent = sentOn === undefined || this.#isFilling || sentOn.socket.bytesRead === sentOn.bytesRead;
    const repeatable = IDEMPOTENT.has(req.method ?? '') && !req.readableDidRead;
    const unread = this.#slot.neverRan() && (framing === 'none' || sent.whole);
    return { silent, again: sentOn === undefined || unread || (silent && repeatable) };
  }

  /** The instance cannot be reached, or nobody can say: another one serves the request, if it may be sent again. */
  #onDoubt(): void {
    if (this.#over || this.#passing || this.#answer !== undefined || !this.#standing().again) return;
    const error = this.#errorOf(new Error('its host does not answer'));
    this.#giveUp({ kind: 'failed', error, again: true, broken: false });
  }

  /** Ends the attempt, of which the client has seen nothing. */
  #giveUp(outcome: Outcome): void {
    if (this.#over) return;
    this.#stopBody();
    // What was being held breaks now, which says nothing any more.
    this.#finish(outcome);
    this.#up.destroy();
    this.#switched?.destroy();
  }

  /** The answer broke off: the client must not take what it has for the whole. */
  #cut(cause: NodeJS.ErrnoException): void {
    if (this.#over) return;
    const { res, req } = this.#passage;
    this.#stopBody();
    this.#up.destroy();
    this.#finish({ kind: 'cut', status: res.statusCode, error: this.#errorOf(cause) });
    // To a client of HTTP/1.0 the connection's end may be the answer's; a reset is not.
    if (req.httpVersion === '1.0') req.socket.resetAndDestroy();
    else res.destroy();
  }

  #errorOf(cause: NodeJS.ErrnoException): InitlessError {
    const { service } = this.#passage;
    const { instance } = this.#slot.upstream;
    const before = this.#sentOn === undefined ? 'could not be sent the request' : 'did not answer the request';
    const what = this.#passing ? 'broke off its answer' : before;
    return new InitlessError(
      cause.code === 'ETIMEDOUT' ? 'UPSTREAM_TIMEOUT' : 'UPSTREAM_FAILED',
      `instance ${instance} of ${service} ${what}: ${cause.message}`,
      { subject: service, nextStep: `see what it printed with 'initless service logs ${service}'`, cause },
    );
  }

  #finish(outcome: Outcome): void {
    if (this.#over) return;
    this.#over = true;
    clearTimeout(this.#timer);
    this.#stopDoubts();
    this.#release();
    this.#leaveClient();
    this.#resolve(outcome);
  }
}
