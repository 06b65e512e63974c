/**
 * Made-up services whose use is spread as published for a large platform ("Serverless in the Wild", USENIX ATC 2020): 45 %
 * are called at most once an hour, 81 % at most once a minute, the rest get 99 % of all requests; a request takes
 * a log-normal time (mu -0.38, sigma 2.36, seconds). The same seed makes the same services.
 */

export const SECOND = 1_000;
export const MINUTE = 60 * SECOND;
export const HOUR = 60 * MINUTE;
export const DAY = 24 * HOUR;

/** How a service is called: by a clock, by many independent people, or now and then a lot. */
export type Pattern = 'regular' | 'random' | 'bursty';

export interface TrafficService {
  name: string;
  pattern: Pattern;
  /** Mean time between calls, milliseconds. */
  every: number;
  /** How long it is watched, milliseconds. */
  horizon: number;
  seed: number;
}

/** A source of numbers from 0 to 1 that is the same for the same seed (mulberry32). */
export function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function normal(random: () => number): number {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

/** How long a request takes, milliseconds; at most ten minutes. */
export function duration(random: () => number): number {
  return Math.min(10 * MINUTE, Math.exp(-0.38 + 2.36 * normal(random)) * SECOND);
}

/** When a service is called, milliseconds from 0, in order. */
export function* arrivals({ pattern, every, horizon, seed }: TrafficService): Generator<number> {
  const random = randomFrom(seed);
  const exponential = (mean: number) => -Math.log(1 - random()) * mean;
  let at = random() * every;
  while (at < horizon) {
    if (pattern === 'bursty') {
      // Ten calls within about ten seconds, then ten times the pause.
      for (let call = 0, time = at; call < 10 && time < horizon; call++, time += exponential(SECOND)) yield time;
      at += 20 * SECOND + exponential(10 * every);
    } else {
      yield at;
      at += pattern === 'regular' ? every * (1 + 0.02 * (random() - 0.5)) : exponential(every);
    }
  }
}

/** `count` services. */
export function population(count: number, seed: number): TrafficService[] {
  const random = randomFrom(seed);
  const between = (from: number, to: number) => from * (to / from) ** random();
  return Array.from({ length: count }, (_, index) => {
    const rank = (index + 0.5) / count;
    const pattern = (['regular', 'random', 'regular', 'bursty'] as const)[index % 4]!;
    const rare = rank <= 0.45;
    const busy = rank > 0.81;
    const every = rare ? between(HOUR, DAY) : busy ? between(1 * SECOND, 4 * SECOND) : between(MINUTE, HOUR);
    // Of those that are called all the time a quarter of a day shows as much.
    const horizon = busy ? DAY / 4 : 5 * DAY;
    return {
      name: `s${index}`,
      pattern: busy && pattern === 'regular' ? 'random' : pattern,
      every,
      horizon,
      seed: seed + index,
    };
  });
}
