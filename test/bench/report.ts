import { percentile, round } from '../../control-plane/cli/statistics.js';

export { renderTable as table } from '../../control-plane/cli/output.js';

/** What is said of a row of samples, in their unit, with two digits after the point. */
export interface Percentiles {
  p50: number;
  p95: number;
  p99: number;
}

/** The percentiles of at least one sample. */
export function percentiles(samples: readonly number[]): Percentiles {
  const sorted = [...samples].sort((a, b) => a - b);
  const at = (share: number) => round(percentile(sorted, share), 2);
  return { p50: at(0.5), p95: at(0.95), p99: at(0.99) };
}

/** Says how far a benchmark has come; its figures alone go to standard output. */
export function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

/** Runs a benchmark; one that fails says why and ends with 1. */
export function run(main: () => Promise<void>): void {
  main().then(
    () => process.exit(0),
    (error: unknown) => {
      say(error instanceof Error ? (error.stack ?? error.message) : String(error));
      process.exit(1);
    },
  );
}
