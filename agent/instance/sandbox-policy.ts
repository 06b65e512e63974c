/** How many spare sandboxes there are, and how they come and go. Times in milliseconds. */
export const SPARES = {
  /** Spares at least and at most, as far as there are ports for them. */
  least: 2,
  most: 32,
  /** What is taken within this time counts as taken together: refilling does not keep up with it. */
  togetherMs: 5_000,
  /** How long it counts that so many were taken together. */
  rememberedMs: 60_000,
  /** Sandboxes that are made, looked at or removed at a time, off the path of any request. */
  atATime: 2,
  /** While there is a spare, the next is made only when none was taken for this long: the start it went to needs the CPU. */
  quietMs: 300,
  /** Pause after a failure; it doubles with each further one. */
  firstPauseMs: 1_000,
  longestPauseMs: 60_000,
  /** How long somebody waits for a port that is on its way back. */
  waitMs: 15_000,
  /** How often it is looked whether there are too many, and for sandboxes that nobody knows of. */
  tickMs: 1_000,
  strayMs: 10_000,
} as const;

/** A spare, as far as choosing one goes. */
export interface Spare {
  index: number;
  /** Service port that its leased port leads to since an earlier tenant; undefined: nowhere yet. */
  leadsTo: number | undefined;
  /** Since when it is spare. */
  since: number;
}

/**
 * Spares to keep: as many as were taken together of late, so that as many more can be had at once. Pure.
 *
 * @param taken when sandboxes were taken, oldest first.
 * @param free ports that no tenant has.
 */
export function wanted(taken: readonly number[], now: number, free: number): number {
  let together = 0;
  let first = 0;
  for (const [last, at] of taken.entries()) {
    while (at - (taken[first] as number) > SPARES.togetherMs) first++;
    if (at > now - SPARES.rememberedMs) together = Math.max(together, last - first + 1);
  }
  return Math.max(0, Math.min(free, SPARES.most, Math.max(SPARES.least, together)));
}

/** Whether a spare may be made now, with `spares` of them there. Pure. */
export function mayFill(taken: readonly number[], now: number, spares: number): boolean {
  return spares === 0 || now - (taken.at(-1) ?? -Infinity) >= SPARES.quietMs;
}

/** Whether one that comes back is kept, with `have` of the `target`: those who were taken together come back together. Pure. */
export function mayKeep(have: number, target: number): boolean {
  return have < Math.min(2 * target, SPARES.most);
}

/** Which spares to remove when there are `over` too many: those that nobody has wanted for long, longest first. Pure. */
export function surplus<S extends Spare>(spares: readonly S[], over: number, now: number): S[] {
  const unwanted = spares.filter(({ since }) => now - since >= SPARES.rememberedMs).sort((a, b) => a.since - b.since);
  return unwanted.slice(0, Math.max(0, over));
}

/** The part of `taken` that can still matter, oldest first: as recent, and as many, as {@link wanted} looks at. Pure. */
export function remembered(taken: readonly number[], now: number): number[] {
  const oldest = now - SPARES.rememberedMs - SPARES.togetherMs;
  // More than this within the time remembered means that `most` were taken together, whenever they were.
  const enough = (SPARES.most * (SPARES.rememberedMs + SPARES.togetherMs)) / SPARES.togetherMs;
  return taken.filter((at) => at > oldest).slice(-enough);
}

/**
 * The spare to take: one whose port leads to the right service port already needs no command. One that leads nowhere
 * needs a new entry, a third of the time of replacing one. Among equals the one that was spare for longest. Pure.
 */
export function choose<S extends Spare>(spares: readonly S[], servicePort: number): S | undefined {
  const cost = ({ leadsTo }: S) => (leadsTo === servicePort ? 0 : leadsTo === undefined ? 1 : 2);
  return [...spares].sort((a, b) => cost(a) - cost(b) || a.since - b.since || a.index - b.index)[0];
}

/** Pause after so many failures in a row. Pure. */
export function pauseAfter(failures: number): number {
  return Math.min(SPARES.firstPauseMs * 2 ** (failures - 1), SPARES.longestPauseMs);
}
