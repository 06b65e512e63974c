import http from 'node:http';
import net, { type AddressInfo } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, describe, expect, test } from 'vitest';
import { Fill } from '../../gateway/proxy/fill.js';
import { forward, type Outcome } from '../../gateway/proxy/forward.js';
import { SentBody } from '../../gateway/proxy/sent-body.js';
import { Upstream } from '../../gateway/proxy/upstream.js';
import { eventually, GatewayHarness, type Got } from './gateway-harness.js';

let harness: GatewayHarness;
afterEach(() => harness?.close());

/** Long enough for whatever is let through by mistake to arrive. */
const A_WHILE_MS = 150;

/**
 * A gateway whose agent grants an instance that is still being filled, and after it one that has all of its memory and
 * says "whole".
 */
async function lazily(
  handler: http.RequestListener,
  prepare?: (server: http.Server) => void,
): Promise<{ lease: () => string }> {
  let lease = '';
  let filling = '';
  let whole = '';
  harness = await GatewayHarness.start(({ grant, grantFilling }) => {
    if (lease === '') lease = grantFilling('demo-1', filling);
    else grant('demo-2', whole);
  });
  filling = await harness.upstream(handler, prepare);
  whole = await harness.upstream((req, res) => req.resume().on('end', () => res.end('whole')));
  return { lease: () => lease };
}

/** What came of a request so far; undefined: nothing. */
function watched(answer: Promise<Got>): { got: () => Got | undefined; answer: Promise<Got> } {
  let got: Got | undefined;
  void answer.then((came) => {
    got = came;
  });
  return { got: () => got, answer };
}

