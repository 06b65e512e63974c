import {
  type Instance,
  type InstanceCounts,
  InstanceState,
  type Listener,
  type PoolTarget,
  type Problem,
  type Revision,
  type Service,
  type ServiceHost,
  ServiceState,
} from '../../proto/gen/initless/v1/types.js';
import { assignmentAt, hasCheckpoint, holds } from './hosts.js';
import { hostsAround, lookup, ofService, workOn } from './lookup.js';
import { type HostState, isEnabled, isKnown, type RevisionRecord, type ServiceRecord, type Snapshot } from './model.js';

/** What is said of a service: its state, and why. */
export interface Verdict {
  state: ServiceState;
  problem: Problem | undefined;
}

/** A service as people see it. */
export function serviceView(record: ServiceRecord, snapshot: Snapshot, listeners: readonly Listener[]): Service {
  const { current, pending } = record;
  const instances = hostsAround(record, snapshot)
    .filter((host) => host.connected)
    .flatMap((host) => ofService(host.instances, record.name));
  return {
    config: record.config,
    ...verdict(record, snapshot),
    current: current && revisionView(current, current.imageId, current.problem),
    pending: pending
      ? revisionView(pending, '', pending.making.kind === 'failed' ? pending.making.problem : undefined)
      : current?.making &&
        revisionView(current, '', current.making.kind === 'failed' ? current.making.problem : undefined),
    folder: record.folder,
    updatedAt: new Date(record.updatedAt),
    instances: countInstances(instances),
    listeners: listeners.filter((listener) => listener.service === record.name),
    host: record.host,
    pool: poolTarget(record, snapshot),
    hosts: serviceHosts(record, snapshot),
    previous: record.previous
      .slice(0, snapshot.policy.keepRevisions)
      .map((one) => revisionView(one, one.imageId, one.problem)),
  };
}

/** The service on each of its hosts, and on those that it is about to leave. */
function serviceHosts(record: ServiceRecord, snapshot: Snapshot): ServiceHost[] {
  const { name, config } = record;
  const left = hostsAround(record, snapshot).filter(
    (host) => host.connected && !record.hosts.includes(host.name) && assignmentAt(host, name),
  );
  return [...record.hosts, ...left.map((host) => host.name)].map((at): ServiceHost => {
    const host = lookup(snapshot).hosts.get(at);
    const told = host && assignmentAt(host, name);
    const instances = countInstances(host?.connected ? ofService(host.instances, name) : []);
    const note = noteOf(at, record, host, snapshot);
    const parked = told?.pool?.parked ?? (told && !config.preStartPoolAuto ? config.preStartPoolSize : 0);
    const maxRunning = told?.pool?.maxRunning ?? (told ? config.maxPoolSize : 0);
    return { host: at, serves: told !== undefined && host?.connected === true, parked, maxRunning, instances, note };
  });
}

function noteOf(at: string, record: ServiceRecord, host: HostState | undefined, snapshot: Snapshot): string {
  const { name, current } = record;
  if (host === undefined) return 'the host is not known any more';
  if (!host.connected) return 'the host is away';
  if (!record.hosts.includes(at)) return 'it goes on here until another host serves';
  const busy = workOn(snapshot, name).find((work) => work.host === at && work.kind !== 'withdraw');
  if (busy?.kind === 'prepare') return `it makes revision ${busy.revision}`;
  if (busy?.kind === 'copy') return `it copies revision ${busy.revision}`;
  const told = assignmentAt(host, name);
  if (told !== undefined && told.revision !== current?.id)
    return `it serves revision ${told.revision} until it has ${current?.id}`;
  if (told !== undefined || current === undefined) return '';
  return holds(host, name, current) ? 'it is about to be told to serve' : `it has not got revision ${current.id} yet`;
}

function poolTarget({ name, config }: ServiceRecord, snapshot: Snapshot): PoolTarget {
  if (!config.preStartPoolAuto) return { parked: config.preStartPoolSize, auto: false, reason: '' };
  const plan = snapshot.pools.get(name);
  return { parked: plan?.parked ?? 0, auto: true, reason: plan?.reason ?? 'it is not served yet' };
}

function revisionView(revision: RevisionRecord, imageId: string, problem: Problem | undefined): Revision {
  const { id, contextDigest, createdAt } = revision;
  return { id, contextDigest, createdAt: new Date(createdAt), imageId, problem };
}

/** Numbers of instances by state. */
export function countInstances(instances: readonly Instance[]): InstanceCounts {
  const count = (state: InstanceState) => instances.filter((instance) => instance.state === state).length;
  const running = count(InstanceState.INSTANCE_STATE_RUNNING);
  const parked = count(InstanceState.INSTANCE_STATE_PARKED);
  return { running, parked, other: instances.length - running - parked };
}

/** A service's state as a whole, and why it is in it where that needs saying. */
export function verdict(record: ServiceRecord, snapshot: Snapshot): Verdict {
  if (!isEnabled(record)) return { state: ServiceState.SERVICE_STATE_DISABLED, problem: whyDisabled(record) };
  return record.current === undefined ? unmade(record, snapshot) : made(record, record.current, snapshot);
}

