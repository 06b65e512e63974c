import type { Instance } from '../../agent/instance/instance.js';
import { parkedWanted } from '../../agent/instance/pool.js';
import { Usage } from '../../agent/instance/usage.js';
import { type History, observe, type Target, target } from '../../control-plane/core/autoscale.js';
import { type Planned, planPools } from '../../control-plane/core/pool-plan.js';
import { ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import { arrivals, duration, MINUTE, randomFrom, SECOND, type TrafficService } from './traffic.js';

/** How instances are kept in this world. */
export interface Policy {
  /** An instance without requests runs on for this long. */
  idleTimeout: number;
  /** Keep instances parked as the automatic pool has it. */
  auto: boolean;
}

export const AUTO: Policy = { idleTimeout: MINUTE, auto: true };
/** What platforms do that keep each instance for ten minutes after its last request. */
export const FIXED: Policy = { idleTimeout: 10 * MINUTE, auto: false };

/** What a policy came to. */
export interface Outcome {
  requests: number;
  /** Requests that waited for a restore, since nothing ran or was parked for them. */
  cold: number;
  /** Instance-hours without a request: what readiness costs in memory. */
  idleHours: number;
  /** Instances brought up for the pool. */
  refills: number;
}

/** Requests that an instance takes at a time. */
const SLOTS = 10;
const MAX_POOL_SIZE = 50;
const REFILL_MS = 300;
/** A service in use is reported every 5 seconds; that nothing happens is said less often here, to save time. */
const REPORT_MS = 5 * SECOND;
const QUIET_MS = 50 * SECOND;

interface Running {
  service: string;
  state: 'running';
  assignment: { revision: string };
  leasesInUse: number;
  inFlight: number;
  idleSince: number;
}

/** One service on one host under one policy, from event to event, with the real counting, targets and pool rule. */
export function simulate(service: TrafficService, policy: Policy): Outcome {
  const outcome: Outcome = { requests: 0, cold: 0, idleHours: 0, refills: 0 };
  const random = randomFrom(service.seed + 1);
  const calls = arrivals(service);
  const usage = new Usage();
  const running: Running[] = [];
  const ends = new Heap();
  let parked = 0;
  let refillAt = Number.POSITIVE_INFINITY;
  let reportAt = policy.auto ? 0 : Number.POSITIVE_INFINITY;
  let history: History | undefined;
  let aim: Target | undefined;
  let plans = new Map<string, Planned>();
  let now = 0;
  let next = calls.next();

  const assignment = () =>
    ServiceAssignment.fromPartial({ config: { serviceName: service.name }, pool: plans.get(service.name) });
  let current = assignment();
  const tend = () => {
    if (!policy.auto) return;
    const wanted = parkedWanted(current, running as unknown as Instance[]);
    if (parked > wanted) parked = wanted;
    if (parked < wanted) refillAt = Math.min(refillAt, now + REFILL_MS);
    else refillAt = Number.POSITIVE_INFINITY;
  };
  const report = () => {
    const [said] = usage.report([service.name], running as unknown as Instance[], now);
    const { foundRunning, foundParked, started, inUse, idleMs, stretch, mostInUse, mostTaken } = said!;
    const counts = { arrivals: foundRunning + foundParked + started, inUse, idleMs, stretch, mostInUse, mostTaken };
    const before = history;
    history = observe(history, { source: 'host run', ...counts }, now);
    if (
      aim === undefined ||
      before?.lastUse !== history.lastUse ||
      before.inUse !== history.inUse ||
      now >= aim.nextLookAt
    ) {
      aim = target(history, { maxPoolSize: MAX_POOL_SIZE }, now);
    }
    const wish = { service: service.name, hosts: [], target: aim, maxPoolSize: MAX_POOL_SIZE, memory: 0 };
    const fresh = planPools([wish], new Map(), plans, now);
    const changed = JSON.stringify([...fresh.values()]) !== JSON.stringify([...plans.values()]);
    plans = fresh;
    if (changed) current = assignment();
    const settling = plans.get(service.name)?.lowerSince !== undefined;
    reportAt =
      now + (inUse > 0 || settling ? REPORT_MS : Math.max(REPORT_MS, Math.min(QUIET_MS, aim.nextLookAt - now)));
    tend();
  };
  const call = () => {
    outcome.requests += 1;
    let instance = running.find((one) => one.inFlight < SLOTS);
    const found = instance ? 'running' : parked > 0 ? 'parked' : undefined;
    if (instance === undefined) {
      if (found === 'parked') parked -= 1;
      else outcome.cold += 1;
      instance = {
        service: service.name,
        state: 'running',
        assignment: { revision: '' },
        leasesInUse: 0,
        inFlight: 0,
        idleSince: now,
      };
      running.push(instance);
    }
    instance.inFlight += 1;
    if (instance.inFlight === 1) {
      instance.leasesInUse = 1;
      usage.granted(service.name, found, running.filter((one) => one.inFlight > 0).length, now);
    }
    ends.push(now + duration(random), instance);
    // A change of state is reported at once.
    if (found !== 'running' && policy.auto) report();
    else reportAt = Math.min(reportAt, now + REPORT_MS);
  };

  for (;;) {
    const leaving = running.reduce(
      (first, one) => (one.inFlight === 0 ? Math.min(first, one.idleSince + policy.idleTimeout) : first),
      Number.POSITIVE_INFINITY,
    );
    const coming = next.done ? Number.POSITIVE_INFINITY : next.value;
    const then = Math.min(coming, ends.first, leaving, refillAt, reportAt, service.horizon);
    const idle = running.filter((one) => one.inFlight === 0).length + parked;
    outcome.idleHours += (idle * (then - now)) / (60 * MINUTE);
    now = then;
    if (now >= service.horizon) return outcome;
    if (now === ends.first) {
      const instance = ends.pop();
      instance.inFlight -= 1;
      if (instance.inFlight === 0) {
        instance.idleSince = now;
        instance.leasesInUse = 0;
      }
    } else if (now === coming) {
      call();
      next = calls.next();
    } else if (now === leaving) {
      running.splice(
        running.findIndex((one) => one.inFlight === 0 && one.idleSince + policy.idleTimeout === leaving),
        1,
      );
      tend();
    } else if (now === refillAt) {
      parked += 1;
      outcome.refills += 1;
      refillAt = Number.POSITIVE_INFINITY;
      tend();
    } else report();
  }
}

/** Ends of requests, the earliest first. */
class Heap {
  readonly #entries: { at: number; instance: Running }[] = [];

  get first(): number {
    return this.#entries[0]?.at ?? Number.POSITIVE_INFINITY;
  }

  push(at: number, instance: Running): void {
    const entries = this.#entries;
    let index = entries.push({ at, instance }) - 1;
    while (index > 0 && entries[(index - 1) >> 1]!.at > at) {
      const parent = (index - 1) >> 1;
      [entries[index], entries[parent]] = [entries[parent]!, entries[index]!];
      index = parent;
    }
  }

  pop(): Running {
    const entries = this.#entries;
    const top = entries[0]!;
    const last = entries.pop()!;
    if (entries.length > 0) {
      entries[0] = last;
      for (let index = 0; ; ) {
        const left = 2 * index + 1;
        if (left >= entries.length) break;
        const right = left + 1;
        const least = right < entries.length && entries[right]!.at < entries[left]!.at ? right : left;
        if (entries[least]!.at >= entries[index]!.at) break;
        [entries[index], entries[least]] = [entries[least]!, entries[index]!];
        index = least;
      }
    }
    return top.instance;
  }
}
