const FIRST_MS = 250;
const LONGEST_MS = 15_000;
/** A part that ran for this long was well: what ended it is news. */
const STEADY_MS = 30_000;

/** How a part's ends follow each other. */
export interface Backoff {
  /** Ends in a row, each soon after its start. */
  quickEnds: number;
  /** How long to wait before the next start, in milliseconds. */
  delayMs: number;
}

/** Nothing has ended yet. */
export const NO_BACKOFF: Backoff = { quickEnds: 0, delayMs: 0 };

/** What an end after `ranMs` makes of it: the wait doubles from 250 ms to 15 s, and begins anew after 30 s of running. */
export function nextBackoff(before: Backoff, ranMs: number): Backoff {
  const quickEnds = ranMs >= STEADY_MS ? 1 : before.quickEnds + 1;
  return { quickEnds, delayMs: Math.min(LONGEST_MS, FIRST_MS * 2 ** (quickEnds - 1)) };
}
