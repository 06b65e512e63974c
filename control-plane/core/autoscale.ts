import { z } from 'zod';

/**
 * How many instances of a service to keep parked, from the history of its use.
 *
 * The policy is that of "Serverless in the Wild" (Shahrad et al., USENIX ATC 2020): a histogram of the times that a
 * service was idle gives a window in which its next use is to be expected. Two things differ, because here an idle instance
 * goes on running for `idle_timeout` and takes the requests of that time itself: pauses of less than a minute count as
 * one use, and while an instance runs the parked ones are only there for those needed beside it.
 */

/** Width of a bin of the histogram, milliseconds. */
export const BIN_MS = 60_000;
/** Bins of the histogram: 4 hours. */
export const BINS = 240;
/** What a pause counts after each further pause: the last twenty or so decide, and a changed pattern takes over. */
const DECAY = 0.95;
/** What pauses must add up to before their distribution is believed: seven of them, the earlier ones faded a little. */
const ENOUGH = 6;
/** Square of the coefficient of variation of the bins' counts from which on they show a pattern (the paper's 2). */
const PATTERN = 4;
/** Share of the pauses that may be longer than the histogram. */
const MAX_BEYOND = 0.5;
/** The window goes from this share of the pauses ... */
const LOW = 0.05;
/** ... to this one ... */
const HIGH = 0.99;
/** ... and begins this much earlier ... */
const EARLIER = 0.05;
/** ... and ends this much later, either by a bin at least. */
const LATER = 0.1;
/** Kept parked this long after each use where the histogram says nothing. */
const FIXED_MS = 10 * 60_000;
/** Share of the bursts that the pool is to meet. */
const BURSTS_MET = 0.95;
/** Stretches whose bursts and peaks are remembered. */
const MAX_BURSTS = 60;
/** Counters that are remembered: one for each run of an agent that reported lately. */
const MAX_SOURCES = 8;
/** Nobody knows when a use began that came while the service was not looked at for longer than this. */
const BLIND_MS = 60_000;
/** How far {@link Target.chance} looks ahead. */
const AHEAD_BINS = 10;

/** What a host said of a service's use. */
export interface UseReport {
  /** Host and run of its agent; counts of two sources have nothing to do with each other. */
  source: string;
  /** Leases granted since the agent started. */
  arrivals: number;
  /** Instances that hold leases now. */
  inUse: number;
  /** Milliseconds since the last lease was held; 0 while one is. */
  idleMs: number;
  /** Number of the stretch of time that the next two are about. */
  stretch: number;
  /** Most instances in use at once in it, so far. */
  mostInUse: number;
  /** Most instances taken together in it, within the seconds that replacing them takes, so far. */
  mostTaken: number;
}

/** What a source said last. */
interface Source {
  id: string;
  at: number;
  arrivals: number;
  stretch: number;
  mostInUse: number;
  mostTaken: number;
  /** Instances that held leases when it was last heard of. */
  inUse: number;
}

/** What is remembered of a service's use. Times are milliseconds since 1970. */
export interface History {
  /** When it was last in use; for one never used, since when it has been looked at. */
  readonly lastUse: number;
  /** Whether it was in use when last looked at. */
  readonly inUse: boolean;
  /** Pauses by their length in minutes; recent ones count more. */
  readonly bins: readonly number[];
  /** Pauses longer than the histogram. */
  readonly beyond: number;
  /** Most instances taken together, in each of the last stretches in which any was; the oldest first. */
  readonly bursts: readonly number[];
  /** Most instances in use at once, in each of the last stretches in which any was leased; the oldest first. */
  readonly peaks: readonly number[];
  readonly sources: readonly Source[];
}

/** What a pool is to hold now, and why. */
export interface Target {
  /** Instances parked at most. */
  parked: number;
  /** Instances parked and running together. */
  ready: number;
  /** Likelihood of a use within the next ten minutes, 0 to 1. */
  chance: number;
  /** Why, for people. */
  reason: string;
  /** When it changes if nothing happens; Infinity: never. */
  nextLookAt: number;
}

/** The history of a service of which nothing is known yet. To have been deployed counts as a use: somebody will try it. */
export function newHistory(now: number): History {
  return { lastUse: now, inUse: false, bins: new Array(BINS).fill(0), beyond: 0, bursts: [], peaks: [], sources: [] };
}

