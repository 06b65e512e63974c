/** What is said of a row of measurements, in milliseconds. */
export interface Summary {
  min: number;
  p50: number;
  p95: number;
  max: number;
}

/**
 * The value below which a share of the samples lies, with linear interpolation between neighbours (the rule of
 * NumPy and of most spreadsheets), so that the median of an even number of samples is the mean of the middle two.
 *
 * @param sorted samples, ascending, at least one.
 * @param share from 0 to 1.
 */
export function percentile(sorted: readonly number[], share: number): number {
  if (sorted.length === 0) throw new RangeError('no samples');
  const place = (sorted.length - 1) * share;
  const below = sorted[Math.floor(place)] as number;
  const above = sorted[Math.ceil(place)] as number;
  return below + (above - below) * (place - Math.floor(place));
}

/** Minimum, median, 95th percentile and maximum of at least one sample, in the samples' unit, not rounded. */
export function summarise(samples: readonly number[]): Summary {
  const sorted = [...samples].sort((a, b) => a - b);
  return {
    min: percentile(sorted, 0),
    p50: percentile(sorted, 0.5),
    p95: percentile(sorted, 0.95),
    max: percentile(sorted, 1),
  };
}

/** A number with at most `digits` digits after the point. */
export function round(value: number, digits: number): number {
  const factor = 10 ** digits;
  return Math.round(value * factor) / factor;
}
