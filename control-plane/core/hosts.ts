import { InstanceState } from '../../proto/gen/initless/v1/types.js';
import { assignmentIn, hostsAround, ofService } from './lookup.js';
import { type HostState, isKnown, type MadeRevision, type Policy, type ServiceRecord, type Snapshot } from './model.js';

/** How a host is seen: there; away, but nothing of it is replaced yet; or lost, and all of it is. */
export type Phase = 'ready' | 'away' | 'lost';

/** How a host is seen now. */
export function phaseOf(host: HostState | undefined, policy: Policy, now: number): Phase {
  if (host === undefined) return 'lost';
  if (host.connected) return 'ready';
  return now - host.since < policy.hostTimeoutMs ? 'away' : 'lost';
}

/** Whether a host has a checkpoint of a revision that it can restore. */
export function hasCheckpoint(host: HostState, service: string, revision: string | undefined): boolean {
  return ofService(host.checkpoints, service).some(
    (held) => held.revision === revision && held.quarantined === undefined,
  );
}

/** Whether a host has all it can have of a revision: its checkpoint or, where it cannot be checkpointed, its image. */
export function holds(host: HostState, service: string, revision: MadeRevision): boolean {
  if (hasCheckpoint(host, service, revision.id)) return true;
  if (revision.problem !== undefined && revision.host === host.name) return true;
  const image = ofService(host.revisions, service).find((held) => held.revision === revision.id);
  return image !== undefined && (revision.problem !== undefined || image.noCheckpoint);
}

/** Hosts that are connected and hold a service's revision, whether it is placed there or not. */
export function holders(record: ServiceRecord, revision: MadeRevision, snapshot: Snapshot): HostState[] {
  return hostsAround(record, snapshot).filter((host) => isKnown(host) && holds(host, record.name, revision));
}

/** Instances of a service that run on a host, those included that are coming up to run. */
export function runningOn(host: HostState, service: string): number {
  return ofService(host.instances, service).filter((one) => RUNNING.includes(one.state)).length;
}

/** Parked ones do not run. One that is being restored may be for a request: it counts until it is known to be parked. */
const RUNNING = [
  InstanceState.INSTANCE_STATE_SANDBOXED,
  InstanceState.INSTANCE_STATE_RESTORING,
  InstanceState.INSTANCE_STATE_RUNNING,
  InstanceState.INSTANCE_STATE_DRAINING,
];

/** What a host was last told to serve of a service, as far as is known. */
export function assignmentAt(host: HostState, service: string) {
  return assignmentIn(host.assignments, service);
}