function whyDisabled(record: ServiceRecord): Problem | undefined {
  if (!record.folderGone) return undefined;
  return say(
    'DISABLED',
    `the folder ${record.folder} below code_dir is gone, or is not ${record.name} any more`,
    `put it back, or run 'initless service rm ${record.name}'`,
  );
}

/** A service none of whose revisions was ever made. */
function unmade(record: ServiceRecord, snapshot: Snapshot): Verdict {
  const making = record.pending?.making;
  if (isBuilding(record, snapshot)) return { state: ServiceState.SERVICE_STATE_BUILDING, problem: undefined };
  if (making?.kind === 'failed') return { state: ServiceState.SERVICE_STATE_FAILED, problem: making.problem };
  return { state: ServiceState.SERVICE_STATE_PENDING, problem: whyPending(record, snapshot) };
}

function whyPending(record: ServiceRecord, snapshot: Snapshot): Problem | undefined {
  const host = lookup(snapshot).hosts.get(record.host);
  if (host?.connected) {
    if (!host.reported || host.engine?.ready) return undefined;
    return engineDown(host);
  }
  return host === undefined ? noHost(snapshot) : agentDown(host.name);
}

/** A service with a revision that was made. */
function made(record: ServiceRecord, current: NonNullable<ServiceRecord['current']>, snapshot: Snapshot): Verdict {
  const connected = hostsAround(record, snapshot).filter(
    (host) => host.connected && (record.hosts.includes(host.name) || serves(host, record.name)),
  );
  if (connected.length === 0) {
    return { state: ServiceState.SERVICE_STATE_PENDING, problem: agentDown(record.hosts[0] ?? current.host) };
  }
  const serving = connected.filter((host) => host.reported && serves(host, record.name));
  const host = serving.find((one) => hasCheckpoint(one, record.name, current.id)) ?? serving[0];
  if (host === undefined) return { state: ServiceState.SERVICE_STATE_BUILDING, problem: undefined };
  const degraded = (problem: Problem): Verdict => ({ state: ServiceState.SERVICE_STATE_DEGRADED, problem });
  if (current.problem !== undefined) return degraded(current.problem);
  const held = ofService(host.checkpoints, record.name).filter((one) => one.revision === current.id);
  if (held.some((one) => one.quarantined === undefined)) {
    return { state: ServiceState.SERVICE_STATE_READY, problem: undefined };
  }
  const quarantined = held[0]?.quarantined;
  if (quarantined !== undefined) return degraded(quarantined);
  if (host.since > current.madeAt) {
    return degraded(
      say('NO_CHECKPOINT', `the checkpoint of ${record.name} is not on ${host.name} any more; it is made again`, ''),
    );
  }
  // It was just made; the host's next report will show it.
  return { state: ServiceState.SERVICE_STATE_READY, problem: undefined };
}

/** Whether a host serves a service now, at whatever revision. */
export function serves(host: HostState, service: string): boolean {
  return host.confirmed.has(service) || assignmentAt(host, service) !== undefined;
}

/** Whether one of a service's revisions is being made at this moment. */
export function isBuilding(record: ServiceRecord, snapshot: Snapshot): boolean {
  return workOn(snapshot, record.name).some((work) => work.kind === 'prepare' && !work.cancelled);
}

/** Whether nothing more will happen to a service's revisions by itself. */
export function isAtRest(record: ServiceRecord, snapshot: Snapshot): boolean {
  if (!isEnabled(record)) return true;
  if (isBuilding(record, snapshot)) return false;
  if (record.pending?.making.kind === 'wanted' || record.current?.making?.kind === 'wanted') return false;
  const { state } = verdict(record, snapshot);
  return state !== ServiceState.SERVICE_STATE_BUILDING && state !== ServiceState.SERVICE_STATE_PENDING;
}

/** Why nothing serves: no host at all. */
export function noHost(snapshot: Snapshot): Problem {
  const connected = snapshot.hosts.some((host) => isKnown(host));
  return say(
    'NO_HOST',
    connected ? 'no host was chosen yet' : 'no host is connected',
    connected ? '' : "run 'initless host up host1'; 'initless host ls' shows the hosts",
  );
}

/** Why nothing serves: the host is away. */
export function agentDown(host: string): Problem {
  return say(
    'AGENT_DOWN',
    `the host ${host} is not connected`,
    `run 'initless host up ${host}'; 'docker logs' of its container shows what its agent says`,
  );
}

function engineDown(host: HostState): Problem {
  const reason = host.engine?.error ? `: ${host.engine.error}` : '';
  return say('ENGINE_DOWN', `the Docker engine of ${host.name} does not answer${reason}`, 'its agent starts it again');
}

function say(code: Problem['code'], message: string, nextStep: string): Problem {
  return { code, message, nextStep, outputTail: [] };
}
