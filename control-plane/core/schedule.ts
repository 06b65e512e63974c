import type { ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import {
  type HostState,
  isEnabled,
  isKnown,
  type MadeRevision,
  type Making,
  type ServiceRecord,
  type Snapshot,
  type Wanted,
  type Work,
  workKey,
} from './model.js';
import { assignmentOf, sameAssignment } from './revision.js';

/** One thing to do next. Carrying it out changes the snapshot, so that it is not decided on again. */
export type Decision =
  /** Place a service on a host from now on. */
  | { type: 'place'; service: string; host: string }
  /** Make the current revision again: its host is another one, or has lost or quarantined its checkpoint. */
  | { type: 'remake'; service: string; force: boolean }
  /** Have a host make a revision. */
  | { type: 'prepare'; service: string; host: string; revision: string; force: boolean }
  /** Stop a command. */
  | { type: 'cancel'; work: string }
  /** Have a host serve a service. */
  | { type: 'assign'; service: string; host: string; assignment: ServiceAssignment }
  /** Have a host stop serving a service. */
  | { type: 'withdraw'; service: string; host: string }
  /** Have a host remove what it holds of a service but some revisions; of a removed one its named volumes too. */
  | { type: 'deleteRevisions'; service: string; host: string; keep: string[]; removed: boolean }
  /** Forget a removed service. */
  | { type: 'forget'; service: string };

/** A host that is away for longer has its services made elsewhere, where there is an elsewhere. */
export const HOST_GRACE_MS = 30_000;
/** Builds on a host at a time. */
const BUILDS_PER_HOST = 2;
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
  const hosts = new Map(snapshot.hosts.map((host) => [host.name, host]));
  const builds = new Map<string, number>();
  for (const work of snapshot.work) {
    if (work.kind === 'prepare') builds.set(work.host, (builds.get(work.host) ?? 0) + 1);
  }
  const decisions: Decision[] = [];
  for (const record of snapshot.services) {
    const view = { record, hosts, snapshot, now };
    if (isEnabled(record)) {
      const placed = place(view);
      if (placed !== undefined) {
        decisions.push(placed);
        continue;
      }
      decisions.push(...remake(view), ...cancel(view), ...build(view, builds), ...assign(view));
    } else {
      decisions.push(...cancel(view));
    }
  }
  for (const host of snapshot.hosts) if (isKnown(host)) decisions.push(...tidy(host, snapshot, now));
  decisions.push(...forget(snapshot, hosts, now));
  return decisions;
}

interface View {
  record: ServiceRecord;
  hosts: ReadonlyMap<string, HostState>;
  snapshot: Snapshot;
  now: number;
}

/** A service stays where it is, unless its host is away for long and another one is there. */
function place({ record, hosts, snapshot, now }: View): Decision | undefined {
  const { current } = record;
  const maker = current && hosts.get(current.host);
  if (current && current.host !== record.host && maker?.connected) {
    // It came back before another host had made the revision: it goes on serving.
    return { type: 'place', service: record.name, host: current.host };
  }
  const home = hosts.get(record.host);
  if (home?.connected) return undefined;
  if (home !== undefined && now - home.since < HOST_GRACE_MS) return undefined;
  const best = choose(record, snapshot);
  return best === undefined ? undefined : { type: 'place', service: record.name, host: best };
}

/** The host that holds the revision's checkpoint already, else the one with the fewest services. */
function choose(record: ServiceRecord, snapshot: Snapshot): string | undefined {
  const wanted = record.pending?.id ?? record.current?.id;
  const rank = (host: HostState): [number, number, number] => [
    host.checkpoints.some((held) => usable(held, record.name, wanted)) ? 0 : 1,
    host.engine?.ready ? 0 : 1,
    snapshot.services.filter((other) => other.host === host.name && !other.removed).length,
  ];
  const ranked = snapshot.hosts
    .filter(isKnown)
    .map((host) => ({ name: host.name, rank: rank(host) }))
    .sort(
      (a, b) => a.rank[0] - b.rank[0] || a.rank[1] - b.rank[1] || a.rank[2] - b.rank[2] || (a.name < b.name ? -1 : 1),
    );
  return ranked[0]?.name;
}

function usable(held: HostState['checkpoints'][number], service: string, revision: string | undefined): boolean {
  return held.service === service && held.revision === revision && held.quarantined === undefined;
}

