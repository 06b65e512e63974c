import http from 'node:http';
import type net from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, describe, expect, test } from 'vitest';
import { WebSocket, WebSocketServer } from 'ws';
import { eventually, GatewayHarness } from './gateway-harness.js';

let harness: GatewayHarness;
afterEach(() => harness?.close());

/** A gateway in front of one instance. */
async function inFrontOf(
  handler: http.RequestListener,
  prepare: (server: http.Server) => void = () => {},
): Promise<GatewayHarness> {
  let address = '';
  harness = await GatewayHarness.start(({ grant }) => void grant('demo-1', address));
  address = await harness.upstream(handler, prepare);
  return harness;
}

/** A gateway in front of one instance that speaks bytes. */
async function inFrontOfRaw(onConnection: (socket: net.Socket) => void): Promise<GatewayHarness> {
  let address = '';
  harness = await GatewayHarness.start(({ grant }) => void grant('demo-1', address));
  address = await harness.rawUpstream(onConnection);
  return harness;
}

/** Everything up to the end of the headers that a raw instance reads, then `answer`. */
function afterHead(answer: (socket: net.Socket, head: string) => void): (socket: net.Socket) => void {
  return (socket) => {
    let text = '';
    socket.on('data', (chunk) => {
      text += chunk.toString('latin1');
      const end = text.indexOf('\r\n\r\n');
      if (end === -1) return;
      const head = text.slice(0, end + 4);
      text = text.slice(end + 4);
      answer(socket, head);
    });
  };
}

