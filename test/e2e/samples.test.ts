import http from 'node:http';
import { beforeAll, describe, expect, it } from 'vitest';
import WebSocket from 'ws';
import { copyOf, deploy } from './deploy.js';
import { getJson, request, sleepService, wokenBy } from './support.js';

/** The samples, on ports that a demo on this machine does not have. */
const PORTS = { flask: 8241, gs_spring_boot: 8242, node_stream: 8243 };
const url = (sample: keyof typeof PORTS) => `http://localhost:${PORTS[sample]}`;
const STREAM = url('node_stream');

beforeAll(async () => {
  await Promise.all(
    Object.entries(PORTS).map(async ([name, host_port]) => deploy(await copyOf(`sample/${name}`, { host_port }))),
  );
}, 900_000);

describe('flask', () => {
  it('looks a key up in the dictionary that it built before the dump', async () => {
    const { answer } = await wokenBy('flask', () => getJson(`${url('flask')}/?key=888888`));
    expect(answer).toEqual({ value: 888888 });
  });

  it("gives its client the service's own errors unchanged", async () => {
    const missing = await request(`${url('flask')}/?key=1000000`);
    expect(missing.status).toBe(404);
    expect(JSON.parse(missing.body)).toEqual({ error: 'there is no entry 1000000; keys go from 0 to 999999' });
    expect((await request(`${url('flask')}/?key=x`)).status).toBe(400);
  });
});

describe('gs_spring_boot', () => {
  it('greets', async () => {
    const { answer } = await wokenBy('gs_spring_boot', () => request(url('gs_spring_boot')));
    expect(answer).toMatchObject({ status: 200, body: 'Greetings from Spring Boot!' });
  });
});

describe('node_stream', () => {
  it('answers JSON, as a user other than root, with what it had at the dump', async () => {
    const first = await wokenBy('node_stream', () => getJson(STREAM));
    expect(first.answer).toMatchObject({ service: 'node_stream', uid: 10001, pid: 1 });
    const second = await wokenBy('node_stream', () => getJson(STREAM));
    expect(second.answer).toEqual(first.answer);
  });

  it('sends events one by one, as they happen', async () => {
    const { answer: pieces } = await wokenBy('node_stream', () => piecesOf(`${STREAM}/events?count=4&interval=300`));
    expect(pieces.map(({ text }) => text)).toEqual(
      [1, 2, 3, 4].map((number) => `id: ${number}\nevent: tick\ndata: {"number":${number},"of":4}\n\n`),
    );
    for (const [index, { at }] of pieces.entries()) {
      if (index > 0) expect(at - (pieces[index - 1]?.at ?? 0)).toBeGreaterThan(150);
    }
  });

  it('answers HEAD with headers only', async () => {
    expect(await request(`${STREAM}/events`, { method: 'HEAD' })).toMatchObject({
      status: 200,
      headers: { 'content-type': 'text/event-stream' },
      body: '',
    });
  });

  it('echoes a body piece by piece while it is still being sent', async () => {
    await sleepService('node_stream');
    const asked = http.request(`${STREAM}/echo`, {
      method: 'POST',
      agent: false,
      headers: { 'content-type': 'text/plain' },
    });
    const answered = new Promise<http.IncomingMessage>((resolve, reject) => {
      asked.once('response', resolve).once('error', reject);
    });
    const pieces = ['first ', 'second ', 'x'.repeat(300_000)];
    asked.write(pieces[0]);
    const response = await answered;
    expect(response).toMatchObject({ statusCode: 200, headers: { 'content-type': 'text/plain' } });
    const echo = response.setEncoding('utf8')[Symbol.asyncIterator]();
    const received = async (length: number) => {
      let text = '';
      while (text.length < length) text += (await echo.next()).value;
      return text;
    };
    expect(await received(6)).toBe(pieces[0]);
    for (const piece of pieces.slice(1)) {
      asked.write(piece);
      expect((await received(piece.length)) === piece).toBe(true);
    }
    asked.end();
    expect((await echo.next()).done).toBe(true);
  });

  it('speaks WebSocket, text and binary, and wakes for it', async () => {
    const { answer } = await wokenBy('node_stream', async () => {
      const socket = new WebSocket(`ws://localhost:${PORTS.node_stream}/ws`);
      await new Promise((resolve, reject) => socket.once('open', resolve).once('error', reject));
      const echo = (message: string | Buffer) =>
        new Promise<{ data: Buffer; isBinary: boolean }>((resolve) => {
          socket.once('message', (data, isBinary) => resolve({ data: data as Buffer, isBinary }));
          socket.send(message);
        });
      const [text, binary] = [await echo('hello'), await echo(Buffer.alloc(100_000, 7))];
      const closed = new Promise((resolve) => socket.once('close', resolve));
      socket.close(1000);
      return { text, binary, closed: await closed };
    });
    expect(answer.text).toEqual({ data: Buffer.from('hello'), isBinary: false });
    expect(answer.binary.isBinary).toBe(true);
    expect(answer.binary.data.equals(Buffer.alloc(100_000, 7))).toBe(true);
    expect(answer.closed).toBe(1000);
  });
});

/** What an answer's body came in, with the time of each piece. */
function piecesOf(address: string): Promise<{ text: string; at: number }[]> {
  return new Promise((resolve, reject) => {
    const pieces: { text: string; at: number }[] = [];
    http
      .get(address, { agent: false }, (response) => {
        response.setEncoding('utf8');
        response.on('data', (text: string) => pieces.push({ text, at: performance.now() }));
        response.on('end', () => resolve(pieces));
        response.on('error', reject);
      })
      .on('error', reject);
  });
}