/** The history after a report. A report that comes twice, or late, or after others were lost, changes nothing it should not. */
export function observe(history: History | undefined, report: UseReport, now: number): History {
  const before = history ?? newHistory(now);
  const known = before.sources.find((source) => source.id === report.source);
  const seenAt = Math.max(0, ...before.sources.map((source) => source.at));
  const usedNow = report.inUse > 0;
  const usedAt = usedNow ? now : now - report.idleMs;
  const used = usedNow || report.arrivals > 0;
  const lastUse = Math.min(now, used ? Math.max(before.lastUse, usedAt) : before.lastUse);
  const isNew = usedNow || report.arrivals > (known?.arrivals ?? 0);
  const watched = history !== undefined && now - seenAt <= BLIND_MS;
  const pause = Math.max(usedAt, seenAt) - before.lastUse;
  const paused = isNew && watched && pause >= BIN_MS;
  const { stretch, mostInUse, mostTaken } = report;
  const { source: id, arrivals } = report;
  const source: Source = { id, at: now, arrivals, stretch, mostInUse, mostTaken, inUse: report.inUse };
  const others = before.sources.filter((one) => one !== known);
  // A host whose agent was started anew is not two hosts.
  const host = `${report.source.split(' ')[0]} `;
  const live = others.filter((one) => now - one.at <= BLIND_MS && !one.id.startsWith(host));
  // The figures of a stretch are final once the next one has begun, or its agent has gone.
  const over = [...others.filter((one) => !live.includes(one)), ...(known && known.stretch !== stretch ? [known] : [])];
  // Hosts share a service's requests: what one of them needed was needed beside what the others did.
  const beside = (key: 'mostInUse' | 'mostTaken') => live.reduce((sum, one) => sum + one[key], 0);
  return {
    lastUse,
    inUse: [...live, source].some((one) => one.inUse > 0),
    ...(paused ? withPause(before, Math.floor(pause / BIN_MS)) : { bins: before.bins, beyond: before.beyond }),
    bursts: withSizes(
      before.bursts,
      over.map((one) => (one.mostTaken > 0 ? one.mostTaken + beside('mostTaken') : 0)),
    ),
    peaks: withSizes(
      before.peaks,
      over.map((one) => (one.mostInUse > 0 ? one.mostInUse + beside('mostInUse') : 0)),
    ),
    sources: [...live, source].slice(-MAX_SOURCES),
  };
}

function withPause({ bins, beyond }: History, bin: number): Pick<History, 'bins' | 'beyond'> {
  const faded = bins.map((weight) => (weight < 0.01 ? 0 : weight * DECAY));
  if (bin < BINS) faded[bin]! += 1;
  return { bins: faded, beyond: beyond * DECAY + (bin < BINS ? 0 : 1) };
}

function withSizes(sizes: readonly number[], more: readonly number[]): readonly number[] {
  const used = more.filter((size) => size > 0);
  return used.length === 0 ? sizes : [...sizes, ...used].slice(-MAX_BURSTS);
}

/** What the pool of a service with this history is to hold; never more than `maxPoolSize`. */
export function target(history: History, limits: { maxPoolSize: number }, now: number): Target {
  const { from, to, why } = windowOf(history);
  const size = (closed: readonly number[], open: readonly number[]) => {
    const together = sum(open);
    return Math.max(1, quantile(together > 0 ? [...closed, together] : closed, BURSTS_MET));
  };
  const burst = size(
    history.bursts,
    history.sources.map((source) => source.mostTaken),
  );
  const peak = size(
    history.peaks,
    history.sources.map((source) => source.mostInUse),
  );
  const parked = Math.min(limits.maxPoolSize, burst);
  const ready = Math.min(limits.maxPoolSize, Math.max(burst, peak));
  const idle = history.inUse ? 0 : Math.max(0, now - history.lastUse);
  const chance = history.inUse ? 1 : chanceOf(history, idle);
  const keep = (reason: string, nextLookAt: number): Target => ({ parked, ready, chance, reason, nextLookAt });
  const none = (reason: string, nextLookAt: number): Target => ({ parked: 0, ready: 0, chance, reason, nextLookAt });
  if (history.inUse) return keep(`in use, lately by up to ${instances(ready)} at once`, Number.POSITIVE_INFINITY);
  if (idle < from) return none(`${why}; parked again ${minutes(from)} after the last use`, history.lastUse + from);
  if (idle < to) return keep(why, history.lastUse + to);
  return none(`${why}; not used for longer than that`, Number.POSITIVE_INFINITY);
}

