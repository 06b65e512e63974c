import type { Checkpoint, Fingerprint } from '../../proto/gen/initless/v1/types.js';
import { hasCheckpoint, holds, phaseOf } from './hosts.js';
import { hostsAround, type Load, lookup, ofService } from './lookup.js';
import { type HostState, isKnown, type ServiceRecord, type Snapshot } from './model.js';

/** What a parked instance is taken to hold before the first was measured, bytes. */
const UNMEASURED = 32 * 2 ** 20;
/** Memory that a host is to have left once an instance was added, bytes. */
const HEADROOM = 256 * 2 ** 20;

/** What speaks for and against a host. */
export interface Judgement {
  host: string;
  /** The service is on it. */
  placed: boolean;
  /** It may stay there. */
  mayStay: boolean;
  /** All that speaks against placing it there anew, a sentence each. */
  refusals: string[];
  /** What speaks for it, a sentence each. Put into words when it is asked for only: a choice looks at all hosts. */
  merits: () => string[];
  /** Smaller is better, the first difference decides. */
  rank: readonly number[];
}

/** Where a service is to be. */
export interface Placement {
  /** Hosts, the first for requests first. */
  hosts: string[];
  /** The one that makes its revisions. Empty: none. */
  maker: string;
}

/** Services that were placed on hosts since the snapshot, by host. */
export type Added = ReadonlyMap<string, Load>;

const NOTHING: Added = new Map();

/**
 * Where a service is to be. Pure. It stays where it is as long as it may; to that come the best of the other hosts, until
 * there are as many as `spread` says. Where no host is left, it stays where it was: that host may come back.
 *
 * @param added what was placed since the snapshot: of many services that lose a host at once, not all go to the same one.
 */
export function placementOf(record: ServiceRecord, snapshot: Snapshot, now: number, added = NOTHING): Placement {
  const { hosts: all } = lookup(snapshot);
  const spread = hasNamedVolumes(record) ? 1 : Math.max(1, record.config.spread);
  const pinned = volumeHost(record, snapshot);
  const mayStay = (name: string) => {
    const host = all.get(name);
    return host !== undefined && stays(host, pinned, snapshot, now);
  };
  const kept = record.hosts.filter(mayStay).slice(0, spread);
  // The rule, and the others need not be looked at then.
  if (kept.length === spread) return { hosts: kept, maker: makerOf(record, kept, snapshot, now) };
  const others = judgementsOf(record, snapshot, now, added)
    .filter((one) => one.refusals.length === 0 && !kept.includes(one.host))
    .sort((a, b) => compareRanks(a.rank, b.rank) || (a.host < b.host ? -1 : 1))
    .map((one) => one.host);
  const chosen = [...kept, ...others].slice(0, spread);
  const forced = record.hosts.every((name) => !all.has(name) || all.get(name)?.drainForced);
  const hosts = chosen.length > 0 ? chosen : forced ? [] : [...record.hosts];
  return { hosts, maker: makerOf(record, hosts, snapshot, now) };
}

/** What speaks for and against each host, by name. Pure. */
export function judgementsOf(record: ServiceRecord, snapshot: Snapshot, now: number, added = NOTHING): Judgement[] {
  const pinned = volumeHost(record, snapshot);
  const model = checkpointsOf(record, snapshot)[0];
  return snapshot.hosts.map((host) => judge(record, host, { snapshot, now, added, pinned, model }));
}

/** Whether what is placed on a host may stay there. */
function stays(host: HostState, pinned: string | undefined, { policy }: Snapshot, now: number): boolean {
  return (
    phaseOf(host, policy, now) !== 'lost' && host.drainingSince === undefined && (pinned ?? host.name) === host.name
  );
}

/** What hosts are judged by. */
interface Context {
  snapshot: Snapshot;
  now: number;
  added: Added;
  /** The host that keeps the service's named volumes. */
  pinned: string | undefined;
  /** A checkpoint of what serves. */
  model: Checkpoint | undefined;
}

/** Whether instances keep files under a name that the host holds: then it can be on no other host. */
export function hasNamedVolumes(record: ServiceRecord): boolean {
  return record.config.volumes.some(({ source }) => !source.includes('/'));
}

function compareRanks(a: readonly number[], b: readonly number[]): number {
  const at = a.findIndex((value, index) => value !== b[index]);
  return at === -1 ? 0 : a[at]! - b[at]!;
}