describe('an answer of an instance whose memory is still being filled', () => {
  test('is kept until its agent says that all of it is there, and is then what the instance said', async () => {
    let seen = 0;
    const { lease } = await lazily((_req, res) => {
      seen += 1;
      res.writeHead(201, { 'X-Kind': 'held', Trailer: 'X-Sum' });
      res.write('one ');
      res.addTrailers({ 'X-Sum': '7' });
      res.end('two');
    });
    const { got, answer } = watched(harness.ask());
    await eventually('the request at the instance', () => seen === 1);
    await delay(A_WHILE_MS);
    expect(got()).toBeUndefined();
    harness.agent.endFill(lease());
    expect(await answer).toMatchObject({
      status: 201,
      headers: { 'x-kind': 'held' },
      body: 'one two',
      trailers: { 'x-sum': '7' },
    });
    // From now on it is an instance like any other.
    expect(await harness.ask()).toMatchObject({ status: 201 });
    expect(harness.agent.acquires).toHaveLength(1);
  });

  test('is kept where it is when it is large: the instance has to wait', async () => {
    const piece = Buffer.alloc(64 * 1024, 'x');
    let written = 0;
    const { lease } = await lazily((_req, res) => {
      const write = () => {
        while (written < 64 * 1024 * 1024) {
          written += piece.length;
          if (!res.write(piece)) return void res.once('drain', write);
        }
        res.end();
      };
      write();
    });
    const { got, answer } = watched(harness.ask());
    await eventually('the answer to begin', () => written > 0);
    await delay(A_WHILE_MS);
    const before = written;
    await delay(A_WHILE_MS);
    expect(written).toBe(before);
    expect(written).toBeLessThan(16 * 1024 * 1024);
    expect(got()).toBeUndefined();
    harness.agent.endFill(lease());
    expect((await answer).body).toHaveLength(64 * 1024 * 1024);
  });

  test('never gets out when the fill fails: another instance answers', async () => {
    let seen = 0;
    const { lease } = await lazily((_req, res) => {
      seen += 1;
      res.end('wrong');
    });
    const answers = [harness.ask(), harness.ask(), harness.ask({ method: 'DELETE' })];
    await eventually('the requests at the instance', () => seen === 3);
    await delay(A_WHILE_MS);
    harness.agent.endFill(lease(), 'the daemon was killed');
    harness.agent.revoke(lease());
    expect((await Promise.all(answers)).map(({ status, body }) => `${status} ${body}`)).toEqual(
      Array(3).fill('200 whole'),
    );
    expect(harness.agent.acquires).toHaveLength(2);
    expect(harness.agent.acquires[1]?.suspects).toEqual(['demo-1']);
    expect(await harness.metrics()).toContain('retries_total{service="demo"} 3\n');
  });

  test('never gets out when the fill fails either where the request must not be repeated: it fails', async () => {
    let seen = 0;
    const { lease } = await lazily((_req, res) => {
      seen += 1;
      res.end('wrong');
    });
    const answer = harness.ask({ method: 'POST', body: 'abc' });
    await eventually('the request at the instance', () => seen === 1);
    harness.agent.endFill(lease(), 'the daemon of demo-1 was killed');
    harness.agent.revoke(lease());
    const { status, body } = await answer;
    expect(status).toBe(502);
    expect(JSON.parse(body).error).toMatchObject({
      code: 'UPSTREAM_FAILED',
      message: expect.stringMatching(/demo-1 of demo did not answer the request: the daemon of demo-1 was killed/),
    });
  });

  test.each([
    ['in the middle of its head', 'HTTP/1.1 200 OK\r\nContent-'],
    ['in the middle of its body', 'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nwrong'],
  ])('that the instance breaks off %s is asked for again elsewhere', async (_where, text) => {
    let count = 0;
    let filling = '';
    let whole = '';
    harness = await GatewayHarness.start(({ grant, grantFilling }) => {
      if (count++ === 0) grantFilling('demo-1', filling);
      else grant('demo-2', whole);
    });
    filling = await harness.rawUpstream((socket) => {
      socket.once('data', () => {
        socket.write(text);
        setTimeout(() => socket.resetAndDestroy(), 50);
      });
    });
    whole = await harness.upstream((_req, res) => res.end('whole'));
    expect(await harness.ask()).toMatchObject({ status: 200, body: 'whole' });
  });

  test.each([
    ['counts once the fill is complete', undefined, 'closed'],
    ['does not count when the fill fails', 'the daemon was killed', 'whole'],
  ])('that ended with its connection %s', async (_what, failure, body) => {
    let closed = 0;
    const { lease } = await lazily(
      (_req, res) => void res.writeHead(200, { Connection: 'close' }).end('closed'),
      (server) => server.on('connection', (socket) => socket.on('close', () => (closed += 1))),
    );
    const { got, answer } = watched(harness.ask());
    await eventually('the connection to be closed', () => closed === 1);
    await delay(A_WHILE_MS);
    expect(got()).toBeUndefined();
    harness.agent.endFill(lease(), failure);
    if (failure) harness.agent.revoke(lease());
    expect(await answer).toMatchObject({ status: 200, body });
  });

  test('is kept also when it is a stream of events: not even its head gets out', async () => {
    let stream: http.ServerResponse | undefined;
    const { lease } = await lazily((_req, res) => {
      stream = res;
      res.writeHead(200, { 'Content-Type': 'text/event-stream' });
      res.write('data: 1\n\n');
    });
    const { socket, text } = await harness.dial();
    socket.write('GET / HTTP/1.1\r\nHost: demo\r\n\r\n');
    await eventually('the request at the instance', () => stream !== undefined);
    await delay(A_WHILE_MS);
    expect(text()).toBe('');
    harness.agent.endFill(lease());
    await eventually('the first event', () => text().includes('data: 1\n\n'));
    stream?.write('data: 2\n\n');
    await eventually('the second event', () => text().includes('data: 2\n\n'));
    socket.destroy();
  });

  test('is kept with what comes before it: hints, and the word to go on with the body', async () => {
    const { lease } = await lazily(
      () => {},
      (server) =>
        server.on('checkContinue', (req, res) => {
          res.writeEarlyHints({ link: '</a.css>; rel=preload' });
          res.writeContinue();
          req.resume().on('end', () => res.end('done'));
        }),
    );
    const { socket, text } = await harness.dial();
    socket.write('PUT / HTTP/1.1\r\nHost: demo\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n');
    await eventually('the grant', () => lease() !== '');
    await delay(A_WHILE_MS);
    expect(text()).toBe('');
    // The gateway's own word, as to a server that does not know Expect.
    await eventually('the word to go on', () => text() === 'HTTP/1.1 100 Continue\r\n\r\n');
    socket.write('abc');
    await delay(A_WHILE_MS);
    expect(text()).toBe('HTTP/1.1 100 Continue\r\n\r\n');
    harness.agent.endFill(lease());
    await eventually('the answer', () => text().endsWith('done') || text().includes('\r\ndone\r\n'));
    expect(text()).not.toContain('103');
    socket.destroy();
  });

  test('is not waited for any more when the client has gone', async () => {
    let closed = 0;
    const { lease } = await lazily(
      (_req, res) => void res.end('held'),
      (server) => server.on('connection', (socket) => socket.on('close', () => (closed += 1))),
    );
    const { socket } = await harness.dial();
    socket.write('GET / HTTP/1.1\r\nHost: demo\r\n\r\n');
    await eventually('the grant', () => lease() !== '');
    await delay(A_WHILE_MS);
    socket.destroy();
    await eventually('the end of its connection', () => closed === 1);
    await eventually('its lease back', () => harness.agent.released.includes(lease()));
    harness.agent.endFill(lease());
    expect(await harness.ask()).toMatchObject({ body: 'whole' });
  });
});

