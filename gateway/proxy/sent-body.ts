/** So much of a request's body can be sent again, bytes. */
const KEPT_BYTES = 64 * 1024;

/** What a client has sent of its request's body so far, kept for as long as all of it may have to be sent again. */
export class SentBody {
  #chunks: Buffer[] = [];
  #size = 0;
  #whole = true;

  /** Whether all that was read can be sent again. */
  get whole(): boolean {
    return this.#whole;
  }

  /** What can be sent again, in order. */
  get chunks(): readonly Buffer[] {
    return this.#chunks;
  }

  keep(chunk: Buffer): void {
    this.#size += chunk.length;
    if (this.#size > KEPT_BYTES) this.forget();
    if (this.#whole) this.#chunks.push(chunk);
  }

  /** From here on it cannot be sent again. */
  forget(): void {
    this.#whole = false;
    this.#chunks = [];
  }
}
