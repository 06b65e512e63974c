import type { InitlessError } from '../../proto/rpc/errors.js';

/** Told that what was held may be used, or with a failure that it must not be. */
type OnWord = (failure: InitlessError | undefined) => void;

/**
 * An instance's memory that was still being filled when it was leased. What it answers may have been computed from a page
 * that was missing, and only its agent can tell: by how the fill ended, or by whatever fills it being there still when the
 * whole of an answer has come.
 */
export class Fill {
  readonly #ask: (number: number) => void;
  #end: { failure: InitlessError | undefined } | undefined;
  readonly #awaitEnd = new Set<OnWord>();
  readonly #awaitWord = new Map<number, OnWord>();
  #asked = 0;

  /** @param ask asks the agent whether what fills the memory is there, under a number. */
  constructor(ask: (number: number) => void) {
    this.#ask = ask;
  }

  /** Whether all of the memory is there: whatever the instance has answered, and will answer, is right. */
  get complete(): boolean {
    return this.#end !== undefined && this.#end.failure === undefined;
  }

  /** The agent's word on how the fill ended, which counts once. With a failure no answer may be used. */
  end(failure: InitlessError | undefined): void {
    if (this.#end) return;
    this.#end = { failure };
    const waiting = [...this.#awaitEnd, ...this.#awaitWord.values()];
    this.#awaitEnd.clear();
    this.#awaitWord.clear();
    for (const onWord of waiting) onWord(failure);
  }

  /** The agent's word that what had been answered before it was asked so is right. */
  confirmed(number: number): void {
    for (const [asked, onWord] of [...this.#awaitWord]) {
      if (asked > number) continue;
      this.#awaitWord.delete(asked);
      onWord(undefined);
    }
  }

  /** Asks again, since what was asked, or its answer, may be lost. */
  askAgain(): void {
    if (this.#awaitWord.size > 0) this.#ask(this.#asked);
  }

  /** Calls `onWord` when the fill has ended, at once if it has. Gives what takes that back. */
  whenOver(onWord: OnWord): () => void {
    if (this.#end) onWord(this.#end.failure);
    else this.#awaitEnd.add(onWord);
    return () => void this.#awaitEnd.delete(onWord);
  }

  /** Calls `onWord` when what the instance has answered until now is known to be right. Gives what takes that back. */
  whenRight(onWord: OnWord): () => void {
    if (this.#end) {
      onWord(this.#end.failure);
      return () => {};
    }
    const number = ++this.#asked;
    this.#awaitWord.set(number, onWord);
    this.#ask(number);
    return () => void this.#awaitWord.delete(number);
  }
}
