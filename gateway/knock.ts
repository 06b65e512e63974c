import net from 'node:net';
import { sleep } from '../proto/rpc/deadline.js';
import { InitlessError } from '../proto/rpc/errors.js';
import { splitAddress } from './address.js';
import { Backoff } from './backoff.js';

/** One attempt may take this long, milliseconds: a machine that is away does not even refuse. */
const ATTEMPT_MS = 1_000;
/** The first pause between attempts, milliseconds: whoever is restarted is back in a moment. */
const FIRST_PAUSE_MS = 20;
/** The longest pause while somebody may still be restarting, milliseconds, and for how long that is. */
const QUICK_PAUSE_MS = 200;
const QUICK_MS = 15_000;
/** The longest pause after that, milliseconds. */
const SLOW_PAUSE_MS = 2_000;

/**
 * Waits until somebody accepts connections at "HOST:PORT". gRPC's own channels, which share their pauses with those that
 * were closed, find a peer that was restarted up to seconds late.
 *
 * @param since when the peer was lost, performance.now().
 * @param onRefused called with the reason of each attempt that fails.
 * Errors: the signal's reason.
 */
export async function knock(
  address: string,
  since: number,
  signal: AbortSignal,
  onRefused: (error: Error) => void,
): Promise<void> {
  const backoff = new Backoff(FIRST_PAUSE_MS, SLOW_PAUSE_MS);
  for (;;) {
    const error = await attemptToConnect(address, ATTEMPT_MS, signal);
    signal.throwIfAborted();
    if (error === undefined) return;
    onRefused(error);
    const most = performance.now() - since < QUICK_MS ? QUICK_PAUSE_MS : SLOW_PAUSE_MS;
    await sleep(Math.min(backoff.next(), most), signal);
  }
}

/** Resolves with the error if nobody accepts a connection at "HOST:PORT" within so many milliseconds. */
export function attemptToConnect(address: string, ms: number, signal?: AbortSignal): Promise<Error | undefined> {
  return new Promise((resolve) => {
    const socket = net.connect({ ...splitAddress(address), signal });
    const end = (error?: Error) => {
      clearTimeout(timer);
      socket.destroy();
      resolve(error);
    };
    const timer = setTimeout(() => end(new InitlessError('DEADLINE', `no connection within ${ms} ms`)), ms);
    socket.once('connect', () => end());
    socket.on('error', end);
  });
}
