import type { ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import type { HostState, ServiceRecord, Snapshot, Work } from './model.js';

/**
 * What is looked for again and again in a snapshot, by name. States, their lists and snapshots are never changed, only
 * replaced: so what was worked out once for one of them holds for as long as it is there, and a list that a host repeats
 * is not gone through again.
 */

/** What is in a snapshot, by name. */
export interface Lookup {
  hosts: ReadonlyMap<string, HostState>;
  records: ReadonlyMap<string, ServiceRecord>;
  /** Place of each host in the snapshot. */
  positions: ReadonlyMap<string, number>;
  /** Hosts that have anything of a service, by service. */
  having: ReadonlyMap<string, readonly HostState[]>;
  /** Services that are placed on each host, and those of them whose requests go there first. */
  loads: ReadonlyMap<string, Load>;
  /** Commands under way, by service. */
  work: ReadonlyMap<string, readonly Work[]>;
}

/** Services on a host. */
export interface Load {
  placed: number;
  first: number;
}

const NONE: readonly never[] = [];
const lookups = new WeakMap<Snapshot, Lookup>();
const groups = new WeakMap<readonly object[], ReadonlyMap<string, readonly object[]>>();
const assignments = new WeakMap<readonly ServiceAssignment[], ReadonlyMap<string, ServiceAssignment>>();
const around = new WeakMap<readonly HostState[], Map<ServiceRecord, readonly HostState[]>>();
const fleets = new WeakMap<readonly HostState[], Pick<Lookup, 'hosts' | 'positions' | 'having'>>();
const registries = new WeakMap<readonly ServiceRecord[], Pick<Lookup, 'records' | 'loads'>>();
const services = new WeakMap<HostState, readonly string[]>();

/** What is in a snapshot, by name. */
export function lookup(snapshot: Snapshot): Lookup {
  return remember(lookups, snapshot, () => ({
    ...remember(fleets, snapshot.hosts, () => ({
      hosts: new Map(snapshot.hosts.map((host) => [host.name, host])),
      positions: new Map(snapshot.hosts.map((host, index) => [host.name, index])),
      having: having(snapshot.hosts),
    })),
    ...remember(registries, snapshot.services, () => ({
      records: new Map(snapshot.services.map((record) => [record.name, record])),
      loads: loads(snapshot.services),
    })),
    work: group(snapshot.work, (work) => work.service),
  }));
}

/** Things of one service in a list of such things. */
export function ofService<T extends { service: string }>(items: readonly T[], service: string): readonly T[] {
  const all = remember(groups, items, () => group(items, (item) => item.service)) as ReadonlyMap<string, readonly T[]>;
  return all.get(service) ?? NONE;
}

/** What a list of assignments says of a service. */
export function assignmentIn(list: readonly ServiceAssignment[], service: string): ServiceAssignment | undefined {
  return assignmentsIn(list).get(service);
}

/** Commands under way for a service. */
export function workOn(snapshot: Snapshot, service: string): readonly Work[] {
  return lookup(snapshot).work.get(service) ?? NONE;
}

/** Hosts that a service is placed on, or was made on, or that have anything of it; in the snapshot's order. */
export function hostsAround(record: ServiceRecord, snapshot: Snapshot): readonly HostState[] {
  const known = remember(around, snapshot.hosts, () => new Map<ServiceRecord, readonly HostState[]>());
  const before = known.get(record);
  if (before !== undefined) return before;
  const { hosts, positions, having: all } = lookup(snapshot);
  const names = new Set([record.host, ...record.hosts, record.current?.host ?? '']);
  for (const host of all.get(record.name) ?? NONE) names.add(host.name);
  const found = [...names].flatMap((name) => hosts.get(name) ?? []);
  found.sort((a, b) => positions.get(a.name)! - positions.get(b.name)!);
  known.set(record, found);
  return found;
}

function assignmentsIn(list: readonly ServiceAssignment[]): ReadonlyMap<string, ServiceAssignment> {
  return remember(assignments, list, () => {
    const byName = new Map<string, ServiceAssignment>();
    for (const one of list) {
      const name = one.config?.serviceName;
      if (name !== undefined && !byName.has(name)) byName.set(name, one);
    }
    return byName;
  });
}

function having(hosts: readonly HostState[]): Map<string, HostState[]> {
  const found = new Map<string, HostState[]>();
  for (const host of hosts) {
    for (const service of servicesAt(host)) {
      const list = found.get(service);
      if (list === undefined) found.set(service, [host]);
      else list.push(host);
    }
  }
  return found;
}

/** Services that a host has anything of. */
function servicesAt(host: HostState): readonly string[] {
  return remember(services, host, () => {
    const found = new Set([
      ...assignmentsIn(host.assignments).keys(),
      ...host.confirmed.keys(),
      ...host.volumeServices,
    ]);
    for (const list of [host.instances, host.checkpoints, host.revisions]) {
      for (const { service } of list) found.add(service);
    }
    return [...found];
  });
}

function loads(services: readonly ServiceRecord[]): Map<string, Load> {
  const found = new Map<string, Load>();
  for (const { removed, hosts } of services) {
    if (removed) continue;
    for (const host of new Set(hosts)) {
      const load = found.get(host) ?? { placed: 0, first: 0 };
      found.set(host, { placed: load.placed + 1, first: load.first + (host === hosts[0] ? 1 : 0) });
    }
  }
  return found;
}

function group<T>(items: readonly T[], key: (item: T) => string): Map<string, T[]> {
  const found = new Map<string, T[]>();
  for (const item of items) {
    const list = found.get(key(item));
    if (list === undefined) found.set(key(item), [item]);
    else list.push(item);
  }
  return found;
}

function remember<Key extends object, Value>(known: WeakMap<Key, Value>, key: Key, make: () => Value): Value {
  const before = known.get(key);
  if (before !== undefined) return before;
  const made = make();
  known.set(key, made);
  return made;
}
