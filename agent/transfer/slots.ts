import { InitlessError } from '../../proto/rpc/errors.js';

/** A number of things at a time, and a bounded number that wait for their turn. */
export class Slots {
  readonly #most: number;
  readonly #mostWaiting: number;
  readonly #what: string;
  readonly #waiting: (() => void)[] = [];
  #taken = 0;

  /** @param what names them in errors: "copies that are sent". */
  constructor(most: number, mostWaiting: number, what: string) {
    this.#most = most;
    this.#mostWaiting = mostWaiting;
    this.#what = what;
  }

  /** Takes a slot, and gives what gives it back. Errors: BUSY when too many wait, the signal's reason. */
  async enter(signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted();
    if (this.#taken < this.#most) this.#taken++;
    else await this.#wait(signal);
    let left = false;
    return () => {
      if (left) return;
      left = true;
      // Handed over, so that nobody who comes now goes first.
      const next = this.#waiting.shift();
      if (next) next();
      else this.#taken--;
    };
  }

  #wait(signal: AbortSignal): Promise<void> {
    if (this.#waiting.length >= this.#mostWaiting) {
      throw new InitlessError('BUSY', `too many ${this.#what}: ${this.#most}, and ${this.#waiting.length} that wait`);
    }
    return new Promise((resolve, reject) => {
      const onAbort = () => {
        this.#waiting.splice(this.#waiting.indexOf(enter), 1);
        reject(signal.reason);
      };
      const enter = () => {
        signal.removeEventListener('abort', onAbort);
        resolve();
      };
      signal.addEventListener('abort', onAbort, { once: true });
      this.#waiting.push(enter);
    });
  }

  /** Runs something in a slot. Errors: those of {@link enter} and its own. */
  async run<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    const leave = await this.enter(signal);
    try {
      return await work();
    } finally {
      leave();
    }
  }
}
