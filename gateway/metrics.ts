type Labels = Readonly<Record<string, string>>;

/** The names, kinds and meanings of all metrics. */
const METRICS = {
  requests_total: { kind: 'counter', help: 'Requests by service and the status they were answered with.' },
  retries_total: { kind: 'counter', help: 'Requests that were sent again, by service.' },
  wakes_total: { kind: 'counter', help: 'Leases granted, by service, origin and the state the instance was found in.' },
  requests_in_flight: { kind: 'gauge', help: 'Requests that an instance is answering, by service.' },
  requests_waiting: { kind: 'gauge', help: 'Requests that wait for an instance, by service.' },
  host_requests_in_flight: { kind: 'gauge', help: 'Requests that an instance on a host is answering, by service.' },
  host_slots: { kind: 'gauge', help: 'Requests that the leases on a host allow at a time, by service.' },
  host_free_slots: { kind: 'gauge', help: 'Requests that could be sent to a host at once, by service.' },
  hosts_left_out: { kind: 'gauge', help: 'Whether a host is left out, since its agent does not answer.' },
  ready: { kind: 'gauge', help: 'Whether the gateway has a route table.' },
} as const;

/** Name of a metric, without the prefix. */
export type MetricName = keyof typeof METRICS;

/** The gateway's metrics, in Prometheus' text format. */
export class Metrics {
  readonly #values = new Map<MetricName, Map<string, number>>();
  readonly #collectors: (() => void)[] = [];

  /** Counts something. */
  add(name: MetricName, labels: Labels, by = 1): void {
    const series = this.#series(name);
    const key = keyOf(labels);
    series.set(key, (series.get(key) ?? 0) + by);
  }

  /** Sets a gauge. */
  set(name: MetricName, labels: Labels, value: number): void {
    this.#series(name).set(keyOf(labels), value);
  }

  /** `collect` sets the gauges it knows of each time before the text is made; their earlier values are forgotten. */
  onCollect(collect: () => void): void {
    this.#collectors.push(collect);
  }

  /** All of it as text. */
  text(): string {
    for (const [name, { kind }] of Object.entries(METRICS)) {
      if (kind === 'gauge') this.#values.delete(name as MetricName);
    }
    for (const collect of this.#collectors) collect();
    const lines: string[] = [];
    for (const [name, { kind, help }] of Object.entries(METRICS)) {
      const full = `initless_gateway_${name}`;
      lines.push(`# HELP ${full} ${help}`, `# TYPE ${full} ${kind}`);
      for (const [labels, value] of this.#values.get(name as MetricName) ?? []) lines.push(`${full}${labels} ${value}`);
    }
    return `${lines.join('\n')}\n`;
  }

  #series(name: MetricName): Map<string, number> {
    let series = this.#values.get(name);
    if (series === undefined) {
      series = new Map();
      this.#values.set(name, series);
    }
    return series;
  }
}

function keyOf(labels: Labels): string {
  const parts = Object.entries(labels).map(([name, value]) => `${name}="${value.replace(/["\\\n]/g, '_')}"`);
  return parts.length === 0 ? '' : `{${parts.join(',')}}`;
}
