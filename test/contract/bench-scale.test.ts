import { describe, expect, it } from 'vitest';
import { measure } from '../bench/scale/measure.js';
import { passQuantile, type Scrape } from '../bench/scale/metrics.js';

describe('the benchmark of a fleet', () => {
  it('runs to its end with a few agents, and finds every service served without those that were lost', async () => {
    const result = await measure({
      ...{ agents: 6, services: 4, instances: 12, idleSeconds: 0.5, churnSeconds: 1, churnPerSecond: 50 },
      ...{ lostShare: 0.17, hostTimeout: 8 },
    });
    expect(result.phases.map(({ phase }) => phase)).toEqual(['join', 'idle', 'churn', 'loss']);
    expect(result.lost_agents).toBe(1);
    expect(result.lost_services).toBeGreaterThan(0);
    // Nothing of a host is replaced before its time-out.
    expect(result.settle_after_timeout_s).toBeGreaterThanOrEqual(-1);
    expect(result.decisions.place).toBeGreaterThanOrEqual(4 + result.lost_services);
    const [join, , churn] = result.phases;
    expect(join?.commands).toBeGreaterThanOrEqual(4 * 3);
    expect(churn?.decisions).toBeGreaterThan(0);
    for (const { passes, cpu_percent, rss_mb } of result.phases) {
      expect(passes).toBeGreaterThanOrEqual(0);
      expect(cpu_percent).toBeGreaterThan(0);
      expect(rss_mb).toBeGreaterThan(10);
    }
  }, 120_000);

  it('finds quantiles of passes between two looks, not of those before', () => {
    const at = (buckets: [number, number][]): Scrape => ({
      ...{ at: 0, decisions: {}, cpuSeconds: 0, rssBytes: 0, loopDelaySeconds: 0, buckets },
    });
    const before = at([
      [0.01, 100],
      [0.02, 100],
      [Number.POSITIVE_INFINITY, 100],
    ]);
    const after = at([
      [0.01, 100],
      [0.02, 110],
      [Number.POSITIVE_INFINITY, 110],
    ]);
    expect(passQuantile(before, after, 0.5)).toBeCloseTo(0.015);
    expect(passQuantile(before, after, 1)).toBeCloseTo(0.02);
    expect(passQuantile(after, after, 0.99)).toBe(0);
  });
});
