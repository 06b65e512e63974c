import type { PoolShare } from '../../proto/gen/initless/v1/fleet.js';
import { assignmentAt, holds, phaseOf, runningOn } from './hosts.js';
import { hostsAround, lookup } from './lookup.js';
import type { HostState, ServiceRecord, Snapshot } from './model.js';

/** Splits a total evenly; what is left over goes to the first ones. The parts sum to the total. */
export function divide(total: number, parts: number): number[] {
  return Array.from({ length: parts }, (_, index) => Math.floor(total / parts) + (index < total % parts ? 1 : 0));
}

/**
 * Each host's share of a service's pool: what it is to be told now. Pure.
 *
 * The shares sum to `max_pool_size` and to the number to park. A share grows only by what others have given up, as far as is
 * known: a host that is away keeps its own until it is lost, and one that still runs more than its share counts with what
 * it runs. So the instances that run never exceed the total, but for those on a host that is counted as lost and is not.
 * After a start of the control plane shares stay as they were told until every host that may have one has said so, or is lost.
 */
export function sharesOf(record: ServiceRecord, snapshot: Snapshot, now: number): Map<string, PoolShare> {
  const { config, current, name } = record;
  const there = (host: HostState) => phaseOf(host, snapshot.policy, now) !== 'lost';
  const placed = record.hosts.flatMap((one) => lookup(snapshot).hosts.get(one) ?? []).filter(there);
  const members = placed.filter((host) => assignmentAt(host, name) || (current && holds(host, name, current)));
  if (snapshot.hosts.some((host) => isUnheard(host, record) && there(host))) {
    return new Map(members.map((host) => [host.name, shareTold(host, name)]));
  }
  const total = config.maxPoolSize;
  const wanted = new Map(divide(total, members.length).map((count, index) => [members[index]!.name, count]));
  const share = (host: HostState) => {
    const told = assignmentAt(host, name);
    return told === undefined || !members.includes(host) ? 0 : (told.pool?.maxRunning ?? told.config!.maxPoolSize);
  };
  const inForce = (host: HostState) => Math.max(share(host), runningOn(host, name));
  // All others have none of it.
  const taken = new Map(
    hostsAround(record, snapshot)
      .filter(there)
      .map((host) => [host.name, inForce(host)]),
  );
  const granted = new Map<string, number>();
  for (const member of members) {
    const { name: host } = member;
    const want = wanted.get(host)!;
    const others = [...taken].reduce((sum, [other, count]) => sum + (other === host ? 0 : count), 0);
    // Its own counts as it was told: what it is restoring may be for its pool, and never to run.
    const count = Math.min(want, Math.max(share(member), total - others, 0));
    granted.set(host, count);
    taken.set(host, Math.max(taken.get(host)!, count));
  }
  const parked = parkedOf(
    record,
    snapshot,
    members.filter((host) => wanted.get(host.name)! > 0),
  );
  const plan = snapshot.pools.get(name);
  return new Map(
    members.map(({ name: host }) => {
      const count = parked.get(host) ?? 0;
      const ready = config.preStartPoolAuto ? Math.ceil((plan?.ready ?? 0) / members.length) : count + total;
      const usefulness = config.preStartPoolAuto ? (plan?.usefulness ?? 0) : 4;
      return [
        host,
        { parked: count, ready, usefulness, maxRunning: granted.get(host)!, elsewhere: members.length > 1 },
      ];
    }),
  );
}

/** Whether a host has said nothing since the control plane started, and may have a share. */
function isUnheard({ name, engine, since }: HostState, { hosts, current }: ServiceRecord): boolean {
  return engine === undefined && (hosts.includes(name) || (current !== undefined && current.madeAt < since));
}

/** The share that a host was told; one that was told nothing gets none yet. */
function shareTold(host: HostState, service: string): PoolShare {
  const told = assignmentAt(host, service);
  if (told === undefined) return { parked: 0, ready: 0, usefulness: 0, maxRunning: 0, elsewhere: true };
  const { preStartPoolSize: parked, maxPoolSize: maxRunning } = told.config!;
  return told.pool ?? { parked, ready: parked + maxRunning, usefulness: 4, maxRunning, elsewhere: false };
}

/** What each host is to keep parked; what one has no memory for goes to those that have. */
function parkedOf(record: ServiceRecord, snapshot: Snapshot, hosts: readonly HostState[]): Map<string, number> {
  const { config, name } = record;
  const plan = config.preStartPoolAuto ? snapshot.pools.get(name) : undefined;
  if (config.preStartPoolAuto) return new Map(hosts.map((host) => [host.name, plan?.perHost.get(host.name) ?? 0]));
  return new Map(divide(config.preStartPoolSize, hosts.length).map((count, index) => [hosts[index]!.name, count]));
}
