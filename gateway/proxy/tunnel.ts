import { type IncomingMessage, type Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { framingOf, tokensOf, valuesOf } from './headers.js';

/** Between probes of a tunnel's quiet peers, milliseconds. */
const KEEP_ALIVE_PROBE_MS = 30_000;
/** What a client may send ahead of the answer to its request to upgrade, bytes; beyond that it is made to wait. */
const EARLY_BYTES = 64 * 1024;

/** Sends the instance's consent to the client and joins both connections; resolves when both are closed. */
export type Switch = (answer: IncomingMessage, upstream: Socket, head: Buffer) => Promise<void>;

/**
 * Whether a request to upgrade is one to hand over. One with a body is not, since Node stops parsing where its body
 * begins, and neither is one for h2c, with which some clients begin every connection; servers may ignore both.
 */
export function isTunnel({ rawHeaders }: IncomingMessage): boolean {
  return framingOf(rawHeaders) === 'none' && !tokensOf(rawHeaders, 'upgrade').includes('h2c');
}

/** Has the server take a request to upgrade for an ordinary one: it is parsed again, without the wish. */
export function takeAsOrdinary(server: Server, req: IncomingMessage, socket: Socket, head: Buffer): void {
  const connection = tokensOf(req.rawHeaders, 'connection');
  const left = ['upgrade', 'http2-settings'];
  const lines = [`${req.method} ${req.url} HTTP/${req.httpVersion}`];
  for (let index = 0; index < req.rawHeaders.length; index += 2) {
    const name = req.rawHeaders[index] ?? '';
    if (![...left, 'connection'].includes(name.toLowerCase()))
      lines.push(`${name}: ${req.rawHeaders[index + 1] ?? ''}`);
  }
  const options = connection.filter((option) => !left.includes(option));
  if (options.length > 0) lines.push(`Connection: ${options.join(', ')}`);
  socket.unshift(Buffer.concat([Buffer.from(`${lines.join('\r\n')}\r\n\r\n`, 'latin1'), head]));
  server.emit('connection', socket);
}

/**
 * A response for a request to upgrade, which Node leaves without one: for the answer of a server that does not want to,
 * and for errors. And what hands the connection over to one that does.
 */
export function upgradeResponse(
  req: IncomingMessage,
  socket: Socket,
  head: Buffer,
): { res: ServerResponse; switchProtocol: Switch } {
  const res = new ServerResponse(req);
  res.shouldKeepAlive = false;
  res.assignSocket(socket);

  // Read on, so that a client that leaves while it waits is noticed.
  const early = [head];
  let size = head.length;
  const onData = (chunk: Buffer) => {
    early.push(chunk);
    size += chunk.length;
    if (size > EARLY_BYTES) socket.pause();
  };
  const onEnd = () => socket.destroy();
  const onDrain = () => res.emit('drain');
  const onFinish = () => {
    res.detachSocket(socket);
    socket.destroySoon();
  };
  // 'close' follows, which is what matters.
  socket.on('error', () => {});
  socket.on('data', onData);
  socket.on('end', onEnd);
  socket.on('drain', onDrain);
  res.on('finish', onFinish);

  const switchProtocol: Switch = (answer, upstream, upstreamHead) => {
    socket.pause();
    socket.off('data', onData);
    socket.off('end', onEnd);
    socket.off('drain', onDrain);
    res.off('finish', onFinish);
    res.detachSocket(socket);
    socket.write(Buffer.from(switchingHead(answer), 'latin1'));
    socket.write(upstreamHead);
    upstream.write(Buffer.concat(early));
    return join(socket, upstream);
  };
  return { res, switchProtocol };
}

/** The instance's own words, which name the protocol. */
function switchingHead({ statusMessage, rawHeaders }: IncomingMessage): string {
  const lines = [`HTTP/1.1 101 ${statusMessage ?? ''}`];
  for (let index = 0; index < rawHeaders.length; index += 2)
    lines.push(`${rawHeaders[index]}: ${rawHeaders[index + 1]}`);
  if (valuesOf(rawHeaders, 'connection').length === 0) lines.push('Connection: Upgrade');
  return `${lines.join('\r\n')}\r\n\r\n`;
}

function join(one: Socket, other: Socket): Promise<void> {
  for (const [from, to] of [
    [one, other],
    [other, one],
  ] as const) {
    from.setTimeout(0);
    from.setNoDelay(true);
    from.setKeepAlive(true, KEEP_ALIVE_PROBE_MS);
    from.on('error', () => {});
    // What was sent before an orderly end still arrives; a broken connection breaks the other.
    from.once('close', (hadError) => (hadError ? to.destroy() : to.destroySoon()));
    from.pipe(to);
  }
  const closed = (socket: Socket) =>
    new Promise<void>((resolve) => {
      if (socket.closed) resolve();
      else socket.once('close', () => resolve());
    });
  return Promise.all([closed(one), closed(other)]).then(() => {});
}
