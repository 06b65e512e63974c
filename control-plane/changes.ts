/** Tells those who want to know that something changed; what, they look up. */
export class Changes {
  readonly #listeners = new Set<() => void>();

  /** Calls `listener` after each change until the returned function is called. */
  subscribe(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Something changed. */
  tell(): void {
    for (const listener of [...this.#listeners]) listener();
  }
}