describe('a request', () => {
  test('reaches the instance with its target, method, body and headers as they were sent', async () => {
    let seen: http.IncomingMessage | undefined;
    let body = '';
    await inFrontOf(async (req, res) => {
      seen = req;
      for await (const chunk of req) body += chunk;
      res.end('fine');
    });
    const got = await harness.ask({
      method: 'POST',
      path: '/a%20b?x=1&y=%2F',
      headers: { Host: 'Example.org:81', 'X-Mixed-Case': 'One', Accept: ['a', 'b'] },
      body: 'hello',
    });
    expect(got).toMatchObject({ status: 200, body: 'fine' });
    expect(seen?.method).toBe('POST');
    expect(seen?.url).toBe('/a%20b?x=1&y=%2F');
    expect(body).toBe('hello');
    expect(seen?.rawHeaders).toContain('X-Mixed-Case');
    expect(seen?.rawHeaders.filter((name) => name === 'Accept')).toHaveLength(2);
    expect(seen?.headers.host).toBe('Example.org:81');
  });

  test('carries who sent it, and appends to who forwarded it before', async () => {
    await inFrontOf((req, res) => res.end(JSON.stringify(req.headers)));
    const got = await harness.ask({
      headers: { Host: 'me', 'X-Forwarded-For': '9.9.9.9', 'X-Forwarded-Proto': 'gopher' },
    });
    expect(JSON.parse(got.body)).toMatchObject({
      'x-forwarded-for': '9.9.9.9, 127.0.0.1',
      'x-forwarded-proto': 'http',
      'x-forwarded-host': 'me',
      'x-forwarded-port': String(harness.port),
    });
  });

  test('carries a sane request id on, and gets a new one in place of another', async () => {
    await inFrontOf((req, res) => res.end(req.headers['x-request-id']));
    expect((await harness.ask({ headers: { 'X-Request-Id': 'abc-123' } })).body).toBe('abc-123');
    expect((await harness.ask({ headers: { 'X-Request-Id': 'a b' } })).body).toMatch(/^[0-9a-f-]{36}$/);
    expect((await harness.ask()).body).toMatch(/^[0-9a-f-]{36}$/);
  });

  test('loses its hop-by-hop headers, also those that Connection names', async () => {
    let names: string[] = [];
    await inFrontOf((req, res) => {
      names = Object.keys(req.headers);
      res.setHeader('Keep-Alive', 'timeout=7');
      res.setHeader('X-Private', 'yes');
      res.setHeader('Connection', 'X-Private');
      res.end();
    });
    const got = await harness.ask({
      headers: { Connection: 'close, X-Secret, Host', 'X-Secret': '1', 'Proxy-Authorization': 'p', TE: 'gzip' },
    });
    expect(names).toContain('host');
    for (const name of ['x-secret', 'proxy-authorization', 'te', 'keep-alive']) expect(names).not.toContain(name);
    expect(got.headers).not.toHaveProperty('x-private');
    expect(got.headers['keep-alive']).not.toBe('timeout=7');
  });

  test('without a body has none at the instance either, also a POST', async () => {
    await inFrontOf((req, res) => res.end(JSON.stringify(req.rawHeaders)));
    expect((await harness.ask({ method: 'GET' })).body).not.toMatch(/transfer-encoding|content-length/i);
    const { socket, text, ended } = await harness.dial();
    socket.write('POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n');
    await ended;
    expect(text()).toContain('"Content-Length","0"');
    expect(text()).not.toMatch(/"transfer-encoding"/i);
  });

  test('of HTTP/1.0 without a Host is served, without chunks', async () => {
    await inFrontOf((req, res) => {
      res.write('one ');
      res.end(req.headers.host);
    });
    const { socket, text, ended } = await harness.dial();
    socket.write('GET / HTTP/1.0\r\n\r\n');
    await ended;
    expect(text()).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
    expect(text()).not.toMatch(/transfer-encoding/i);
    expect(text()).toMatch(/\r\n\r\none 127\.0\.0\.1:\d+$/);
  });

  test('whose body comes slowly and is large arrives whole, and is not read faster than it is taken', async () => {
    const size = 32 * 1024 * 1024;
    let taken = 0;
    let open: () => void = () => {};
    const gate = new Promise<void>((resolve) => {
      open = resolve;
    });
    await inFrontOf(async (req, res) => {
      await gate;
      for await (const chunk of req) taken += chunk.length;
      res.end(String(taken));
    });
    const request = http.request({ port: harness.port, host: '127.0.0.1', method: 'PUT', agent: false });
    const answer = new Promise<string>((resolve, reject) => {
      request.on('error', reject);
      request.on('response', async (response) => {
        let text = '';
        for await (const chunk of response) text += chunk;
        resolve(text);
      });
    });
    const chunk = Buffer.alloc(1024 * 1024, 'x');
    let sent = 0;
    const pump = () => {
      while (sent < size) {
        sent += chunk.length;
        if (!request.write(chunk)) {
          request.once('drain', pump);
          return;
        }
      }
      request.end();
    };
    pump();
    await delay(300);
    // What fits into the buffers on the way, and no more.
    expect(sent).toBeLessThan(24 * 1024 * 1024);
    open();
    expect(await answer).toBe(String(size));
  });

  test('with trailers passes them on', async () => {
    await inFrontOf(async (req, res) => {
      for await (const _ of req);
      res.end(JSON.stringify([req.headers.te, req.headers.trailer, req.trailers]));
    });
    const { socket, text, ended } = await harness.dial();
    socket.write(
      'POST / HTTP/1.1\r\nHost: a\r\nConnection: close, TE\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n' +
        '3\r\nabc\r\n0\r\nX-Sum: 42\r\nAuthorization: me\r\n\r\n',
    );
    await ended;
    expect(text()).toContain('["trailers","X-Sum",{"x-sum":"42"}]');
  });

  test('that expects 100-continue gets it from the instance, before its body', async () => {
    let continued = false;
    await inFrontOf(
      () => {},
      (server) =>
        server.on('checkContinue', async (req, res) => {
          await delay(100);
          continued = true;
          res.writeContinue();
          let body = '';
          for await (const chunk of req) body += chunk;
          res.end(`${req.headers.expect} ${body}`);
        }),
    );
    const { socket, text, ended } = await harness.dial();
    socket.write(
      'POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n',
    );
    await eventually('100 Continue', () => text().includes('100 Continue'));
    expect(continued).toBe(true);
    socket.write('abc');
    await ended;
    expect(text()).toMatch(/100-continue abc/);
  });

  test('that expects 100-continue and is refused closes the connection, since a body may follow or not', async () => {
    await inFrontOf(
      () => {},
      (server) =>
        server.on('checkContinue', (_req, res) => {
          res.writeHead(413);
          res.end('too large');
        }),
    );
    const { socket, text, ended } = await harness.dial();
    socket.write('POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n');
    await ended;
    expect(text()).toMatch(/^HTTP\/1\.1 413 /);
    expect(text()).toMatch(/connection: close/i);
    expect(text()).not.toContain('100 Continue');
  });

  test('that expects 100-continue of an instance that does not know it is continued by the gateway', async () => {
    await inFrontOfRaw(
      (() => {
        let body = '';
        return (socket: net.Socket) =>
          socket.on('data', (chunk) => {
            body += chunk.toString();
            if (body.endsWith('abc')) socket.end('HTTP/1.0 200 OK\r\n\r\ngot it');
          });
      })(),
    );
    const { socket, text, ended } = await harness.dial();
    socket.write(
      'POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n',
    );
    await eventually('100 Continue', () => text().includes('100 Continue'));
    socket.write('abc');
    await ended;
    expect(text()).toContain('got it');
  });

  test('that its client gives up is given up at the instance', async () => {
    let aborted = false;
    await inFrontOf((_req, res) => void res.on('close', () => (aborted = true)));
    const { socket } = await harness.dial();
    socket.write('GET / HTTP/1.1\r\nHost: a\r\n\r\n');
    await eventually('the lease', () => harness.agent.held.size === 1);
    await delay(50);
    expect(aborted).toBe(false);
    socket.destroy();
    await eventually('the abort at the instance', () => aborted);
    await eventually('the count', async () => (await harness.metrics()).includes('{service="demo",status="499"} 1'));
  });

  test('that is sent after another over one connection is served over one connection to the instance', async () => {
    const ports = new Set<number | undefined>();
    await inFrontOf((req, res) => {
      ports.add(req.socket.remotePort);
      res.end('x');
    });
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    for (let round = 0; round < 5; round += 1) expect((await harness.ask({ agent })).status).toBe(200);
    agent.destroy();
    expect(ports.size).toBe(1);
  });

  test('that is pipelined behind another is answered behind it', async () => {
    await inFrontOf(async (req, res) => {
      if (req.url === '/slow') await delay(100);
      res.end(req.url);
    });
    const { socket, text, ended } = await harness.dial();
    socket.write('GET /slow HTTP/1.1\r\nHost: a\r\n\r\nGET /fast HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n');
    await ended;
    expect(text().indexOf('/slow')).toBeGreaterThan(0);
    expect(text().indexOf('/fast')).toBeGreaterThan(text().indexOf('/slow'));
  });
});

