import { setMaxListeners } from 'node:events';

/** Something under way. */
interface Flight<T> {
  /** What it is: only the same is joined. */
  what: string;
  result: Promise<T>;
  /** Those that wait for it. */
  waiting: number;
  stop: AbortController;
}

/**
 * Work of which no two run at a time for one subject. Whoever wants what is under way already waits for that; whoever wants
 * something else of the same subject comes after it.
 */
export class Flights<T> {
  readonly #flights = new Map<string, Flight<T>>();

  /**
   * Runs `work`, or joins it. It is stopped when nobody waits for it any more. `joined` tells whether somebody else began it.
   * Errors: those of the work, the signal's reason.
   */
  async join(
    subject: string,
    what: string,
    signal: AbortSignal,
    work: (signal: AbortSignal) => Promise<T>,
  ): Promise<{ value: T; joined: boolean }> {
    for (;;) {
      signal.throwIfAborted();
      const flight = this.#flights.get(subject);
      if (flight === undefined)
        return { value: await this.#wait(this.#begin(subject, what, work), signal), joined: false };
      // One that nobody waits for is ending.
      if (flight.what === what && !flight.stop.signal.aborted) {
        return { value: await this.#wait(flight, signal), joined: true };
      }
      await orAborted(
        flight.result.then(
          () => {},
          () => {},
        ),
        signal,
      );
    }
  }

  #begin(subject: string, what: string, work: (signal: AbortSignal) => Promise<T>): Flight<T> {
    const stop = new AbortController();
    setMaxListeners(0, stop.signal);
    const result = work(stop.signal).finally(() => this.#flights.delete(subject));
    const flight = { what, result, waiting: 0, stop };
    this.#flights.set(subject, flight);
    return flight;
  }

  async #wait(flight: Flight<T>, signal: AbortSignal): Promise<T> {
    flight.waiting++;
    try {
      return await orAborted(flight.result, signal);
    } finally {
      if (--flight.waiting === 0 && signal.aborted) flight.stop.abort(signal.reason);
    }
  }
}

/** A promise, or the signal's reason as soon as it aborts. */
async function orAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  let onAbort = () => {};
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}
