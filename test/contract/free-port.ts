import net from 'node:net';

/** First and number of ports that are tried: below those that the kernel gives to outgoing connections, which come and go. */
const FIRST = 24_000;
const COUNT = 8_000;

/** A port that nobody listens on, and that no connection of another test will take in the meantime. */
export async function freePort(): Promise<number> {
  for (let tries = 0; tries < 100; tries++) {
    const port = FIRST + Math.floor(Math.random() * COUNT);
    if (await isFree(port)) return port;
  }
  throw new Error(`none of 100 ports from ${FIRST} to ${FIRST + COUNT - 1} was free`);
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = net.createServer();
    server.once('error', () => resolve(false));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });
}
