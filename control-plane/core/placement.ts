import type { Checkpoint } from '../../proto/gen/initless/v1/types.js';
import { hasCheckpoint, holds, phaseOf } from './hosts.js';
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
  /** What speaks for it, a sentence each. */
  merits: string[];
  /** Smaller is better, the first difference decides. */
  rank: readonly number[];
}

/** Where a service is to be. */
export interface Placement {
  /** Hosts, the first for requests first. */
  hosts: string[];
  /** The one that makes its revisions. Empty: none. */
  maker: string;
  /** One for each host, by name. */
  judgements: Judgement[];
}

/**
 * Where a service is to be. Pure. It stays where it is as long as it may; to that come the best of the other hosts, until
 * there are as many as `spread` says. Where no host is left, it stays where it was: that host may come back.
 */
export function placementOf(record: ServiceRecord, snapshot: Snapshot, now: number): Placement {
  const model = checkpointsOf(record, snapshot)[0];
  const judgements = snapshot.hosts.map((host) => judge(record, host, model, snapshot, now));
  const byName = new Map(judgements.map((one) => [one.host, one]));
  const spread = hasNamedVolumes(record) ? 1 : Math.max(1, record.config.spread);
  const kept = record.hosts.filter((name) => byName.get(name)?.mayStay).slice(0, spread);
  const others = judgements
    .filter((one) => one.refusals.length === 0 && !kept.includes(one.host))
    .sort((a, b) => compareRanks(a.rank, b.rank) || (a.host < b.host ? -1 : 1))
    .map((one) => one.host);
  const chosen = [...kept, ...others].slice(0, spread);
  const forced = record.hosts.every(
    (name) => !byName.has(name) || snapshot.hosts.some((host) => host.name === name && host.drainForced),
  );
  const hosts = chosen.length > 0 ? chosen : forced ? [] : [...record.hosts];
  return { hosts, maker: makerOf(record, hosts, snapshot, now), judgements };
}

/** Whether instances keep files under a name that the host holds: then it can be on no other host. */
export function hasNamedVolumes(record: ServiceRecord): boolean {
  return record.config.volumes.some(({ source }) => !source.includes('/'));
}

function compareRanks(a: readonly number[], b: readonly number[]): number {
  const at = a.findIndex((value, index) => value !== b[index]);
  return at === -1 ? 0 : a[at]! - b[at]!;
}

function judge(
  record: ServiceRecord,
  host: HostState,
  model: Checkpoint | undefined,
  snapshot: Snapshot,
  now: number,
): Judgement {
  const phase = phaseOf(host, snapshot.policy, now);
  const placed = record.hosts.includes(host.name);
  const { refusals, merits } = { refusals: [] as string[], merits: [] as string[] };
  if (phase !== 'ready') {
    const seconds = Math.round((now - host.since) / 1_000);
    refusals.push(phase === 'away' ? `it has been away for ${seconds} s` : `it is lost: away for ${seconds} s`);
  } else if (!host.reported) refusals.push('it has not said yet what is on it');
  if (host.drainingSince !== undefined) refusals.push('it is being drained');
  else if (host.cordoned) refusals.push('it is cordoned');
  const pinned = volumeHost(record, snapshot);
  if (pinned !== undefined && pinned !== host.name) refusals.push(`its named volumes are on ${pinned}`);
  const mayStay = phase !== 'lost' && host.drainingSince === undefined && (pinned ?? host.name) === host.name;
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
  if (checkpoint) merits.push(`it has the checkpoint of revision ${wanted}`);
  const misfit = model !== undefined && !checkpoint && !fits(host, model);
  if (misfit) merits.push(`the checkpoint of ${model.host} does not fit its machine: it would have to make its own`);
  const others = snapshot.services.filter((one) => !one.removed && one.name !== record.name);
  const load = others.filter((one) => one.hosts.includes(host.name)).length;
  const firsts = others.filter((one) => one.hosts[0] === host.name).length;
  merits.push(`${load} other services are placed on it, and ${mib(host.memoryAvailable)} of its memory are free`);
  const rank = [checkpoint ? 0 : 1, misfit ? 1 : 0, load, firsts, -Math.floor(host.memoryAvailable / 2 ** 30)];
  return { host: host.name, placed, mayStay, refusals, merits, rank };
}

/** The host that keeps a service's named volumes. Undefined: it has none, or none was made yet. */
function volumeHost(record: ServiceRecord, snapshot: Snapshot): string | undefined {
  if (!hasNamedVolumes(record)) return undefined;
  const keeper = snapshot.hosts.find((host) => host.volumeServices.includes(record.name));
  if (keeper !== undefined) return keeper.name;
  // It was made there, so its volumes are there, whether the host can be asked or not.
  const maker = record.current?.host;
  return snapshot.hosts.some((host) => host.name === maker) ? maker : undefined;
}

function checkpointsOf(record: ServiceRecord, snapshot: Snapshot): Checkpoint[] {
  return snapshot.hosts
    .flatMap((host) => host.checkpoints)
    .filter((one) => one.service === record.name && one.revision === record.current?.id && !one.quarantined);
}

/** A guess for the choice of a host only: the host itself decides whether it can restore a checkpoint. */
function fits(host: HostState, { fingerprint }: Checkpoint): boolean {
  const here = host.fingerprint;
  if (here === undefined || fingerprint === undefined) return true;
  const flags = new Set(here.cpuFlags);
  return (
    here.arch === fingerprint.arch &&
    here.kernel === fingerprint.kernel &&
    here.criu === fingerprint.criu &&
    fingerprint.cpuFlags.every((flag) => flags.has(flag))
  );
}

/** It goes on making revisions while it is there; else one that holds what serves takes over, else any. */
function makerOf(record: ServiceRecord, hosts: readonly string[], snapshot: Snapshot, now: number): string {
  const { current } = record;
  const all = new Map(snapshot.hosts.map((host) => [host.name, host]));
  if (hosts.includes(record.host) && phaseOf(all.get(record.host), snapshot.policy, now) !== 'lost') return record.host;
  const ready = hosts.filter((name) => isKnown(all.get(name)));
  const holder = current && ready.find((name) => holds(all.get(name)!, record.name, current));
  return holder ?? ready[0] ?? hosts[0] ?? '';
}

function mib(bytes: number): string {
  return `${Math.round(bytes / 2 ** 20)} MiB`;
}