describe('an answer', () => {
  test('keeps its status text, the case of its headers and each of its cookies', async () => {
    await inFrontOf((_req, res) => {
      res.writeHead(207, 'Quite So', ['X-CaSe', '1', 'Set-Cookie', 'a=1', 'Set-Cookie', 'b=2']);
      res.end();
    });
    const { socket, text, ended } = await harness.dial();
    socket.write('GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n');
    await ended;
    expect(text()).toMatch(/^HTTP\/1\.1 207 Quite So\r\n/);
    expect(text()).toContain('X-CaSe: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n');
  });

  test('to HEAD has the headers of one to GET, and no body', async () => {
    await inFrontOf((_req, res) => {
      res.setHeader('Content-Length', '11');
      res.end('hello world');
    });
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    const head = await harness.ask({ method: 'HEAD', agent });
    expect(head).toMatchObject({ status: 200, body: '' });
    expect(head.headers['content-length']).toBe('11');
    expect((await harness.ask({ agent })).body).toBe('hello world');
    agent.destroy();
  });

  test.each([204, 304])('of status %i has no body and leaves the connection usable', async (status) => {
    await inFrontOf((req, res) => {
      if (req.url === '/') {
        res.writeHead(status, { ETag: '"x"' });
        res.end();
      } else res.end('next');
    });
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    const got = await harness.ask({ agent });
    expect(got).toMatchObject({ status, body: '' });
    expect(got.headers.etag).toBe('"x"');
    expect(got.headers).not.toHaveProperty('transfer-encoding');
    expect((await harness.ask({ agent, path: '/next' })).body).toBe('next');
    agent.destroy();
  });

  test('with trailers passes them on', async () => {
    await inFrontOf((_req, res) => {
      res.writeHead(200, { Trailer: 'X-Sum' });
      res.write('abc');
      res.addTrailers([['X-Sum', '42']]);
      res.end();
    });
    const got = await harness.ask({ headers: { TE: 'trailers' } });
    expect(got.body).toBe('abc');
    expect(got.headers.trailer).toBe('X-Sum');
    expect(got.trailers).toEqual({ 'x-sum': '42' });
  });

  test('with early hints passes them on first', async () => {
    await inFrontOf((_req, res) => {
      res.writeEarlyHints({ link: ['</a.css>; rel=preload; as=style', '</b.js>; rel=preload; as=script'], 'x-h': '1' });
      setTimeout(() => res.end('page'), 50);
    });
    const { socket, text, ended } = await harness.dial();
    socket.write('GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n');
    await ended;
    expect(text()).toMatch(
      /^HTTP\/1\.1 103 Early Hints\r\nLink: <\/a\.css>.*<\/b\.js>.*\r\nx-h: 1\r\n\r\nHTTP\/1\.1 200 OK/,
    );
  });

  test('that is a stream of events has its headers and each event sent at once, and may be quiet for long', async () => {
    let send: (text: string) => void = () => {};
    await inFrontOf((_req, res) => {
      res.writeHead(200, { 'Content-Type': 'text/event-stream' });
      res.flushHeaders();
      send = (text) => res.write(text);
    });
    const { socket, text } = await harness.dial();
    socket.write('GET /events HTTP/1.1\r\nHost: a\r\n\r\n');
    await eventually('the headers', () => text().includes('text/event-stream'), 1_000);
    send('data: 1\n\n');
    await eventually('the first event', () => text().includes('data: 1'), 1_000);
    // Longer than idle connections to instances live and than leases without a request are kept.
    await delay(1_800);
    send('data: 2\n\n');
    await eventually('the second event', () => text().includes('data: 2'), 1_000);
    expect(harness.agent.held.size).toBe(1);
    expect(harness.agent.released).toEqual([]);
  });

  test('that is large is not read from the instance faster than its client takes it', async () => {
    let written = 0;
    await inFrontOf((_req, res) => {
      const chunk = Buffer.alloc(1024 * 1024, 'y');
      const pump = () => {
        while (written < 32 * 1024 * 1024) {
          written += chunk.length;
          if (!res.write(chunk)) {
            res.once('drain', pump);
            return;
          }
        }
        res.end();
      };
      pump();
    });
    const response = await new Promise<http.IncomingMessage>((resolve) => {
      http.get({ port: harness.port, host: '127.0.0.1', agent: false }, resolve);
    });
    await delay(300);
    expect(written).toBeLessThan(24 * 1024 * 1024);
    let got = 0;
    for await (const chunk of response) got += chunk.length;
    expect(got).toBe(32 * 1024 * 1024);
  });

  test('that the instance breaks off breaks off at the client, whatever its framing', async () => {
    await inFrontOf((req, res) => {
      if (req.url === '/length') res.setHeader('Content-Length', '100');
      res.write('half');
      setTimeout(() => res.destroy(), 50);
    });
    for (const path of ['/chunked', '/length']) {
      await expect(harness.ask({ path })).rejects.toMatchObject({ code: 'ECONNRESET' });
    }
    const { socket, text } = await harness.dial();
    const failed = new Promise<string | undefined>((resolve) =>
      socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code)),
    );
    socket.write('GET /old HTTP/1.0\r\n\r\n');
    expect(await failed).toBe('ECONNRESET');
    expect(text()).toContain('200 OK');
    expect(harness.log.filter(({ msg }) => msg === 'request failed')).toHaveLength(3);
  });

  test('that comes before the request is whole reaches the client', async () => {
    await inFrontOf((_req, res) => {
      res.writeHead(413);
      res.end('too large');
    });
    const { socket, text } = await harness.dial();
    socket.write('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nabc');
    await eventually('the answer', () => text().includes('too large'));
    await eventually('the lease given back', () => harness.agent.released.length === 1);
  });

  test('that is no HTTP is a 502', async () => {
    await inFrontOfRaw(afterHead((socket) => socket.end('220 smtp.example.org ESMTP\r\n')));
    const got = await harness.ask();
    expect(got.status).toBe(502);
    expect(JSON.parse(got.body).error).toMatchObject({ code: 'UPSTREAM_FAILED' });
    expect(harness.agent.acquires).toHaveLength(1);
  });
});

