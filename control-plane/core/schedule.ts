import type { CopySource, ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import { GoneReason } from '../../proto/gen/initless/v1/types.js';
import { assignmentAt, hasCheckpoint, holders, holds, phaseOf } from './hosts.js';
import { hostsAround, type Load, lookup, ofService, workOn } from './lookup.js';
import {
  type HostState,
  isEnabled,
  isKnown,
  type Making,
  type ServiceRecord,
  type Snapshot,
  type Wanted,
  type Work,
  workKey,
} from './model.js';
import { placementOf } from './placement.js';
import { assignmentOf, sameAssignment } from './revision.js';
import { sharesOf } from './shares.js';

/** One thing to do next. Carrying it out changes the snapshot, so that it is not decided on again. */
export type Decision =
  /** Place a service on hosts from now on; `maker` makes its revisions. */
  | { type: 'place'; service: string; maker: string; hosts: string[] }
  /** Make the current revision again: no host that is there has it, or its checkpoint is quarantined. */
  | { type: 'remake'; service: string; force: boolean }
  /** Make it again no more: a host that has it is back. */
  | { type: 'keep'; service: string }
  /** Have a host make a revision. */
  | { type: 'prepare'; service: string; host: string; revision: string; force: boolean }
  /** Have a host get a revision from others. */
  | { type: 'copy'; service: string; host: string; revision: string; sources: CopySource[] }
  /** Stop a command. */
  | { type: 'cancel'; work: string }
  /** Have a host serve a service. */
  | { type: 'assign'; service: string; host: string; assignment: ServiceAssignment }
  /** Have a host stop serving a service. */
  | { type: 'withdraw'; service: string; host: string; reason: GoneReason }
  /** Have a host remove what it holds of a service but some revisions; of a removed one its named volumes too. */
  | { type: 'deleteRevisions'; service: string; host: string; keep: string[]; removed: boolean }
  /** Forget a removed service. */
  | { type: 'forget'; service: string };

/** Builds on a host at a time. */
const BUILDS_PER_HOST = 2;
/** Copies that a host takes, and gives, at a time. */
const COPIES_PER_HOST = 2;
/** A host's report may be behind what it has just done by this much. */
const REPORT_LAG_MS = 10_000;
/** A checkpoint that went missing right after it was made is not made again before this. */
const REMAKE_PAUSE_MS = 60_000;
/** A removed service's host that does not come back for this long is not waited for. */
const FORGET_MS = 7 * 24 * 3_600_000;

/**
 * What to do next. Pure: the same snapshot and time give the same decisions. When every decision has been carried out
 * and nothing else happens, it comes to decide nothing.
 */
export function schedule(snapshot: Snapshot, now: number): Decision[] {
  const { hosts } = lookup(snapshot);
  const loads = new Loads(snapshot.work);
  const decisions: Decision[] = [];
  /** Services that are just being placed anew: what is on their hosts is judged by where they are then. */
  const moved = new Set<string>();
  for (const record of snapshot.services) {
    const view = { record, hosts, snapshot, now };
    if (isEnabled(record)) {
      const placed = place(view, loads);
      if (placed !== undefined) {
        decisions.push(placed);
        moved.add(record.name);
        continue;
      }
      decisions.push(...remake(view), ...cancel(view), ...build(view, loads), ...copy(view, loads), ...assign(view));
    } else {
      decisions.push(...cancel(view));
    }
  }
  for (const host of snapshot.hosts) if (isKnown(host)) decisions.push(...tidy(host, moved, snapshot, now));
  decisions.push(...forget(snapshot, hosts, now));
  return decisions;
}

interface View {
  record: ServiceRecord;
  hosts: ReadonlyMap<string, HostState>;
  snapshot: Snapshot;
  now: number;
}

/** Builds, copies and services on each host, those included that were just decided on. */
class Loads {
  readonly #builds = new Map<string, number>();
  readonly #copies = new Map<string, number>();
  /** Services that were just placed. */
  readonly placed = new Map<string, Load>();

  constructor(work: readonly Work[]) {
    for (const { kind, host } of work) {
      if (kind === 'prepare') add(this.#builds, host);
      if (kind === 'copy') add(this.#copies, host);
    }
  }

  /** A service is placed anew. */
  place(before: readonly string[], after: readonly string[]): void {
    for (const [index, host] of after.entries()) {
      const known = this.placed.get(host) ?? { placed: 0, first: 0 };
      const isNew = before.includes(host) ? 0 : 1;
      const isFirst = index === 0 && before[0] !== host ? 1 : 0;
      this.placed.set(host, { placed: known.placed + isNew, first: known.first + isFirst });
    }
  }

  /** Whether a host may begin a build; it then counts. */
  mayBuild(host: string): boolean {
    return (this.#builds.get(host) ?? 0) < BUILDS_PER_HOST && add(this.#builds, host);
  }

  /** Whether a host may begin to take a copy; it then counts. */
  mayCopy(host: string): boolean {
    return (this.#copies.get(host) ?? 0) < COPIES_PER_HOST && add(this.#copies, host);
  }
}

function add(counts: Map<string, number>, host: string): true {
  counts.set(host, (counts.get(host) ?? 0) + 1);
  return true;
}

/** A service stays where it is, unless a host of it is lost or drained, or there are more that it may be spread over. */
function place({ record, snapshot, now }: View, loads: Loads): Decision | undefined {
  const { hosts, maker } = placementOf(record, snapshot, now, loads.placed);
  const same = maker === record.host && hosts.length === record.hosts.length;
  if (same && hosts.every((host, index) => host === record.hosts[index])) return undefined;
  loads.place(record.hosts, hosts);
  return { type: 'place', service: record.name, maker, hosts };
}

/**
 * The current revision has to be made again when no host has it: the one that had it is lost, or it is quarantined there.
 * As long as another one has it, it is copied from there.
 */
function remake({ record, hosts, snapshot, now }: View): Decision[] {
  const { current, name } = record;
  if (current === undefined) return [];
  const decision = (force: boolean): Decision[] => [{ type: 'remake', service: name, force }];
  const held = holders(record, current, snapshot).length > 0;
  if (current.making?.kind === 'wanted') {
    return held && !current.making.force ? [{ type: 'keep', service: name }] : [];
  }
  if (current.making !== undefined) {
    return mayRecover(current.making, hosts.get(record.host)) ? decision(false) : [];
  }
  const maker = hosts.get(record.host);
  if (held || !isKnown(maker)) return [];
  const isAwaited = hostsAround(record, snapshot).some(
    (host) => !isKnown(host) && phaseOf(host, snapshot.policy, now) !== 'lost' && mayHold(host, record),
  );
  if (isAwaited) return [];
  if (current.host === maker.name && now - current.madeAt < REMAKE_PAUSE_MS && maker.since < current.madeAt) return [];
  const quarantined = ofService(maker.checkpoints, name).some((one) => one.revision === current.id);
  return decision(quarantined);
}

/** Whether a host that cannot be asked may have what serves. */
function mayHold(host: HostState, { name, current, hosts }: ServiceRecord): boolean {
  return current?.host === host.name || hosts.includes(host.name) || hasCheckpoint(host, name, current?.id);
}

/** A failure that was the host's, not the revision's, is tried again when the host has come back since. */
function mayRecover(making: Making, host: HostState | undefined): boolean {
  if (making.kind !== 'failed' || !isKnown(host) || host.since <= making.at) return false;
  return ['AGENT_DOWN', 'ENGINE_DOWN', 'DISK_FULL', 'VOLUME_MISSING'].includes(making.problem.code);
}

/** The revision to make now; the current one first, since its service is not served meanwhile. */
function target({ record, hosts }: View): { id: string; making: Wanted } | undefined {
  const { current, pending } = record;
  if (current?.making?.kind === 'wanted') return { id: current.id, making: current.making };
  if (pending === undefined) return undefined;
  if (pending.making.kind === 'wanted') return { id: pending.id, making: pending.making };
  if (!mayRecover(pending.making, hosts.get(record.host))) return undefined;
  return { id: pending.id, making: { kind: 'wanted', force: false, attempts: 0, notBefore: 0 } };
}

/** Stops builds and copies of what is not wanted any more. */
function cancel(view: View): Decision[] {
  const { record, snapshot } = view;
  const wanted = isEnabled(record) ? target(view) : undefined;
  const isWanted = (work: Work) =>
    work.kind === 'prepare'
      ? work.revision === wanted?.id && work.host === record.host
      : isEnabled(record) && work.revision === record.current?.id && record.hosts.includes(work.host);
  return workOn(snapshot, record.name)
    .filter((work) => work.kind === 'prepare' || work.kind === 'copy')
    .filter((work) => !work.cancelled && !isWanted(work))
    .map((work): Decision => ({ type: 'cancel', work: work.id }));
}

/** Never two builds of a service at once, and few on a host. */
function build(view: View, loads: Loads): Decision[] {
  const { record, hosts, snapshot, now } = view;
  const wanted = target(view);
  const host = hosts.get(record.host);
  if (wanted === undefined || !isKnown(host) || wanted.making.notBefore > now) return [];
  if (workOn(snapshot, record.name).some((work) => work.kind === 'prepare')) return [];
  if (!hasCheckpoint(host, record.name, wanted.id) && !host.engine?.ready) return [];
  if (!loads.mayBuild(host.name)) return [];
  const { id: revision, making } = wanted;
  return [{ type: 'prepare', service: record.name, host: host.name, revision, force: making.force }];
}

/** Hosts that a service is placed on get what serves from those that have it. */
function copy({ record, hosts, snapshot, now }: View, loads: Loads): Decision[] {
  const { current, name } = record;
  // What is about to be made anew is not worth a copy.
  if (current === undefined || (current.making?.kind === 'wanted' && current.making.force)) return [];
  const sources = holders(record, current, snapshot)
    .filter((host) => host.leaseAddress !== '')
    .sort((a, b) => Number(b.name === current.host) - Number(a.name === current.host))
    .map((host) => ({ host: host.name, address: host.leaseAddress }));
  if (sources.length === 0) return [];
  return record.hosts.flatMap((to): Decision[] => {
    const host = hosts.get(to);
    if (!isKnown(host) || !host.engine?.ready || holds(host, name, current)) return [];
    if (workOn(snapshot, name).some((work) => work.kind === 'prepare' && work.host === to)) return [];
    if (isBusy(snapshot, 'copy', to, name, now) || !loads.mayCopy(to)) return [];
    return [{ type: 'copy', service: name, host: to, revision: current.id, sources }];
  });
}

/** Hosts that have the current revision are told to serve it, again after every change and every reconnect. */
function assign({ record, hosts, snapshot, now }: View): Decision[] {
  const { current, name } = record;
  if (current === undefined) return [];
  const shares = sharesOf(record, snapshot, now);
  return record.hosts.flatMap((to): Decision[] => {
    const host = hosts.get(to);
    if (!isKnown(host) || !holds(host, name, current)) return [];
    const assignment = assignmentOf(record, current, shares.get(to));
    if (servesAs(host, assignment, now) || isBusy(snapshot, 'assign', to, name, now)) return [];
    return [{ type: 'assign', service: name, host: to, assignment }];
  });
}

function servesAs(host: HostState, wanted: ServiceAssignment, now: number): boolean {
  const name = wanted.config!.serviceName;
  const confirmed = host.confirmed.get(name);
  const said = confirmed !== undefined && sameAssignment(confirmed.assignment, wanted);
  if (said && now - confirmed.at < REPORT_LAG_MS) return true;
  const reported = assignmentAt(host, name);
  // A report that repeats the configuration in another form is as good, once the agent has confirmed it.
  return (
    reported !== undefined && (sameAssignment(reported, wanted) || (said && reported.revision === wanted.revision))
  );
}

/** Withdraws what a host must not serve, and removes what it need not hold. */
function tidy(host: HostState, moved: ReadonlySet<string>, snapshot: Snapshot, now: number): Decision[] {
  const { records } = lookup(snapshot);
  const decisions: Decision[] = [];
  const served = new Set(host.assignments.flatMap((one) => (one.config ? [one.config.serviceName] : [])));
  for (const service of served) {
    if (moved.has(service)) continue;
    const record = records.get(service);
    if (record === undefined && snapshot.recovering) continue;
    if (record !== undefined && isEnabled(record) && !mayGo(record, host, snapshot)) continue;
    if (isBusy(snapshot, 'withdraw', host.name, service, now)) continue;
    const drained = host.drainingSince !== undefined && record !== undefined && isEnabled(record);
    const reason = drained ? GoneReason.GONE_REASON_DRAINED : GoneReason.GONE_REASON_SUPERSEDED;
    decisions.push({ type: 'withdraw', service, host: host.name, reason });
  }
  for (const service of new Set([...host.checkpoints.map((one) => one.service), ...host.volumeServices])) {
    const record = records.get(service);
    // What belongs to no service that we know is left for a person to judge.
    if (record === undefined || moved.has(service)) continue;
    const held = ofService(host.checkpoints, service);
    // The rule: it has what serves, where that is to serve, and nothing else.
    const isAsItShould = !record.removed && record.hosts.includes(host.name);
    if (isAsItShould && held.every((one) => one.revision === record.current?.id)) continue;
    if (!isSettled(record, snapshot)) continue;
    const keep = keptAt(record, host, snapshot);
    const volumesGo = record.removed && host.volumeServices.includes(service);
    if ((held.every((one) => keep.includes(one.revision)) && !volumesGo) || (record.removed && served.has(service))) {
      continue;
    }
    if (workOn(snapshot, service).some((work) => ['prepare', 'copy'].includes(work.kind))) continue;
    if (isBusy(snapshot, 'deleteRevisions', host.name, service, now)) continue;
    decisions.push({ type: 'deleteRevisions', service, host: host.name, keep, removed: record.removed });
  }
  return decisions;
}

/** A host that a service is not placed on goes on serving it until another one does; where it is to be emptied by force, not. */
function mayGo(record: ServiceRecord, host: HostState, snapshot: Snapshot): boolean {
  const { name, current } = record;
  if (record.hosts.includes(host.name)) return false;
  if (host.drainForced || current === undefined) return true;
  return hostsAround(record, snapshot).some(
    (other) =>
      record.hosts.includes(other.name) && isKnown(other) && assignmentAt(other, name)?.revision === current.id,
  );
}

/** While a service is being placed, made or copied, what hosts hold of it may still be of use. */
function isSettled(record: ServiceRecord, snapshot: Snapshot): boolean {
  const { removed, current, pending, name } = record;
  if (removed) return true;
  if (current === undefined || current.making !== undefined || pending?.making.kind === 'wanted') return false;
  const placed = hostsAround(record, snapshot).filter((host) => record.hosts.includes(host.name) && isKnown(host));
  return placed.length > 0 && placed.every((host) => assignmentAt(host, name)?.revision === current.id);
}

/** Revisions that a host keeps: what serves and what is being made, some before that for a way back, and all that is in use. */
function keptAt(record: ServiceRecord, host: HostState, snapshot: Snapshot): string[] {
  const { name, current, pending, previous } = record;
  const used = [
    ...ofService(host.instances, name).map((one) => one.revision),
    assignmentAt(host, name)?.revision ?? '',
  ].filter((revision) => revision !== '');
  if (record.removed) return [];
  const mayComeBack = host.cordoned || host.drainingSince !== undefined;
  const placed = record.hosts.includes(host.name);
  const wanted = placed
    ? [current, pending, ...previous.slice(0, snapshot.policy.keepRevisions)].flatMap((one) => one?.id ?? [])
    : mayComeBack && current !== undefined
      ? [current.id]
      : [];
  return [...new Set([...wanted, ...used])];
}

function isBusy(snapshot: Snapshot, kind: Work['kind'], host: string, service: string, now: number): boolean {
  const until = snapshot.cooldowns.get(workKey(kind, host, service)) ?? 0;
  return until > now || workOn(snapshot, service).some((work) => work.kind === kind && work.host === host);
}

/** A removed service is forgotten once no host has anything of it. */
function forget(snapshot: Snapshot, hosts: ReadonlyMap<string, HostState>, now: number): Decision[] {
  return snapshot.services
    .filter((record) => record.removed && workOn(snapshot, record.name).length === 0)
    .filter((record) => {
      const places = [
        record.host,
        ...record.hosts,
        record.current?.host ?? '',
        ...record.previous.map((one) => one.host),
      ];
      const waits = places.some((name) => hosts.has(name) && !isKnown(hosts.get(name)));
      if (waits && now - record.updatedAt < FORGET_MS) return false;
      return hostsAround(record, snapshot).every(
        (host) =>
          !isKnown(host) ||
          (ofService(host.checkpoints, record.name).length === 0 &&
            !host.volumeServices.includes(record.name) &&
            assignmentAt(host, record.name) === undefined),
      );
    })
    .map((record): Decision => ({ type: 'forget', service: record.name }));
}
