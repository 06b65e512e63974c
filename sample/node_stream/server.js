'use strict';

// What a gateway must not break: plain JSON, a stream of events, a body streamed back while it arrives, a WebSocket.

const http = require('node:http');
const { pipeline } = require('node:stream');
const { WebSocketServer } = require('ws');

const PORT = 8080;
const startedAt = new Date().toISOString();
let requests = 0;

const routes = {
  'GET /': home,
  'GET /events': events,
  'POST /echo': echo,
  'GET /healthz': (_request, response) => response.end('ok\n'),
};

const server = http.createServer((request, response) => {
  requests += 1;
  const [path, query] = request.url.split('?', 2);
  const method = request.method === 'HEAD' ? 'GET' : request.method;
  const route = routes[`${method} ${path}`];
  if (route === undefined) json(response, 404, { error: `no ${request.method} ${path} here` });
  else route(request, response, new URLSearchParams(query));
});

function json(response, status, body) {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(`${JSON.stringify(body)}\n`);
}

function home(_request, response) {
  json(response, 200, {
    service: 'node_stream',
    node: process.version,
    pid: process.pid,
    uid: process.getuid(),
    startedAt,
    requests,
  });
}

/** GET /events?count=10&interval=1000: `count` server-sent events, one each `interval` milliseconds, the first at once. */
function events(request, response, params) {
  const count = bounded(params.get('count') ?? '10', 1, 1000);
  const interval = bounded(params.get('interval') ?? '1000', 1, 60_000);
  if (count === undefined || interval === undefined) {
    json(response, 400, { error: 'count is a number from 1 to 1000, interval one from 1 to 60000 (milliseconds)' });
    return;
  }
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
  if (request.method === 'HEAD') {
    response.end();
    return;
  }
  let sent = 0;
  const send = () => {
    sent += 1;
    response.write(`id: ${sent}\nevent: tick\ndata: ${JSON.stringify({ number: sent, of: count })}\n\n`);
    if (sent === count) response.end();
    else timer = setTimeout(send, interval);
  };
  let timer = setTimeout(send, 0);
  response.on('close', () => clearTimeout(timer));
}

function bounded(text, least, most) {
  const number = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
  return number >= least && number <= most ? number : undefined;
}

/** POST /echo: the body, sent back as it comes in. */
function echo(request, response) {
  response.writeHead(200, { 'content-type': request.headers['content-type'] ?? 'application/octet-stream' });
  pipeline(request, response, (error) => {
    if (error) console.error(`echo ended early: ${error.message}`);
  });
}

// WebSocket echo on /ws. An upgrade of any other path is refused with 400 by ws itself.
const sockets = new WebSocketServer({ server, path: '/ws' });
sockets.on('connection', (socket) => {
  socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
  socket.on('error', (error) => console.error(`WebSocket: ${error.message}`));
});

// As process 1, Node would ignore SIGTERM.
process.on('SIGTERM', () => process.exit(0));

server.listen(PORT, '0.0.0.0', () => console.log(`listening on ${PORT}`));
