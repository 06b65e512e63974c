import type { HeldRevision, ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import type {
  Checkpoint,
  EngineStatus,
  Fingerprint,
  Instance,
  Problem,
  ServiceConfig,
} from '../../proto/gen/initless/v1/types.js';

/** What the control plane knows and decides on. Times are milliseconds since 1970 everywhere in the core. */

/** A revision is to be made. */
export interface Wanted {
  kind: 'wanted';
  /** Make a new checkpoint even where there is one. */
  force: boolean;
  /** Times that it was begun and cut short by the loss of its host. */
  attempts: number;
  /** Not begun before this. */
  notBefore: number;
}

/** Whether a revision is to be made (again), or could not be. */
export type Making = Wanted | { kind: 'failed'; problem: Problem; at: number };

/** What every revision has. */
export interface RevisionRecord {
  /** First 12 hexadecimal digits of the digest over folder and configuration. */
  id: string;
  /** Digest of its build context. */
  contextDigest: string;
  /** When it was accepted. */
  createdAt: number;
  /** The configuration it was accepted with; only the keys that make a revision are taken from here. */
  config: ServiceConfig;
}

/** A revision that is not made yet. */
export interface PendingRevision extends RevisionRecord {
  making: Making;
}

/** A revision that was made. */
export interface MadeRevision extends RevisionRecord {
  /** Image, "sha256:...". */
  imageId: string;
  /** Host that made it. */
  host: string;
  /** When it was made, last. */
  madeAt: number;
  /** Why it has no checkpoint. Undefined: it has one. */
  problem?: Problem;
  /** It is being made again: another host, a lost checkpoint, or somebody asked. */
  making?: Making;
}

/** A service as it is stored. */
export interface ServiceRecord {
  /** Its name. */
  name: string;
  /** Its `config.yaml` as it was taken in, so that new settings can be applied to it. */
  source: { text: string; dockerfile: string };
  /** What `source` says, with the defaults of the settings in force. */
  config: ServiceConfig;
  /** Folder below `code_dir` that it comes from. Empty: uploaded. */
  folder: string;
  /** Whether that folder is not there any more. */
  folderGone: boolean;
  /** It was removed; the record stays until every host has forgotten it too. */
  removed: boolean;
  /** When it was last changed by a person. */
  updatedAt: number;
  /** Host that makes its revisions; one of `hosts`. Empty: none yet. */
  host: string;
  /** Hosts it is placed on; the first is the one that requests are sent to first. */
  hosts: readonly string[];
  /** The revision that serves. */
  current?: MadeRevision;
  /** The revision that is to replace it. */
  pending?: PendingRevision;
  /** Revisions that served before, the latest first. */
  previous: readonly MadeRevision[];
  /** Somebody went back to an earlier revision: what is merely read again does not take its place. */
  rolledBack?: true;
}

/** A host as it is stored: what a gateway needs to reach its agent while the control plane does not. */
export interface HostRecord {
  name: string;
  /** Where gateways ask its agent for leases, "ADDRESS:PORT". */
  leaseAddress: string;
  /** Random, made at its agent's first start. Empty: not known. */
  identity: string;
  /** It gets no new services and no new copies. */
  cordoned: boolean;
  /** Since when it is being drained. */
  drainingSince?: number;
  /** Services that can go nowhere else lose their place on it too. */
  drainForced?: true;
}

/** A host as it is now. */
export interface HostState extends HostRecord {
  /** Whether its agent is connected. */
  connected: boolean;
  /** When its agent connected, or was last heard of, or when the control plane started if it has not been seen since. */
  since: number;
  /** Whether it has reported since it connected; if not, the report below is of an earlier connection. */
  reported: boolean;
  engine: EngineStatus | undefined;
  instances: readonly Instance[];
  checkpoints: readonly Checkpoint[];
  assignments: readonly ServiceAssignment[];
  /** Services whose named volumes it keeps. */
  volumeServices: readonly string[];
  /** Revisions whose images it holds. */
  revisions: readonly HeldRevision[];
  memoryAvailable: number;
  /** Ports that can still be leased to instances. */
  portsFree: number;
  agentVersion: string;
  fingerprint: Fingerprint | undefined;
  cpus: number;
  memoryTotal: number;
  /** Assignments it has confirmed since it connected, by service. */
  confirmed: ReadonlyMap<string, { assignment: ServiceAssignment; at: number }>;
}

/** A command that was sent because {@link Snapshot} asked for it, and has not ended. */
export interface Work {
  id: string;
  kind: 'prepare' | 'copy' | 'assign' | 'withdraw' | 'deleteRevisions';
  service: string;
  host: string;
  /** Of a prepare or a copy: its revision. */
  revision: string;
  /** It was told to stop. */
  cancelled: boolean;
}

/** What the hosts are to hold parked of a service whose pool follows its use (`pre_start_pool_size: auto`). */
export interface PoolPlan {
  /** Instances parked at most. */
  parked: number;
  /** Instances parked and running together. */
  ready: number;
  /** What each host has memory for; hosts that are not in it have no bound. */
  perHost: ReadonlyMap<string, number>;
  /** How likely they are to be needed soon, 0 to 4. */
  usefulness: number;
  /** Why, for people. */
  reason: string;
}

/** All that decisions are made of. */
export interface Snapshot {
  services: readonly ServiceRecord[];
  hosts: readonly HostState[];
  work: readonly Work[];
  /** Commands that just failed, or were just done, by `workKey`: not again before this. */
  cooldowns: ReadonlyMap<string, number>;
  /** Plans for pools that follow their use, by service. */
  pools: ReadonlyMap<string, PoolPlan>;
  /** Memory of its own that a parked instance holds, bytes, by service; measured. */
  memory: ReadonlyMap<string, number>;
  policy: Policy;
  /** The store has lost what was in it: a service that it does not know may be one that hosts still serve rightly. */
  recovering?: boolean;
}

/** Settings that decisions depend on. */
export interface Policy {
  /** A host that has been away for this long is lost, milliseconds. */
  hostTimeoutMs: number;
  /** Earlier revisions kept for a rollback. */
  keepRevisions: number;
}

/** What a cooldown is known by. */
export function workKey(kind: Work['kind'], host: string, service: string): string {
  return `${kind} ${host} ${service}`;
}

/** Whether a service is to be served at all. */
export function isEnabled(record: ServiceRecord): boolean {
  return !record.removed && !record.folderGone && record.config.isEnabled;
}

/** Whether a host's agent is connected and has said what is there. */
export function isKnown(host: HostState | undefined): host is HostState {
  return host?.connected === true && host.reported;
}