describe('an upgrade', () => {
  test('to WebSocket carries messages both ways and ends with its close handshake', async () => {
    await inFrontOf(
      () => {},
      (server) => {
        const sockets = new WebSocketServer({ server });
        sockets.on('connection', (socket, req) => {
          socket.send(`hello ${req.url}`);
          socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
        });
      },
    );
    const client = new WebSocket(`ws://127.0.0.1:${harness.port}/chat?x=1`);
    const messages: string[] = [];
    client.on('message', (data) => messages.push(data.toString()));
    await eventually('the greeting', () => messages.length === 1);
    const large = 'z'.repeat(1024 * 1024);
    client.send('one');
    client.send(large);
    await eventually('the echo', () => messages.length === 3);
    expect(messages).toEqual(['hello /chat?x=1', 'one', large]);
    // A quiet socket counts as in flight.
    await delay(1_200);
    expect(harness.agent.held.size).toBe(1);
    const closed = new Promise<number>((resolve) => client.once('close', resolve));
    client.close(4001, 'bye');
    expect(await closed).toBe(4001);
    await eventually('the lease given back', () => harness.agent.released.length === 1);
    expect(await harness.metrics()).toContain('requests_total{service="demo",status="101"} 1');
  });

  test('that the instance ends ends at the client, and the other way round', async () => {
    const ends: string[] = [];
    await inFrontOfRaw(
      afterHead((socket, head) => {
        socket.write('HTTP/1.1 101 Sure\r\nConnection: Upgrade\r\nUpgrade: odd/1\r\n\r\nwelcome');
        socket.on('close', () => ends.push('instance'));
        if (head.startsWith('GET /end')) setTimeout(() => socket.end('last words'), 50);
      }),
    );
    const first = await harness.dial();
    first.socket.write('GET /end HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: odd/1\r\n\r\n');
    await first.ended;
    expect(first.text()).toMatch(
      /^HTTP\/1\.1 101 Sure\r\nConnection: Upgrade\r\nUpgrade: odd\/1\r\n\r\nwelcomelast words$/,
    );
    const second = await harness.dial();
    second.socket.write('GET /stay HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: odd/1\r\n\r\n');
    await eventually('the welcome', () => second.text().includes('welcome'));
    second.socket.destroy();
    await eventually('the end at the instance', () => ends.length === 2);
  });

  test('sends on what the client sent ahead', async () => {
    await inFrontOfRaw((socket) => {
      let text = '';
      socket.on('data', (chunk) => {
        text += chunk.toString('latin1');
        if (text.includes('\r\n\r\n') && !text.includes('ahead')) {
          socket.write('HTTP/1.1 101 Sure\r\nConnection: Upgrade\r\nUpgrade: odd/1\r\n\r\n');
        }
        if (text.endsWith('ahead and later')) socket.end('all there');
      });
    });
    const { socket, text, ended } = await harness.dial();
    socket.write('GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: odd/1\r\n\r\nahead');
    await eventually('the switch', () => text().includes('101 Sure'));
    socket.write(' and later');
    await ended;
    expect(text()).toMatch(/all there$/);
  });

  test('that the instance does not want is answered with what it says', async () => {
    const large = 'n'.repeat(3 * 1024 * 1024);
    await inFrontOf(
      () => {},
      (server) =>
        server.on('upgrade', (_req, socket) => {
          socket.end(`HTTP/1.1 403 No\r\nContent-Length: ${large.length}\r\nConnection: close\r\n\r\n${large}`);
        }),
    );
    const { socket, text, ended } = await harness.dial();
    socket.write('GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n');
    await ended;
    expect(text()).toMatch(/^HTTP\/1\.1 403 No\r\n/);
    expect(text().length).toBeGreaterThan(large.length);
  });

  test('that cannot be served gets an error, and its client closes', async () => {
    harness = await GatewayHarness.start(({ deny }) => deny('RESTORE_FAILED', 'no luck'));
    const client = new WebSocket(`ws://127.0.0.1:${harness.port}/`);
    const status = await new Promise<number | undefined>((resolve) => {
      client.on('unexpected-response', (_req, res) => resolve(res.statusCode));
    });
    expect(status).toBe(502);
  });

  test('whose client leaves while it waits leaves the queue', async () => {
    harness = await GatewayHarness.start(() => {});
    const { socket } = await harness.dial();
    socket.write('GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n');
    await eventually('the acquire', () => harness.agent.acquires.length === 1);
    socket.end();
    await eventually('its end', () => harness.agent.cancelled.length === 1);
  });

  test('to h2c, or with a body, is taken for an ordinary request on a connection that stays', async () => {
    await inFrontOf(async (req, res) => {
      let body = '';
      for await (const chunk of req) body += chunk;
      res.end(`[${req.headers.upgrade} ${req.headers['http2-settings']} ${body}]`);
    });
    const { socket, text, ended } = await harness.dial();
    const upgrade = 'Host: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n';
    socket.write(`POST / HTTP/1.1\r\n${upgrade}Content-Length: 3\r\n\r\nabc`);
    await eventually('the first answer', () => text().includes('[undefined undefined abc]'));
    socket.write(`POST / HTTP/1.1\r\n${upgrade}Transfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n`);
    await eventually('the second answer', () => text().includes('[undefined undefined de]'));
    socket.write('GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n');
    await ended;
    expect(text()).toContain('[undefined undefined ]');
  });

  test('to h2c with each of many requests over one connection leaves nothing behind on it', async () => {
    const warnings: Error[] = [];
    const onWarning = (warning: Error) => warnings.push(warning);
    process.on('warning', onWarning);
    await inFrontOf((_req, res) => res.end('done!'));
    const { socket, text } = await harness.dial();
    for (let round = 1; round <= 20; round += 1) {
      socket.write('GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n');
      await eventually(`answer ${round}`, () => text().split('done!').length === round + 1);
    }
    process.off('warning', onWarning);
    expect(warnings).toEqual([]);
  });
});