describe('a whole answer of an instance whose memory is still being filled', () => {
  test('gets out once its agent has confirmed that what fills it is there still', async () => {
    const { lease } = await lazily((req, res) => {
      if (req.method === 'HEAD') return void res.end();
      res.writeHead(200, { Trailer: 'X-Sum' });
      res.write(`${req.url} `);
      res.addTrailers({ 'X-Sum': '7' });
      res.end('whole answer');
    });
    harness.agent.confirms = true;
    expect(await harness.ask({ path: '/1' })).toMatchObject({ body: '/1 whole answer', trailers: { 'x-sum': '7' } });
    expect(await harness.ask({ path: '/2', method: 'HEAD' })).toMatchObject({ status: 200, body: '' });
    expect(await harness.ask({ path: '/3', method: 'POST', body: 'x' })).toMatchObject({ body: '/3 whole answer' });
    expect(harness.agent.confirmsAsked).toEqual([1, 2, 3].map((number) => `${lease()} ${number}`));
    // Nothing is asked about once all of it is there.
    harness.agent.endFill(lease());
    expect(await harness.ask()).toMatchObject({ status: 200 });
    expect(harness.agent.confirmsAsked).toHaveLength(3);
  });

  test('is not asked about before all of it is there', async () => {
    let rest: (() => void) | undefined;
    await lazily((_req, res) => {
      res.writeHead(200, { 'Content-Length': '6' });
      res.write('abc');
      rest = () => res.end('def');
    });
    harness.agent.confirms = true;
    const { got, answer } = watched(harness.ask());
    await eventually('its beginning', () => rest !== undefined);
    await delay(A_WHILE_MS);
    expect(harness.agent.confirmsAsked).toEqual([]);
    expect(got()).toBeUndefined();
    rest?.();
    expect(await answer).toMatchObject({ status: 200, body: 'abcdef' });
  });

  test('never gets out when instead of that the fill is said to have failed', async () => {
    const { lease } = await lazily((_req, res) => void res.end('wrong'));
    const { got, answer } = watched(harness.ask());
    await eventually('the question', () => harness.agent.confirmsAsked.length === 1);
    await delay(A_WHILE_MS);
    expect(got()).toBeUndefined();
    harness.agent.endFill(lease(), 'the daemon was killed');
    harness.agent.revoke(lease());
    expect(await answer).toMatchObject({ status: 200, body: 'whole' });
  });

  test('is asked about again when the agent was restarted in between', async () => {
    const { lease } = await lazily((_req, res) => void res.end('right'));
    const { answer } = watched(harness.ask());
    await eventually('the question', () => harness.agent.confirmsAsked.length === 1);
    await harness.agent.crash();
    harness.agent.confirms = true;
    await harness.agent.boot();
    expect(await answer).toMatchObject({ status: 200, body: 'right' });
    expect(harness.agent.confirmsAsked).toEqual([`${lease()} 1`, `${lease()} 1`]);
  });
});

