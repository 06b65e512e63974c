/** Headers as Node gives and takes them: name, value, name, value; case, order and duplicates as sent. */
export type RawHeaders = readonly string[];

/** Headers that concern one connection only (RFC 9110, 7.6.1), besides those that Connection names. */
const HOP_BY_HOP = new Set([
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'transfer-encoding',
  'upgrade',
]);

/** Headers that a sender cannot have removed by naming them in Connection: without them a message means another thing. */
const ESSENTIAL = new Set(['host', 'content-length', 'content-type', 'trailer']);

/** Set by us; what a client sends is replaced, or appended to. */
const OURS = new Set(['x-forwarded-for', 'x-forwarded-host', 'x-forwarded-port', 'x-forwarded-proto', 'x-request-id']);

/** What a request id that a client chose may look like. */
const SANE_REQUEST_ID = /^[\w.:+/=@-]{1,128}$/;

/** How the length of a message's body is told. */
export type Framing = 'none' | 'length' | 'chunked';

/** All values of a header, in order. `name` in lower case. */
export function valuesOf(headers: RawHeaders, name: string): string[] {
  const values: string[] = [];
  for (let index = 0; index < headers.length; index += 2) {
    if (headers[index]?.toLowerCase() === name) values.push(headers[index + 1] ?? '');
  }
  return values;
}

/** The members of a header that is a list, in lower case. */
export function tokensOf(headers: RawHeaders, name: string): string[] {
  return valuesOf(headers, name)
    .flatMap((value) => value.split(','))
    .map((token) => token.trim().toLowerCase())
    .filter((token) => token !== '');
}

/** The client's own request id, if it is one that can be passed on as it is. */
export function requestIdOf(headers: RawHeaders): string | undefined {
  const [id, ...others] = valuesOf(headers, 'x-request-id');
  return id !== undefined && others.length === 0 && SANE_REQUEST_ID.test(id) ? id : undefined;
}

/** How the body of a request is framed; a request without either header has none. */
export function framingOf(headers: RawHeaders): Framing {
  if (valuesOf(headers, 'transfer-encoding').length > 0) return 'chunked';
  return Number(valuesOf(headers, 'content-length')[0] ?? 0) > 0 ? 'length' : 'none';
}

/** Without hop-by-hop headers, those that Connection names, and those that `drop` takes. */
function endToEnd(headers: RawHeaders, drop: (name: string) => boolean): string[] {
  const named = new Set(tokensOf(headers, 'connection').filter((name) => !ESSENTIAL.has(name)));
  const kept: string[] = [];
  for (let index = 0; index < headers.length; index += 2) {
    const name = headers[index] ?? '';
    const lower = name.toLowerCase();
    if (HOP_BY_HOP.has(lower) || named.has(lower) || drop(lower)) continue;
    kept.push(name, headers[index + 1] ?? '');
  }
  return kept;
}

/** What the gateway knows of a request beyond its headers. */
export interface RequestFacts {
  method: string;
  /** The client's address. */
  client: string;
  /** Port the request came in on. */
  port: number;
  requestId: string;
  /** Whether the connection is to be handed over to another protocol. */
  upgrade: boolean;
  /** "ADDRESS:PORT" of the instance, as Host for a client that sent none (HTTP/1.0). */
  upstream: string;
}

/** The headers a request is passed on with. */
export function requestHeaders(headers: RawHeaders, facts: RequestFacts): string[] {
  const framing = framingOf(headers);
  const passed = endToEnd(headers, (name) => OURS.has(name) || (name === 'trailer' && framing !== 'chunked'));
  const host = valuesOf(headers, 'host')[0];
  if (host === undefined) passed.unshift('Host', facts.upstream);
  if (framing === 'chunked') passed.push('Transfer-Encoding', 'chunked');
  // Node would add "chunked" to a request of such a method that has no length.
  const expectsBody = !['GET', 'HEAD', 'DELETE', 'OPTIONS', 'TRACE'].includes(facts.method);
  if (framing === 'none' && expectsBody && valuesOf(headers, 'content-length').length === 0) {
    passed.push('Content-Length', '0');
  }
  const trailers = tokensOf(headers, 'te').includes('trailers');
  if (trailers) passed.push('TE', 'trailers');
  if (facts.upgrade) {
    passed.push('Connection', trailers ? 'Upgrade, TE' : 'Upgrade');
    for (const protocol of valuesOf(headers, 'upgrade')) passed.push('Upgrade', protocol);
  } else passed.push('Connection', trailers ? 'keep-alive, TE' : 'keep-alive');
  const client = facts.client.replace(/^::ffff:/, '');
  passed.push('X-Forwarded-For', [...valuesOf(headers, 'x-forwarded-for'), client].join(', '));
  passed.push('X-Forwarded-Proto', 'http');
  if (host !== undefined) passed.push('X-Forwarded-Host', host);
  passed.push('X-Forwarded-Port', String(facts.port));
  passed.push('X-Request-Id', facts.requestId);
  return passed;
}

/** What decides over a response's headers beyond them. */
export interface ResponseFacts {
  status: number;
  /** Whether the client understands chunks, and so trailers. */
  chunks: boolean;
  /** Whether it answers HEAD. */
  head: boolean;
}

/** The headers a response is passed on with. */
export function responseHeaders(headers: RawHeaders, { status, chunks, head }: ResponseFacts): string[] {
  const bodiless = head || status === 204 || status === 304;
  const trailers = chunks && !bodiless && valuesOf(headers, 'content-length').length === 0;
  return endToEnd(
    headers,
    (name) => (name === 'trailer' && !trailers) || (name === 'content-length' && status === 204),
  );
}

/** Trailers in the form Node takes; those that frame or route a message may not stand there (RFC 9110, 6.5.1). */
export function trailersOf(rawTrailers: RawHeaders): [string, string][] {
  const kept = endToEnd(rawTrailers, (name) => ESSENTIAL.has(name) || OURS.has(name) || name === 'authorization');
  const pairs: [string, string][] = [];
  for (let index = 0; index < kept.length; index += 2) pairs.push([kept[index] ?? '', kept[index + 1] ?? '']);
  return pairs;
}
