import type { Target } from './autoscale.js';
import type { PoolPlan } from './model.js';
import { divide } from './shares.js';

/**
 * A plan becomes smaller only after smaller has been right for this long, milliseconds: less than a minute, so that an
 * instance which goes after an `idle_timeout` of one minute is not replaced by a parked one that nobody wants.
 */
export const SHRINK_AFTER_MS = 45_000;
/** What a parked instance is taken to hold before the first was measured, bytes. */
const UNMEASURED = 32 * 2 ** 20;
/** Memory that parked instances leave free: this share of the host's, but not more than ... */
const HEADROOM = 0.2;
/** ... this many bytes. Twice where the agent begins to remove parked instances, so that it rarely has to. */
const MAX_HEADROOM = 2 ** 30;
/** Instances beyond those that there are may fill this share of what parked instances may hold: no back and forth at the edge. */
const NEW_SHARE = 0.9;

/** A service whose pool follows its use, and what it wants. */
export interface Wish {
  service: string;
  /** Hosts that serve it, in order. */
  hosts: readonly string[];
  target: Target;
  /** Instances running at most. */
  maxPoolSize: number;
  /** Memory of its own that a parked instance holds, bytes. 0: not measured yet. */
  memory: number;
}

/** A plan, and since when a smaller one would do. */
export interface Planned extends PoolPlan {
  lowerSince: number | undefined;
}

/** Bytes that parked instances of automatic pools may hold on a host, of which they hold `parked` now. */
export function memoryBudget(host: { memoryTotal: number; memoryAvailable: number }, parked: number): number {
  return Math.max(0, host.memoryAvailable + parked - Math.min(host.memoryTotal * HEADROOM, MAX_HEADROOM));
}

/**
 * What each pool is to hold: what it wants, slow to shrink, split over its hosts, within the memory of each.
 *
 * @param before the plans in force; what they have is kept where that can be.
 * @param budgets bytes for parked instances, by host. A host that is not in it has no bound.
 */
export function planPools(
  wishes: readonly Wish[],
  budgets: ReadonlyMap<string, number>,
  before: ReadonlyMap<string, Planned>,
  now: number,
): Map<string, Planned> {
  const plans = new Map(wishes.map((wish) => [wish.service, settle(before.get(wish.service), wish, now)]));
  const parts = new Map(wishes.map((wish) => [wish.service, split(wish.hosts, plans.get(wish.service)!.parked)]));
  for (const [host, budget] of budgets) {
    const pools = wishes
      .filter((wish) => wish.hosts.includes(host))
      .map((wish) => ({
        service: wish.service,
        parked: parts.get(wish.service)!.get(host)!,
        held: before.get(wish.service)?.perHost.get(host) ?? 0,
        memory: wish.memory,
        chance: wish.target.chance,
      }));
    for (const [service, parked] of shareMemory(pools, budget)) {
      const wanted = parts.get(service)!.get(host)!;
      if (parked === wanted) continue;
      parts.get(service)!.set(host, parked);
      const plan = plans.get(service)!;
      const reason = `${plan.reason}; ${wanted} wanted on ${host}, but it has memory for ${parked}`;
      plans.set(service, { ...plan, parked: plan.parked - wanted + parked, reason });
    }
  }
  return new Map([...plans].map(([service, plan]) => [service, { ...plan, perHost: parts.get(service)! }]));
}

function split(hosts: readonly string[], total: number): Map<string, number> {
  return new Map(divide(total, hosts.length).map((count, index) => [hosts[index]!, count]));
}

/** Grows at once, shrinks late: a service that is used every other minute is not to park and remove every other minute. */
function settle(before: Planned | undefined, { target, maxPoolSize }: Wish, now: number): Omit<Planned, 'perHost'> {
  const { parked, ready, reason } = target;
  const wanted = { parked, ready, usefulness: parked === 0 ? 0 : usefulness(target.chance), reason };
  if (before === undefined) return { ...wanted, lowerSince: undefined };
  const isLower = wanted.parked < before.parked || wanted.ready < before.ready || wanted.usefulness < before.usefulness;
  if (!isLower) return { ...wanted, lowerSince: undefined };
  const lowerSince = before.lowerSince ?? now;
  if (now - lowerSince >= SHRINK_AFTER_MS) return { ...wanted, lowerSince: undefined };
  return {
    parked: Math.min(maxPoolSize, Math.max(before.parked, wanted.parked)),
    ready: Math.min(maxPoolSize, Math.max(before.ready, wanted.ready)),
    usefulness: Math.max(before.usefulness, wanted.usefulness),
    reason,
    lowerSince,
  };
}

/** A chance in five steps, so that a plan does not change with every minute. */
function usefulness(chance: number): number {
  return [0, 0.05, 0.2, 0.5].filter((step) => chance > step).length;
}

/** A pool that asks for memory. */
export interface MemoryWish {
  service: string;
  /** Instances it wants parked. */
  parked: number;
  /** Instances it was granted before. */
  held: number;
  /** Bytes each; 0: not measured yet. */
  memory: number;
  /** Likelihood of a use soon. */
  chance: number;
}

/**
 * How many instances each pool may park within `budget` bytes: those with the most expected hits per byte first. What
 * does not fit counts all the same, so that nothing behind it slips in, and more memory never takes an instance from
 * anyone. A pool's second instance counts half of its first, its third a third: so many at once are needed that much more rarely.
 */
export function shareMemory(pools: readonly MemoryWish[], budget: number): Map<string, number> {
  const units = pools.flatMap((pool) =>
    Array.from({ length: pool.parked }, (_, index) => {
      const bytes = pool.memory || UNMEASURED;
      return { service: pool.service, bytes, worth: pool.chance / (index + 1) / bytes, isHeld: index < pool.held };
    }),
  );
  units.sort((a, b) => b.worth - a.worth || (a.service < b.service ? -1 : a.service > b.service ? 1 : 0));
  const shares = new Map(pools.map((pool) => [pool.service, 0]));
  let used = 0;
  for (const unit of units) {
    used += unit.bytes;
    if (used <= (unit.isHeld ? budget : budget * NEW_SHARE)) shares.set(unit.service, shares.get(unit.service)! + 1);
  }
  return shares;
}
