import { InitlessError } from './errors.js';

/**
 * The sending half of a gRPC stream as something that can be pushed into. One reader. It is bounded: a peer that does
 * not read makes `push` fail with BUSY instead of filling memory, and the owner then ends the stream.
 */
export class PushStream<T> implements AsyncIterable<T> {
  #items: T[] = [];
  #wake: (() => void) | undefined;
  #ended = false;
  readonly #limit: number;
  readonly #what: string;

  /** @param what names the stream in errors. @param limit messages that may wait. */
  constructor(what: string, limit = 10_000) {
    this.#what = what;
    this.#limit = limit;
  }

  /** Adds a message; without effect after {@link end}. Errors: BUSY when `limit` messages wait. */
  push(item: T): void {
    if (this.#ended) return;
    if (this.#items.length >= this.#limit) {
      throw new InitlessError('BUSY', `${this.#what}: ${this.#limit} messages wait and the peer does not read`);
    }
    this.#items.push(item);
    this.#wake?.();
  }

  /** Ends the stream once what waits has been read. */
  end(): void {
    this.#ended = true;
    this.#wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T> {
    try {
      for (;;) {
        while (this.#items.length > 0) yield this.#items.shift() as T;
        if (this.#ended) return;
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
        this.#wake = undefined;
      }
    } finally {
      this.#ended = true;
      this.#items = [];
    }
  }
}