describe('a request to upgrade, to an instance whose memory is still being filled', () => {
  const ASK = 'GET / HTTP/1.1\r\nHost: demo\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n';
  const consent = (name: string) => (socket: net.Socket) => {
    socket.once('data', () => {
      socket.write(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n${name} `);
      socket.on('data', (chunk) => socket.write(chunk));
    });
  };

  async function lazily(): Promise<{ lease: () => string; seen: () => number }> {
    let lease = '';
    let seen = 0;
    let filling = '';
    let whole = '';
    harness = await GatewayHarness.start(({ grant, grantFilling }) => {
      if (lease === '') lease = grantFilling('demo-1', filling);
      else grant('demo-2', whole);
    });
    filling = await harness.rawUpstream((socket) => {
      socket.once('data', () => (seen += 1));
      consent('first')(socket);
    });
    whole = await harness.rawUpstream(consent('second'));
    return { lease: () => lease, seen: () => seen };
  }

  test('is consented to once all of it is there, and what was said meanwhile follows', async () => {
    const { lease, seen } = await lazily();
    const { socket, text } = await harness.dial();
    socket.write(ASK);
    await eventually('the request at the instance', () => seen() === 1);
    socket.write('early ');
    await delay(A_WHILE_MS);
    expect(text()).toBe('');
    harness.agent.endFill(lease());
    await eventually('both ways', () => text().endsWith('first early '));
    socket.write('late');
    await eventually('more', () => text().endsWith('early late'));
    socket.destroy();
  });

  test('goes to another instance when the fill fails', async () => {
    const { lease, seen } = await lazily();
    const { socket, text } = await harness.dial();
    socket.write(ASK);
    await eventually('the request at the instance', () => seen() === 1);
    await delay(A_WHILE_MS);
    harness.agent.endFill(lease(), 'the daemon was killed');
    harness.agent.revoke(lease());
    await eventually('the consent of the other', () => text().endsWith('second '));
    expect(text()).not.toContain('first');
    socket.write('abc');
    await eventually('both ways', () => text().endsWith('second abc'));
    socket.destroy();
  });
});

describe('an answer that is held while the agent is restarted', () => {
  const held = async (name: string) => {
    let seen = 0;
    const { lease } = await lazily((_req, res) => {
      seen += 1;
      res.end(name);
    });
    const waiting = watched(harness.ask());
    await eventually('the request at the instance', () => seen === 1);
    await harness.agent.crash();
    await delay(A_WHILE_MS);
    expect(waiting.got()).toBeUndefined();
    return { lease, ...waiting };
  };
  const back = () => eventually('the gateway back', () => harness.agent.hellos.length === 2);

  test('is held on while the next one says that the fill goes on, and gets out when that says it is over', async () => {
    const { lease, got, answer } = await held('held');
    await harness.agent.boot();
    await back();
    await delay(A_WHILE_MS);
    expect(got()).toBeUndefined();
    harness.agent.endFill(lease());
    expect(await answer).toMatchObject({ status: 200, body: 'held' });
  });

  test('gets out when the fill was completed meanwhile', async () => {
    const { lease, answer } = await held('held');
    harness.agent.filling.delete(lease());
    await harness.agent.boot();
    expect(await answer).toMatchObject({ status: 200, body: 'held' });
    expect(harness.agent.named[1]).toMatchObject([{ leaseId: lease(), instance: 'demo-1', asleep: false }]);
  });

  test('never gets out when the next one has not found the instance', async () => {
    const { answer } = await held('wrong');
    harness.agent.held.clear();
    await harness.agent.boot();
    expect(await answer).toMatchObject({ status: 200, body: 'whole' });
  });
});

describe('an answer that is held', () => {
  test('for longer than it may is given up, with what was pending, and not asked for again', async () => {
    let asked = 0;
    const instance = http.createServer((_req, res) => {
      asked += 1;
      res.end('wrong');
    });
    await new Promise<void>((resolve) => instance.listen(0, '127.0.0.1', resolve));
    const upstream = new Upstream('demo-1', `127.0.0.1:${(instance.address() as AddressInfo).port}`);
    const outcome = await new Promise<Outcome>((resolve) => {
      const front = http.createServer((req, res) => {
        const passage = {
          req,
          res,
          service: 'demo',
          requestId: 'r',
          target: '/',
          framing: 'none' as const,
          sent: new SentBody(),
          awaitsContinue: false,
          switchProtocol: undefined,
        };
        const slot = {
          upstream,
          fresh: false,
          fill: new Fill(() => {}),
          holdMs: 100,
          stands: () => true,
          neverRan: () => false,
          onDoubt: () => () => {},
          release: () => {},
        };
        void forward(passage, slot).then((came) => {
          expect(res.headersSent).toBe(false);
          req.socket.destroy();
          front.close();
          resolve(came);
        });
      });
      front.listen(0, '127.0.0.1', () => {
        const { port } = front.address() as AddressInfo;
        const client = net.connect({ host: '127.0.0.1', port });
        client.on('error', () => {});
        client.write('GET / HTTP/1.1\r\nHost: demo\r\n\r\n');
      });
    });
    expect(outcome).toMatchObject({ kind: 'failed', again: false, error: { code: 'UPSTREAM_TIMEOUT' } });
    expect((outcome as Extract<Outcome, { kind: 'failed' }>).error.message).toMatch(
      /demo-1 of demo has answered, .* within 100 ms; pending was: its agent's word that no memory was missing/,
    );
    expect(asked).toBe(1);
    upstream.close();
    instance.close();
  });
});
