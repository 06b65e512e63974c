// A heap of Node whose every byte is known. test/e2e/heaps.ts says what pages hold and what is answered.
import http from 'node:http';
import zlib from 'node:zlib';

const PAGE = 4096;
const PAGES_MB = 2 ** 20 / PAGE;
const SPARE_MB = 16;
const OBJECTS = 20_000;
const COMMON = Buffer.from(Array.from({ length: PAGE }, (_, i) => (i * 167 + (i >> 8) * 59 + 1) & 255));

function page(key) {
  const bytes = Buffer.from(COMMON);
  bytes.writeBigUInt64LE(key);
  return bytes;
}

/** Pages from a key on, by turns in buffers of malloc's and in strings of V8's own heap. */
class Run {
  constructor(megabytes, key) {
    this.key = key;
    this.pieces = [];
    for (let left = megabytes * PAGES_MB; left > 0; ) {
      const number = this.pieces.length;
      const count = Math.min(left, 1 + (number % 32));
      const buffer = Buffer.allocUnsafeSlow(count * PAGE);
      for (let i = 0; i < count; i++) page(key + BigInt(i)).copy(buffer, i * PAGE);
      this.pieces.push(number % 2 === 0 ? buffer : buffer.toString('latin1'));
      key += BigInt(count);
      left -= count;
    }
    this.objects = Array.from({ length: OBJECTS }, (_, number) => ({ number, text: `number ${number}` }));
  }

  *buffers() {
    for (const piece of this.pieces) yield typeof piece === 'string' ? Buffer.from(piece, 'latin1') : piece;
  }

  wrong() {
    let wrong = 0;
    let key = this.key;
    for (const buffer of this.buffers()) {
      for (let at = 0; at < buffer.length; at += PAGE, key++) {
        if (buffer.compare(page(key), 0, PAGE, at, at + PAGE) !== 0) wrong++;
      }
    }
    return wrong + this.objects.filter((each, i) => each.number !== i || each.text !== `number ${i}`).length;
  }
}

const kept = new Run(Number(process.env.HEAP_MB ?? 64), 0n);
let spare = new Run(SPARE_MB, 1n << 40n);
let grown = [];
let nextKey = 2n << 40n;
const value = Array(1000).fill('as dumped');

function collect() {
  globalThis.gc();
  globalThis.gc();
}

/** New memory has to be zeros: of calloc, in several sizes. Gives the pieces that are not. */
function grow(megabytes) {
  const sizes = Array.from({ length: megabytes * 4 }, (_, i) => PAGE * (1 + (i % 100)));
  const fresh = [...sizes, megabytes * 2 ** 20].map((size) => new Uint8Array(size));
  const dirty = fresh.filter((piece) => piece.some((byte) => byte !== 0)).length;
  grown.push(new Run(megabytes, nextKey));
  nextKey += BigInt(megabytes * PAGES_MB);
  return dirty;
}

function answer(target) {
  const { pathname, searchParams } = new URL(target, 'http://localhost');
  switch (pathname) {
    case '/sum': {
      let crc = 0;
      let pages = 0;
      for (const buffer of kept.buffers()) {
        crc = zlib.crc32(buffer, crc);
        pages += buffer.length / PAGE;
      }
      return { pages, crc };
    }
    case '/check':
      return { wrong: [kept, ...(spare ? [spare] : []), ...grown].reduce((sum, run) => sum + run.wrong(), 0) };
    case '/gc':
      collect();
      return {};
    case '/grow':
      return { dirty: grow(Number(searchParams.get('mb'))) };
    case '/release':
      spare = undefined;
      grown = [];
      collect();
      return {};
    case '/write':
      value.fill(searchParams.get('value'));
      return {};
    case '/read':
      return { value: value.at(-1) };
    default:
      return undefined;
  }
}

http
  .createServer((request, response) => {
    if (request.url === '/healthz') return response.end('ok');
    const part = answer(request.url);
    if (part === undefined) response.statusCode = 404;
    return response.setHeader('Content-Type', 'application/json').end(JSON.stringify(part ? [part] : []));
  })
  .listen(8080, () => console.log('ready'));
