import { sleep } from '../../proto/rpc/deadline.js';

/** What the rate is kept with. */
export interface RateClock {
  /** Milliseconds since some moment; never goes back. */
  now(): number;
  sleep(ms: number, signal: AbortSignal): Promise<void>;
}

const CLOCK: RateClock = { now: () => performance.now(), sleep };
/** How much may go at once after a pause: what the rate allows in so many milliseconds. */
const BURST_MS = 250;

/** One bound on the bytes per second of everything that goes through it: a bucket of tokens that may be overdrawn once. */
export class Rate {
  readonly #clock: RateClock;
  #perSecond = 0;
  #tokens = 0;
  #filledAt: number;
  /** Whoever asks is served in order, so that none of several copies starves. */
  #turn: Promise<void> = Promise.resolve();

  constructor(clock: RateClock = CLOCK) {
    this.#clock = clock;
    this.#filledAt = clock.now();
  }

  /** The bound from now on, bytes per second; 0: none. */
  use(perSecond: number): void {
    this.#fill();
    this.#perSecond = perSecond;
  }

  /** Waits until so many bytes may go. Errors: the signal's reason. */
  async take(bytes: number, signal: AbortSignal): Promise<void> {
    const before = this.#turn;
    let done = () => {};
    this.#turn = new Promise((resolve) => {
      done = resolve;
    });
    try {
      await before;
      signal.throwIfAborted();
      for (;;) {
        this.#fill();
        if (this.#perSecond === 0) return;
        if (this.#tokens > 0) break;
        // In steps, so that another rate holds for those that wait already.
        const ms = Math.min(((1 - this.#tokens) / this.#perSecond) * 1000, 1_000);
        await this.#clock.sleep(Math.max(ms, 1), signal);
      }
      this.#tokens -= bytes;
    } finally {
      done();
    }
  }

  #fill(): void {
    const now = this.#clock.now();
    const most = (this.#perSecond * BURST_MS) / 1000;
    this.#tokens = Math.min(most, this.#tokens + ((now - this.#filledAt) / 1000) * this.#perSecond);
    this.#filledAt = now;
  }
}
