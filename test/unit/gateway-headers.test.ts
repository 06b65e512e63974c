import { describe, expect, test } from 'vitest';
import { errorBody, servingStatus } from '../../gateway/proxy/answer.js';
import { requestHeaders, requestIdOf, responseHeaders, tokensOf, trailersOf } from '../../gateway/proxy/headers.js';
import { requestFault, targetOf } from '../../gateway/proxy/strict.js';
import { InitlessError } from '../../proto/rpc/errors.js';

const FACTS = {
  method: 'GET',
  client: '::ffff:10.0.0.9',
  port: 8001,
  requestId: 'id',
  upgrade: false,
  upstream: '10.0.0.2:20000',
};
const ADDED = [
  ...['Connection', 'keep-alive', 'X-Forwarded-For', '10.0.0.9', 'X-Forwarded-Proto', 'http'],
  ...['X-Forwarded-Host', 'a', 'X-Forwarded-Port', '8001', 'X-Request-Id', 'id'],
];

describe('request headers', () => {
  test('keep order, case and duplicates, and gain who sent the request', () => {
    const sent = ['Host', 'a', 'ACCEPT', 'x', 'Cookie', 'a=1', 'Cookie', 'b=2'];
    expect(requestHeaders(sent, FACTS)).toEqual([...sent, ...ADDED]);
  });

  test('cannot have what frames, routes or names a request removed by naming it in Connection', () => {
    const sent = [
      'Host',
      'a',
      'Content-Length',
      '3',
      'Connection',
      'Host, Content-Length, X-Request-Id, x-mine',
      'X-Mine',
      '1',
    ];
    const passed = requestHeaders(sent, { ...FACTS, method: 'POST' });
    expect(passed).toEqual(['Host', 'a', 'Content-Length', '3', ...ADDED]);
  });

  test('name the protocol of an upgrade, and only then', () => {
    const sent = ['Host', 'a', 'Connection', 'keep-alive, Upgrade', 'Upgrade', 'websocket', 'Sec-WebSocket-Key', 'k'];
    const passed = requestHeaders(sent, { ...FACTS, upgrade: true });
    expect(passed.slice(0, 8)).toEqual([
      'Host',
      'a',
      'Sec-WebSocket-Key',
      'k',
      'Connection',
      'Upgrade',
      'Upgrade',
      'websocket',
    ]);
    expect(requestHeaders(sent, FACTS)).not.toContain('websocket');
  });

  test('name the instance as host for a client that named none', () => {
    expect(requestHeaders([], FACTS).slice(0, 2)).toEqual(['Host', '10.0.0.2:20000']);
  });

  test('append the client to every address that forwarded before', () => {
    const passed = requestHeaders(
      ['Host', 'a', 'X-Forwarded-For', '1.1.1.1', 'x-forwarded-for', '2.2.2.2, 3.3.3.3'],
      FACTS,
    );
    expect(passed[passed.indexOf('X-Forwarded-For') + 1]).toBe('1.1.1.1, 2.2.2.2, 3.3.3.3, 10.0.0.9');
  });
});

describe('response headers', () => {
  const facts = { status: 200, chunks: true, head: false };
  test('lose what concerns the connection to the instance', () => {
    const sent = [
      'Connection',
      'close, X-A',
      'X-A',
      '1',
      'Transfer-Encoding',
      'chunked',
      'Set-Cookie',
      'a',
      'Set-Cookie',
      'b',
    ];
    expect(responseHeaders(sent, facts)).toEqual(['Set-Cookie', 'a', 'Set-Cookie', 'b']);
  });

  test('announce trailers only where they can follow', () => {
    const sent = ['Trailer', 'X-Sum'];
    expect(responseHeaders(sent, facts)).toEqual(sent);
    expect(responseHeaders(sent, { ...facts, chunks: false })).toEqual([]);
    expect(responseHeaders(sent, { ...facts, head: true })).toEqual([]);
    expect(responseHeaders([...sent, 'Content-Length', '3'], facts)).toEqual(['Content-Length', '3']);
  });

  test('of 204 have no length', () => {
    expect(responseHeaders(['Content-Length', '0', 'ETag', 'x'], { ...facts, status: 204 })).toEqual(['ETag', 'x']);
  });
});

test('trailers that would frame, route or authorize are left out', () => {
  expect(
    trailersOf(['X-Sum', '1', 'Content-Length', '2', 'Host', 'b', 'Authorization', 'me', 'Transfer-Encoding', 'x']),
  ).toEqual([['X-Sum', '1']]);
});

test('a list header is split over all its lines, in lower case', () => {
  expect(tokensOf(['Connection', ' Close ,, Upgrade', 'connection', 'x'], 'connection')).toEqual([
    'close',
    'upgrade',
    'x',
  ]);
});

test.each([
  [['X-Request-Id', 'ok-1.2:3'], 'ok-1.2:3'],
  [['X-Request-Id', ''], undefined],
  [['X-Request-Id', 'x'.repeat(129)], undefined],
  [['X-Request-Id', '"quoted"'], undefined],
  [['X-Request-Id', 'a', 'X-Request-Id', 'b'], undefined],
  [[], undefined],
])('of the request ids %j, %s is taken', (headers, id) => {
  expect(requestIdOf(headers)).toBe(id);
});

test.each(['a', 'a:80', 'A.b-c_d', '127.0.0.1:1', '[::1]', '[::1]:80', ''])('"%s" is a host', (host) => {
  expect(requestFault({ httpVersion: '1.1', url: '/', rawHeaders: ['Host', host] })).toBeUndefined();
});

test.each(['a b', 'a,b', 'a/b', 'u@a', 'a:b', '[::1', 'a:1:2', 'http://a'])('"%s" is no host', (host) => {
  expect(requestFault({ httpVersion: '1.1', url: '/', rawHeaders: ['Host', host] })).toMatch(/Host/);
});

test.each([
  ['/a?b', 'x', '/a?b'],
  ['*', 'x', '*'],
  ['http://X/a', 'x', '/a'],
  ['http://x', 'x', '/'],
  ['HTTP://x?q', 'x', '/?q'],
  ['http://y/', 'x', undefined],
  ['http://u@x/', 'x', undefined],
  ['https://x/', 'x', undefined],
  ['x:443', 'x', undefined],
  ['a', 'x', undefined],
  ['http://x/', undefined, undefined],
])('the target %s for host %s is passed on as %s', (url, host, target) => {
  expect(targetOf(url, host)).toBe(target);
});

test.each([
  ['UPSTREAM_FAILED', 502],
  ['NO_HOST', 503],
  ['HEALTH_TIMEOUT', 504],
  ['NOT_FOUND', 503],
  ['INTERNAL', 502],
  ['DISK_FULL', 503],
  ['BAD_CONFIG', 503],
] as const)('%s is answered with %i', (code, status) => {
  expect(servingStatus(new InitlessError(code, 'x'))).toBe(status);
});

test('an error is one line, whatever its message holds', () => {
  const body = errorBody(new InitlessError('INTERNAL', 'two\nlines "quoted"', { nextStep: 'n' }), 'r');
  expect(body.indexOf('\n')).toBe(body.length - 1);
  expect(JSON.parse(body)).toEqual({
    error: { code: 'INTERNAL', message: 'two\nlines "quoted"', next_step: 'n' },
    request_id: 'r',
  });
});
