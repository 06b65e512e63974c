import type { Decision } from './core/schedule.js';

/** Passes whose times are remembered. */
const KEPT = 1_000;

/** How often decisions were made, which ones, and how long it took. */
export class PassFigures {
  readonly #decisions = new Map<Decision['type'], number>();
  /** Times of the last passes, milliseconds; a ring. */
  readonly #last: number[] = [];
  #passes = 0;
  #totalMs = 0;

  /** A pass has decided. */
  add(ms: number, decisions: readonly Decision[]): void {
    this.#last[this.#passes % KEPT] = ms;
    this.#passes += 1;
    this.#totalMs += ms;
    for (const { type } of decisions) this.#decisions.set(type, (this.#decisions.get(type) ?? 0) + 1);
  }

  /** Decisions since the start, by type. */
  get decisions(): ReadonlyMap<string, number> {
    return this.#decisions;
  }

  /** Passes since the start. */
  get passes(): number {
    return this.#passes;
  }

  /** Their time together, milliseconds. */
  get totalMs(): number {
    return this.#totalMs;
  }

  /** The time that a share of the last 1,000 passes did not exceed, milliseconds; 0 before the first. */
  quantile(share: number): number {
    const sorted = [...this.#last].sort((a, b) => a - b);
    return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? 0;
  }
}
