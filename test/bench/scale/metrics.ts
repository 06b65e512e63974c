/** What the control plane tells of itself on /metrics, at one moment. */
export interface Scrape {
  /** When, milliseconds of this process's clock. */
  at: number;
  decisions: Record<string, number>;
  /** Passes that took no longer than a bound, by the bound in seconds; the bounds grow. */
  buckets: [number, number][];
  cpuSeconds: number;
  rssBytes: number;
  /** Since the last scrape. */
  loopDelaySeconds: number;
}

/** Asks for the metrics. */
export async function scrape(httpPort: number): Promise<Scrape> {
  const response = await fetch(`http://127.0.0.1:${httpPort}/metrics`, { signal: AbortSignal.timeout(30_000) });
  if (response.status !== 200) throw new Error(`/metrics answers ${response.status}`);
  return { at: performance.now(), ...parse(await response.text()) };
}

/** Reads the text of /metrics. */
export function parse(text: string): Omit<Scrape, 'at'> {
  const value = (name: string) => {
    const found = new RegExp(`^${name} (\\S+)$`, 'm').exec(text);
    if (found === null) throw new Error(`/metrics has no ${name}`);
    return Number(found[1]);
  };
  const labelled = (name: string) =>
    [...text.matchAll(new RegExp(`^${name}\\{\\w+="([^"]+)"\\} (\\S+)$`, 'gm'))].map(
      ([, label, count]): [string, number] => [label as string, Number(count)],
    );
  return {
    decisions: Object.fromEntries(labelled('initless_decisions_total')),
    buckets: labelled('initless_pass_seconds_bucket').map(([bound, count]) => [
      bound === '+Inf' ? Number.POSITIVE_INFINITY : Number(bound),
      count,
    ]),
    cpuSeconds: value('process_cpu_seconds_total'),
    rssBytes: value('process_resident_memory_bytes'),
    loopDelaySeconds: value('nodejs_eventloop_lag_p99_seconds'),
  };
}

/** Decisions of all types together. */
export function decisionsOf({ decisions }: Pick<Scrape, 'decisions'>): number {
  return Object.values(decisions).reduce((sum, count) => sum + count, 0);
}

/** The time that a share of the passes between two scrapes did not exceed, seconds; within a bucket, by its share of it. 0: no pass. */
export function passQuantile(before: Scrape, after: Scrape, share: number): number {
  const earlier = new Map(before.buckets);
  const counts = after.buckets.map(([bound, count]): [number, number] => [bound, count - (earlier.get(bound) ?? 0)]);
  const all = counts.at(-1)?.[1] ?? 0;
  if (all === 0) return 0;
  const wanted = all * share;
  let [low, below] = [0, 0];
  for (const [bound, count] of counts) {
    if (count >= wanted && count > below) {
      return Number.isFinite(bound) ? low + ((bound - low) * (wanted - below)) / (count - below) : low;
    }
    [low, below] = [bound, count];
  }
  return low;
}
