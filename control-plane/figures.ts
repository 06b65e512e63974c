import type { Decision } from './core/schedule.js';

/** Upper bounds of the times that passes are counted by, milliseconds. */
export const PASS_BOUNDS_MS = [0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1_000, 2_500];

/** How often decisions were made, which ones, and how long it took. */
export class PassFigures {
  readonly #decisions = new Map<Decision['type'], number>();
  readonly #counts: number[] = PASS_BOUNDS_MS.map(() => 0);
  #passes = 0;
  #totalMs = 0;

  /** A pass has decided. */
  add(ms: number, decisions: readonly Decision[]): void {
    this.#passes += 1;
    this.#totalMs += ms;
    const at = PASS_BOUNDS_MS.findIndex((bound) => ms <= bound);
    if (at !== -1) this.#counts[at]! += 1;
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

  /** For each of {@link PASS_BOUNDS_MS}, the passes that took no longer. */
  upTo(): number[] {
    let sum = 0;
    return this.#counts.map((count) => {
      sum += count;
      return sum;
    });
  }
}
