import type { Outcome } from './fleet-gateway.js';
import { PARKED_BYTES } from './fleet-host.js';
import { FleetWorld } from './fleet-world.js';
import { arrivals, DAY, duration, HOUR, MINUTE, population, randomFrom, type TrafficService } from './traffic.js';

/** How instances are kept: for how long one runs on without requests, in minutes, and how many are kept parked. */
export interface PoolPolicy {
  name: string;
  idleMinutes: number;
  parked: number | 'auto';
}

/** What platforms do that keep each instance for ten minutes after its last request, and what there is here. */
export const POLICIES: readonly PoolPolicy[] = [
  { name: 'keep-alive of 10 minutes', idleMinutes: 10, parked: 0 },
  { name: 'pre_start_pool_size: 0', idleMinutes: 1, parked: 0 },
  { name: 'pre_start_pool_size: 1', idleMinutes: 1, parked: 1 },
  { name: 'pre_start_pool_size: auto', idleMinutes: 1, parked: 'auto' },
];

/** What a policy came to, for one service or for many. */
export interface PolicyOutcome {
  requests: number;
  /** Requests served by an instance that ran, */
  running: number;
  /** ... that was parked, */
  parked: number;
  /** ... that was restored while they waited: cold starts. */
  restored: number;
  /** Requests that were refused, or cut off by the loss of a host. */
  failed: number;
  /** Hours of instances, in whatever state. */
  instanceHours: number;
}

/** How the policies are compared. */
export interface Comparison {
  services: number;
  days: number;
  seed: number;
  /** Mean time between losses of a host, hours. */
  lossEveryHours: number;
}

const WARM_MS = 2 * MINUTE;
const HOSTS = 3;
/** A host that is lost comes back after this long. */
const AWAY_MS = 5 * MINUTE;

/** One service on three hosts under one policy: the whole fleet, with losses of hosts now and then. */
export function simulatePolicy(service: TrafficService, policy: PoolPolicy, lossEveryHours: number): PolicyOutcome {
  const { seed, name, horizon } = service;
  // That nothing happens is looked at and said less often than in truth, to save time.
  const world = new FleetWorld({ seed, hosts: HOSTS, tickMs: 30_000, times: { quietReportMs: 50_000 } });
  const total: PolicyOutcome = { requests: 0, running: 0, parked: 0, restored: 0, failed: 0, instanceHours: 0 };
  const keys = `max_pool_size: 50\nmax_concurrency: 10\nqueue_timeout: 60\nidle_timeout: ${policy.idleMinutes}\n`;
  world.apply(name, 'v1', `${keys}pre_start_pool_size: ${policy.parked}\n`);
  world.clock.pass(WARM_MS);
  world.onOutcome = (_, outcome) => {
    total[kindOf(outcome)] += 1;
  };
  const begin = world.clock.now;
  countInstances(world, total);
  // Durations and losses are the same under every policy.
  const [durations, losses] = [randomFrom(seed + 1), randomFrom(seed + 2)];
  const calls = arrivals(service);
  const nextCall = () => {
    const { done, value } = calls.next();
    if (done) return;
    world.clock.after(begin + value - world.clock.now, () => {
      total.requests += 1;
      world.request(name, duration(durations));
      nextCall();
    });
  };
  const nextLoss = () => {
    world.clock.after(-Math.log(1 - losses()) * lossEveryHours * HOUR, () => {
      const host = `host${1 + Math.floor(losses() * HOSTS)}`;
      world.kill(host, false);
      world.clock.after(AWAY_MS, () => world.revive(host));
      nextLoss();
    });
  };
  nextCall();
  if (Number.isFinite(lossEveryHours)) nextLoss();
  world.clock.pass(horizon);
  const { instanceHours } = total;
  // What is under way comes to an end; it takes ten minutes at most.
  world.clock.pass(12 * MINUTE);
  return { ...total, instanceHours };
}

function kindOf(outcome: Outcome): 'running' | 'parked' | 'restored' | 'failed' {
  return outcome.kind === 'answered' ? (outcome.found ?? 'restored') : 'failed';
}

function countInstances(world: FleetWorld, total: PolicyOutcome): void {
  let [count, since] = [0, world.clock.now];
  world.clock.afterStep = () => {
    total.instanceHours += (count * (world.clock.now - since)) / HOUR;
    since = world.clock.now;
    count = 0;
    for (const host of world.hosts.values()) count += host.instances.size;
  };
}

/** A row of the table. */
export interface PolicyRow {
  policy: string;
  requests: number;
  /** Shares of the requests, percent. */
  running_percent: number;
  parked_percent: number;
  restored_percent: number;
  failed: number;
  /** Share of its requests that started cold, of the service at the 75th percentile, percent. */
  cold_p75_percent: number;
  instance_hours: number;
  /** GiB hours, with the memory of a parked Spring Boot instance each. */
  memory_hours: number;
}

/** Services that are used as published, and as many of each kind. */
export function servicesOf({ services, days, seed }: Comparison): TrafficService[] {
  return population(services, seed).map((service) => ({
    ...service,
    horizon: service.every < MINUTE ? HOUR : days * DAY,
  }));
}

/** All policies over the same services, requests and losses. Deterministic. */
export function comparePolicies(comparison: Comparison, say: (text: string) => void = () => {}): PolicyRow[] {
  const services = servicesOf(comparison);
  return POLICIES.map((policy) => {
    say(`${policy.name}: ${services.length} services`);
    const each = services.map((service) => simulatePolicy(service, policy, comparison.lossEveryHours));
    const sum = (key: keyof PolicyOutcome) => each.reduce((all, one) => all + one[key], 0);
    const cold = each
      .filter((one) => one.requests > 0)
      .map((one) => (100 * one.restored) / one.requests)
      .sort((a, b) => a - b);
    const percent = (key: keyof PolicyOutcome) => round((100 * sum(key)) / sum('requests'), 3);
    return {
      policy: policy.name,
      requests: sum('requests'),
      running_percent: percent('running'),
      parked_percent: percent('parked'),
      restored_percent: percent('restored'),
      failed: sum('failed'),
      cold_p75_percent: round(cold[Math.min(cold.length - 1, Math.ceil(cold.length * 0.75) - 1)] ?? 0, 1),
      instance_hours: round(sum('instanceHours'), 1),
      memory_hours: round((sum('instanceHours') * PARKED_BYTES) / 2 ** 30, 2),
    };
  });
}

function round(value: number, digits: number): number {
  return Math.round(value * 10 ** digits) / 10 ** digits;
}
