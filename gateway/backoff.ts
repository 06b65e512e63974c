/** Growing pauses between attempts, with jitter so that many who lost the same peer do not come back in step. */
export class Backoff {
  readonly #firstMs: number;
  readonly #mostMs: number;
  #nextMs: number;

  /** The first pause and the longest one, milliseconds. */
  constructor(firstMs: number, mostMs: number) {
    this.#firstMs = firstMs;
    this.#mostMs = mostMs;
    this.#nextMs = firstMs;
  }

  /** The pause before the next attempt, milliseconds: three quarters to all of the step, which then doubles. */
  next(): number {
    const step = this.#nextMs;
    this.#nextMs = Math.min(step * 2, this.#mostMs);
    return step * (0.75 + Math.random() / 4);
  }

  /** An attempt succeeded. */
  reset(): void {
    this.#nextMs = this.#firstMs;
  }
}