/** When, after the end of a use, the next one is to be expected. */
function windowOf({ bins, beyond }: History): { from: number; to: number; why: string } {
  const fixed = (why: string) => ({
    from: 0,
    to: FIXED_MS,
    why: `${why}: parked for ${minutes(FIXED_MS)} after each use`,
  });
  const inside = sum(bins);
  if (inside + beyond < ENOUGH) return fixed('too few pauses seen to know its pattern');
  if (beyond / (inside + beyond) > MAX_BEYOND) return fixed(`most pauses are longer than ${minutes(BINS * BIN_MS)}`);
  if (variation(bins, inside) < PATTERN) return fixed('its pauses follow no pattern');
  const first = binAt(bins, inside * LOW) * BIN_MS;
  const last = (binAt(bins, inside * HIGH) + 1) * BIN_MS;
  return {
    from: Math.max(0, first - Math.max(BIN_MS, first * EARLIER)),
    to: last + Math.max(BIN_MS, last * LATER),
    why: `its pauses last ${first / BIN_MS} to ${minutes(last)}`,
  };
}

/**
 * Square of the coefficient of variation of the bins' counts. So few samples in so many bins vary by chance alone; that
 * share, known for counts that are independent, is taken off, or a handful of pauses of any length would look like a pattern.
 */
function variation(bins: readonly number[], total: number): number {
  const squares = bins.reduce((all, weight) => all + weight * weight, 0);
  // Faded pauses tell less than their number: this is how many fresh ones tell as much.
  const samples = (total * (1 + DECAY)) / Math.max(1, 2 - total * (1 - DECAY));
  return (BINS * squares) / (total * total) - 1 - BINS / samples;
}

/** The bin in which the running total of the weights reaches `amount`. */
function binAt(bins: readonly number[], amount: number): number {
  let total = 0;
  for (const [bin, weight] of bins.entries()) {
    total += weight;
    if (weight > 0 && total >= amount) return bin;
  }
  return bins.findLastIndex((weight) => weight > 0);
}

/** The share of the pauses that end in the next minutes among those that have lasted so long. */
function chanceOf({ bins, beyond }: History, idle: number): number {
  const bin = Math.floor(idle / BIN_MS);
  const longer = sum(bins.slice(bin)) + beyond;
  // Nothing like it was ever seen: as likely as not while little is known, unlikely once much is.
  if (longer === 0) return 1 / (2 + sum(bins));
  return sum(bins.slice(bin, bin + AHEAD_BINS)) / longer;
}

function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? 0;
}

function sum(values: readonly number[]): number {
  return values.reduce((all, value) => all + value, 0);
}

function instances(count: number): string {
  return count === 1 ? '1 instance' : `${count} instances`;
}

function minutes(ms: number): string {
  return `${Math.round(ms / 60_000)} min`;
}

const count = z.number().nonnegative();
const FORM = z.object({
  lastUse: count,
  inUse: z.boolean(),
  bins: z.array(z.tuple([count.int().lt(BINS), count])).max(BINS),
  beyond: count,
  bursts: z.array(count).max(MAX_BURSTS),
  peaks: z.array(count).max(MAX_BURSTS),
  sources: z
    .array(
      z.object({
        ...{ id: z.string(), at: count, arrivals: count, stretch: count, mostInUse: count, mostTaken: count },
        inUse: count.default(0),
      }),
    )
    .max(MAX_SOURCES),
});

/** A history as it is stored: small, and plain JSON. */
export function historyToJson(history: History): unknown {
  const bins = history.bins.flatMap((weight, bin) => (weight < 0.01 ? [] : [[bin, Math.round(weight * 1000) / 1000]]));
  return { ...history, bins };
}

/** The history that was stored; undefined for what is none, or was damaged. */
export function historyFromJson(raw: unknown): History | undefined {
  const { data } = FORM.safeParse(raw);
  if (data === undefined) return undefined;
  const bins = new Array<number>(BINS).fill(0);
  for (const [bin, weight] of data.bins) bins[bin] = weight;
  return { ...data, bins };
}
