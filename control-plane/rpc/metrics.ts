import { type IntervalHistogram, monitorEventLoopDelay } from 'node:perf_hooks';
import { type ServiceState, serviceStateToJSON } from '../../proto/gen/initless/v1/types.js';
import { verdict } from '../core/view.js';
import { PASS_BOUNDS_MS } from '../figures.js';
import type { Reconciler } from '../reconciler.js';
import type { Gateways } from './routing-service.js';

/** What metrics are taken of. */
export interface MetricsParts {
  reconciler: Reconciler;
  gateways: Gateways;
}

/** How late timers may be noticed to be, milliseconds. */
const RESOLUTION_MS = 10;

/** What the process takes of its machine, and how late its event loop is. Stop it once it is of no use any more. */
export class ProcessFigures {
  readonly #delay: IntervalHistogram = monitorEventLoopDelay({ resolution: RESOLUTION_MS });

  constructor() {
    this.#delay.enable();
  }

  /** The 99th percentile of the event loop's delay since the last call, seconds. */
  takeDelay(): number {
    // The histogram counts from timer to timer: the time between two that are on time is no delay.
    const seconds = Math.max(0, this.#delay.percentile(99) / 1e9 - RESOLUTION_MS / 1e3);
    this.#delay.reset();
    return Number.isFinite(seconds) ? seconds : 0;
  }

  /** Measures no more. */
  stop(): void {
    this.#delay.disable();
  }
}

/** Text in Prometheus' format. */
export function metrics({ reconciler, gateways }: MetricsParts, figures: ProcessFigures): string {
  const snapshot = reconciler.snapshot();
  const states = new Map<string, number>();
  for (const record of snapshot.services) {
    if (record.removed) continue;
    const state = stateName(verdict(record, snapshot).state);
    states.set(state, (states.get(state) ?? 0) + 1);
  }
  const connected = snapshot.hosts.filter((host) => host.connected);
  const { decisions, passes, totalMs } = reconciler.figures;
  const { user, system } = process.cpuUsage();
  const lines = [
    ...family('initless_services', 'gauge', 'Services by state.', labelled('state', [...states].sort())),
    ...family('initless_hosts', 'gauge', 'Hosts whose agents are connected.', [['', connected.length]]),
    ...family(
      'initless_instances',
      'gauge',
      'Instances on connected hosts.',
      labelled(
        'host',
        connected.map((host) => [host.name, host.instances.length]),
      ),
    ),
    ...family('initless_gateways', 'gauge', 'Gateways that are connected.', [['', gateways.size]]),
    ...family('initless_commands', 'gauge', 'Commands to agents under way.', [['', snapshot.work.length]]),
    ...family(
      'initless_decisions_total',
      'counter',
      'Decisions of the scheduler.',
      labelled('type', [...decisions].sort()),
    ),
    ...family(
      'initless_pass_seconds',
      'histogram',
      'Time of one look at all services and hosts, with what it decides.',
      [
        ...reconciler.figures.upTo().map((count, index): [string, number] => {
          return [`_bucket{le="${PASS_BOUNDS_MS[index]! / 1e3}"}`, count];
        }),
        ['_bucket{le="+Inf"}', passes],
        ['_sum', totalMs / 1e3],
        ['_count', passes],
      ],
    ),
    ...family('process_resident_memory_bytes', 'gauge', 'Resident memory.', [['', process.memoryUsage.rss()]]),
    ...family('process_cpu_seconds_total', 'counter', 'CPU time, user and system.', [['', (user + system) / 1e6]]),
    ...family('nodejs_eventloop_lag_p99_seconds', 'gauge', 'Delay of the event loop since the last look here.', [
      ['', figures.takeDelay()],
    ]),
  ];
  return `${lines.join('\n')}\n`;
}

/** One metric with its values; each value's text goes right after the name: a suffix, or labels. */
function family(name: string, type: string, help: string, values: readonly (readonly [string, number])[]): string[] {
  return [
    `# HELP ${name} ${help}`,
    `# TYPE ${name} ${type}`,
    ...values.map(([suffix, value]) => `${name}${suffix} ${value}`),
  ];
}

function labelled(label: string, values: readonly (readonly [string, number])[]): [string, number][] {
  return values.map(([value, count]) => [`{${label}="${value}"}`, count]);
}

function stateName(state: ServiceState): string {
  return serviceStateToJSON(state).replace('SERVICE_STATE_', '').toLowerCase();
}