describe('a request that could be understood in two ways', () => {
  test.each([
    [
      'Content-Length and Transfer-Encoding',
      'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    ],
    ['two lengths', 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab'],
    ['a length that is no number', 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc'],
    ['two equal hosts', 'GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n'],
    ['two hosts', 'GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n'],
    ['no host', 'GET / HTTP/1.1\r\nAccept: x\r\n\r\n'],
    ['a host with a path', 'GET / HTTP/1.1\r\nHost: a/b\r\n\r\n'],
    ['two hosts in one', 'GET / HTTP/1.1\r\nHost: a, b\r\n\r\n'],
    ['a target on another host', 'GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n'],
    ['a target of another scheme', 'GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n'],
    ['an unknown coding', 'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n'],
    ['a coding after chunked', 'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n'],
    ['a coding before chunked', 'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n'],
    [
      'two codings',
      'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    ],
    ['a quoted coding', 'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n'],
    ['an empty coding', 'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n'],
    ['the coding identity', 'GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n'],
    ['a coding in HTTP/1.0', 'POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n'],
    ['a space before a colon', 'GET / HTTP/1.1\r\nHost : a\r\n\r\n'],
    ['a folded header', 'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n'],
    ['a NUL in a header', 'GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n'],
    [
      'a coding hidden behind 1,500 headers',
      `POST / HTTP/1.1\r\nHost: a\r\n${'a:\r\n'.repeat(1_500)}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n`,
    ],
    [
      'an upgrade with two hosts',
      'GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n',
    ],
  ])('(%s) is refused with 400 and closed, and the instance sees nothing', async (_name, bytes) => {
    let seen = 0;
    await inFrontOfRaw(() => {
      seen += 1;
    });
    const { socket, text, ended } = await harness.dial();
    socket.write(`${bytes}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n`, 'latin1');
    await ended;
    expect(text()).toMatch(/^HTTP\/1\.1 400 Bad Request\r\n/);
    expect(text().match(/HTTP\/1\.1/g)).toHaveLength(1);
    expect(seen).toBe(0);
    expect(harness.agent.acquires).toEqual([]);
  });

  test('is not one whose absolute target names the same host: it is passed on in the usual form', async () => {
    await inFrontOf((req, res) => res.end(req.url));
    const { socket, text, ended } = await harness.dial();
    socket.write('GET http://A:80/x?y HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n');
    await ended;
    expect(text()).toMatch(/\/x\?y$/);
  });

  test('and headers that are too large get 431', async () => {
    await inFrontOf((_req, res) => res.end());
    const got = await harness.ask({ headers: { 'X-Large': 'x'.repeat(20_000) } });
    expect(got.status).toBe(431);
    expect(JSON.parse(got.body).error.code).toBe('BAD_REQUEST');
  });
});