/** The current revision has to be made again when its host cannot serve it from a checkpoint that should be there. */
function remake({ record, hosts, now }: View): Decision[] {
  const { current } = record;
  if (current === undefined) return [];
  const decision = (force: boolean): Decision[] => [{ type: 'remake', service: record.name, force }];
  if (current.making !== undefined) {
    return mayRecover(current.making, hosts.get(record.host)) ? decision(false) : [];
  }
  if (current.host !== record.host) return decision(false);
  const host = hosts.get(current.host);
  if (!isKnown(host) || current.problem !== undefined) return [];
  if (now - current.madeAt < REMAKE_PAUSE_MS && host.since < current.madeAt) return [];
  const held = host.checkpoints.filter((one) => one.service === record.name && one.revision === current.id);
  if (held.some((one) => one.quarantined === undefined)) return [];
  return decision(held.length > 0);
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

/** Stops a build of what is not wanted any more. */
function cancel(view: View): Decision[] {
  const { record, snapshot } = view;
  const wanted = isEnabled(record) ? target(view) : undefined;
  return snapshot.work
    .filter((work) => work.kind === 'prepare' && work.service === record.name && !work.cancelled)
    .filter((work) => work.revision !== wanted?.id || work.host !== record.host)
    .map((work): Decision => ({ type: 'cancel', work: work.id }));
}

/** Never two builds of a service at once, and few on a host; `builds` counts those per host and is kept up to date. */
function build(view: View, builds: Map<string, number>): Decision[] {
  const { record, hosts, snapshot, now } = view;
  const wanted = target(view);
  const host = hosts.get(record.host);
  if (wanted === undefined || !isKnown(host) || wanted.making.notBefore > now) return [];
  if (snapshot.work.some((work) => work.kind === 'prepare' && work.service === record.name)) return [];
  const held = host.checkpoints.some((one) => usable(one, record.name, wanted.id));
  if (!held && !host.engine?.ready) return [];
  const running = builds.get(host.name) ?? 0;
  if (running >= BUILDS_PER_HOST) return [];
  builds.set(host.name, running + 1);
  const { id: revision, making } = wanted;
  return [{ type: 'prepare', service: record.name, host: host.name, revision, force: making.force }];
}

/** The current revision's host is told to serve it, again after every change of configuration and every reconnect. */
function assign({ record, hosts, snapshot, now }: View): Decision[] {
  const { current } = record;
  const host = current && hosts.get(current.host);
  if (!current || !isKnown(host)) return [];
  const assignment = assignmentOf(record, current, snapshot.pools.get(record.name));
  if (servesAs(host, assignment, now) || isBusy(snapshot, 'assign', host.name, record.name, now)) return [];
  return [{ type: 'assign', service: record.name, host: host.name, assignment }];
}

function servesAs(host: HostState, wanted: ServiceAssignment, now: number): boolean {
  const name = wanted.config!.serviceName;
  const confirmed = host.confirmed.get(name);
  const said = confirmed !== undefined && sameAssignment(confirmed.assignment, wanted);
  if (said && now - confirmed.at < REPORT_LAG_MS) return true;
  const reported = host.assignments.find((one) => one.config?.serviceName === name);
  // A report that repeats the configuration in another form is as good, once the agent has confirmed it.
  return (
    reported !== undefined && (sameAssignment(reported, wanted) || (said && reported.revision === wanted.revision))
  );
}

/** Withdraws what a host must not serve, and removes what it need not hold. */
function tidy(host: HostState, snapshot: Snapshot, now: number): Decision[] {
  const records = new Map(snapshot.services.map((record) => [record.name, record]));
  const decisions: Decision[] = [];
  const served = new Set(host.assignments.flatMap((one) => (one.config ? [one.config.serviceName] : [])));
  for (const service of served) {
    const record = records.get(service);
    if (record !== undefined && isEnabled(record) && record.current?.host === host.name) continue;
    if (!isBusy(snapshot, 'withdraw', host.name, service, now)) {
      decisions.push({ type: 'withdraw', service, host: host.name });
    }
  }
  for (const service of new Set([...host.checkpoints.map((one) => one.service), ...host.volumeServices])) {
    const record = records.get(service);
    // What belongs to no service that we know is left for a person to judge.
    if (record === undefined || !isSettled(record)) continue;
    const keep = keptAt(record, host.name);
    const held = host.checkpoints.filter((one) => one.service === service);
    const volumesGo = record.removed && host.volumeServices.includes(service);
    if ((held.every((one) => keep.includes(one.revision)) && !volumesGo) || (record.removed && served.has(service))) {
      continue;
    }
    if (snapshot.work.some((work) => work.kind === 'prepare' && work.service === service)) continue;
    if (isBusy(snapshot, 'deleteRevisions', host.name, service, now)) continue;
    decisions.push({ type: 'deleteRevisions', service, host: host.name, keep, removed: record.removed });
  }
  return decisions;
}

/** While a service is being placed or made, what hosts hold of it may still be of use. */
function isSettled({ removed, host, current, pending }: ServiceRecord): boolean {
  if (removed) return true;
  return current?.host === host && current.making === undefined && pending?.making.kind !== 'wanted';
}

/** Revisions of a service that a host keeps: what serves, what is being made, and the one before for a way back. */
function keptAt(record: ServiceRecord, host: string): string[] {
  if (record.removed) return [];
  const made = [record.current, record.previous].filter(
    (one): one is MadeRevision => one !== undefined && (one.host === host || record.host === host),
  );
  const pending = record.pending !== undefined && record.host === host ? [record.pending.id] : [];
  return [...new Set([...made.map((one) => one.id), ...pending])];
}

function isBusy(snapshot: Snapshot, kind: Work['kind'], host: string, service: string, now: number): boolean {
  const until = snapshot.cooldowns.get(workKey(kind, host, service)) ?? 0;
  return (
    until > now || snapshot.work.some((work) => work.kind === kind && work.host === host && work.service === service)
  );
}

/** A removed service is forgotten once no host has anything of it. */
function forget(snapshot: Snapshot, hosts: ReadonlyMap<string, HostState>, now: number): Decision[] {
  return snapshot.services
    .filter((record) => record.removed && !snapshot.work.some((work) => work.service === record.name))
    .filter((record) => {
      const places = [record.host, record.current?.host, record.previous?.host].filter((name) => name !== undefined);
      const waits = places.some((name) => hosts.has(name) && !isKnown(hosts.get(name)));
      if (waits && now - record.updatedAt < FORGET_MS) return false;
      return snapshot.hosts.every(
        (host) =>
          !isKnown(host) ||
          (host.checkpoints.every((one) => one.service !== record.name) &&
            !host.volumeServices.includes(record.name) &&
            host.assignments.every((one) => one.config?.serviceName !== record.name)),
      );
    })
    .map((record): Decision => ({ type: 'forget', service: record.name }));
}