function judge(record: ServiceRecord, host: HostState, context: Context): Judgement {
  const { snapshot, now, pinned, model } = context;
  const phase = phaseOf(host, snapshot.policy, now);
  const placed = record.hosts.includes(host.name);
  const refusals: string[] = [];
  if (phase !== 'ready') {
    const seconds = Math.round((now - host.since) / 1_000);
    refusals.push(phase === 'away' ? `it has been away for ${seconds} s` : `it is lost: away for ${seconds} s`);
  } else if (!host.reported) refusals.push('it has not said yet what is on it');
  if (host.drainingSince !== undefined) refusals.push('it is being drained');
  else if (host.cordoned) refusals.push('it is cordoned');
  if (pinned !== undefined && pinned !== host.name) refusals.push(`its named volumes are on ${pinned}`);
  const mayStay = stays(host, pinned, snapshot, now);
  if (isKnown(host)) {
    if (!host.engine?.ready) refusals.push('its Docker engine does not answer');
    if (host.portsFree < 1) refusals.push('it has no port left to lease to an instance');
    const need = (snapshot.memory.get(record.name) ?? UNMEASURED) + HEADROOM;
    if (host.memoryAvailable < need) {
      refusals.push(`it has ${mib(host.memoryAvailable)} of memory free, and ${mib(need)} are wanted`);
    }
  }
  const wanted = record.pending?.id ?? record.current?.id;
  const checkpoint = hasCheckpoint(host, record.name, wanted);
  const misfit = model !== undefined && !checkpoint && !fits(host, model);
  const { placed: load, first: firsts } = loadOn(host, record, context);
  const merits = () => [
    ...(checkpoint ? [`it has the checkpoint of revision ${wanted}`] : []),
    ...(misfit ? [`the checkpoint of ${model.host} does not fit its machine: it would have to make its own`] : []),
    `${load} other services are placed on it, and ${mib(host.memoryAvailable)} of its memory are free`,
  ];
  const rank = [checkpoint ? 0 : 1, misfit ? 1 : 0, load, firsts, -Math.floor(host.memoryAvailable / 2 ** 30)];
  return { host: host.name, placed, mayStay, refusals, merits, rank };
}

/** The other services on a host. */
function loadOn({ name }: HostState, record: ServiceRecord, { snapshot, added }: Context): Load {
  const known = lookup(snapshot).loads.get(name);
  const more = added.get(name);
  const own = record.removed || !record.hosts.includes(name) ? 0 : 1;
  const ownFirst = own === 1 && record.hosts[0] === name ? 1 : 0;
  return {
    placed: (known?.placed ?? 0) + (more?.placed ?? 0) - own,
    first: (known?.first ?? 0) + (more?.first ?? 0) - ownFirst,
  };
}

/** The host that keeps a service's named volumes. Undefined: it has none, or none was made yet. */
function volumeHost(record: ServiceRecord, snapshot: Snapshot): string | undefined {
  if (!hasNamedVolumes(record)) return undefined;
  const keeper = hostsAround(record, snapshot).find((host) => host.volumeServices.includes(record.name));
  if (keeper !== undefined) return keeper.name;
  // It was made there, so its volumes are there, whether the host can be asked or not.
  const maker = record.current?.host;
  return maker !== undefined && lookup(snapshot).hosts.has(maker) ? maker : undefined;
}

function checkpointsOf(record: ServiceRecord, snapshot: Snapshot): Checkpoint[] {
  return hostsAround(record, snapshot)
    .flatMap((host) => ofService(host.checkpoints, record.name))
    .filter((one) => one.revision === record.current?.id && !one.quarantined);
}

/** A guess for the choice of a host only: the host itself decides whether it can restore a checkpoint. */
function fits(host: HostState, { fingerprint }: Checkpoint): boolean {
  const here = host.fingerprint;
  if (here === undefined || fingerprint === undefined) return true;
  return (
    here.arch === fingerprint.arch &&
    here.kernel === fingerprint.kernel &&
    here.criu === fingerprint.criu &&
    hasFlags(here, fingerprint)
  );
}

/** Most machines of a fleet are alike: their flags are the same text, and need not be gone through one by one. */
const flags = new WeakMap<Fingerprint, { all: ReadonlySet<string>; text: string }>();

function flagsOf(fingerprint: Fingerprint) {
  const found = flags.get(fingerprint) ?? {
    all: new Set(fingerprint.cpuFlags),
    text: fingerprint.cpuFlags.join(' '),
  };
  flags.set(fingerprint, found);
  return found;
}

function hasFlags(here: Fingerprint, wanted: Fingerprint): boolean {
  const { all, text } = flagsOf(here);
  return text === flagsOf(wanted).text || wanted.cpuFlags.every((flag) => all.has(flag));
}

/** It goes on making revisions while it is there; else one that holds what serves takes over, else any. */
function makerOf(record: ServiceRecord, hosts: readonly string[], snapshot: Snapshot, now: number): string {
  const { current } = record;
  const { hosts: all } = lookup(snapshot);
  if (hosts.includes(record.host) && phaseOf(all.get(record.host), snapshot.policy, now) !== 'lost') return record.host;
  const ready = hosts.filter((name) => isKnown(all.get(name)));
  const holder = current && ready.find((name) => holds(all.get(name)!, record.name, current));
  return holder ?? ready[0] ?? hosts[0] ?? '';
}

function mib(bytes: number): string {
  return `${Math.round(bytes / 2 ** 20)} MiB`;
}
