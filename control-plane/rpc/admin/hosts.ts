import type { AdminServiceImplementation, DrainHostResponse } from '../../../proto/gen/initless/v1/admin.js';
import { type Host, HostPhase } from '../../../proto/gen/initless/v1/types.js';
import { deadline, sleep } from '../../../proto/rpc/deadline.js';
import { InitlessError } from '../../../proto/rpc/errors.js';
import { phaseOf } from '../../core/hosts.js';
import { type HostState, isEnabled } from '../../core/model.js';
import { placementOf } from '../../core/placement.js';
import { countInstances } from '../../core/view.js';
import type { AdminParts } from './parts.js';

/** A drain's bound where the caller gives none. */
const DRAIN_MS = 5 * 60_000;
/** How often a drain is looked at. */
const LOOK_MS = 200;
/** Removing instances at the end of a forced drain. */
const REMOVE_MS = 30_000;

type HostCalls = Pick<
  AdminServiceImplementation,
  'listHosts' | 'cordonHost' | 'uncordonHost' | 'drainHost' | 'removeHost'
>;

const PHASES = {
  ready: HostPhase.HOST_PHASE_READY,
  away: HostPhase.HOST_PHASE_AWAY,
  lost: HostPhase.HOST_PHASE_LOST,
};

/** Calls about hosts as a whole. */
export function hostCalls(parts: AdminParts): HostCalls {
  const { fleet, events } = parts;
  const say = (kind: string, host: string, message: string) => events.add({ kind, host, message });
  return {
    async listHosts() {
      return { hosts: fleet.list().map((host) => hostView(parts, host)) };
    },

    async cordonHost({ host }) {
      const { drainingSince, drainForced } = fleet.get(host);
      const drain = { ...(drainingSince !== undefined && { drainingSince }), ...(drainForced && { drainForced }) };
      const cordoned = await fleet.mark(host, { cordoned: true, ...drain });
      say('host.cordoned', host, `${host} is cordoned`);
      return { host: hostView(parts, cordoned) };
    },

    async uncordonHost({ host }) {
      const open = await fleet.mark(host, { cordoned: false });
      say('host.uncordoned', host, `${host} takes services again`);
      return { host: hostView(parts, open) };
    },

    drainHost: ({ host, deadlineMs, force }, { signal }) => drain(parts, host, deadlineMs || DRAIN_MS, force, signal),

    async removeHost({ host }) {
      await fleet.remove(host);
      return {};
    },
  };
}

/** A host as people see it. */
function hostView({ reconciler }: AdminParts, host: HostState): Host {
  const { services, policy } = reconciler.snapshot();
  return {
    name: host.name,
    connected: host.connected,
    leaseAddress: host.leaseAddress,
    agentVersion: host.agentVersion,
    engine: host.engine,
    fingerprint: host.fingerprint,
    since: new Date(host.since),
    instances: countInstances(host.connected ? host.instances : []),
    cpus: host.cpus,
    memoryTotal: host.memoryTotal,
    memoryAvailable: host.memoryAvailable,
    phase: PHASES[phaseOf(host, policy, Date.now())],
    cordoned: host.cordoned,
    draining: host.drainingSince !== undefined,
    portsFree: host.portsFree,
    services: services.filter((one) => !one.removed && one.hosts.includes(host.name)).length,
    identity: host.identity,
  };
}

async function* drain(
  parts: AdminParts,
  name: string,
  ms: number,
  force: boolean,
  caller: AbortSignal,
): AsyncGenerator<DrainHostResponse> {
  const { fleet, events } = parts;
  fleet.link(fleet.get(name).name);
  const stuck = force ? [] : stuckOn(parts, name);
  if (stuck.length > 0) {
    throw new InitlessError('NOT_ALLOWED', `${name} cannot be drained: no other host can have ${stuck.join(', ')}`, {
      subject: name,
      nextStep: `start another host, see why with 'initless service explain ${stuck[0]}', or drain it with --force`,
    });
  }
  await fleet.mark(name, { cordoned: true, drainingSince: Date.now(), ...(force && { drainForced: true as const }) });
  events.add({ kind: 'host.draining', host: name, message: `${name} is being drained` });
  const bound = deadline(ms, `the drain of ${name}`, caller);
  let said = '';
  try {
    for (;;) {
      const left = leftOn(parts, name);
      if (left.done) {
        events.add({ kind: 'host.drained', host: name, message: left.message });
        yield left;
        return;
      }
      if (left.message !== said) yield left;
      said = left.message;
      await sleep(LOOK_MS, bound.signal);
    }
  } catch (error) {
    if (caller.aborted || (error as InitlessError).code !== 'DEADLINE') throw error;
    const left = leftOn(parts, name);
    if (!force) {
      throw new InitlessError('DEADLINE', `${name} is not empty after ${ms} ms: ${left.message}`, {
        subject: name,
        nextStep: `nothing was cut and the drain goes on: wait for it with another 'initless host drain ${name}', end it with --force, or take it back with 'initless host uncordon ${name}'`,
      });
    }
  } finally {
    bound.clear();
  }
  yield await cut(parts, name, caller);
}

/** Ends a forced drain: what is left is removed. */
async function cut(parts: AdminParts, name: string, signal: AbortSignal): Promise<DrainHostResponse> {
  const { fleet, events } = parts;
  const before = leftOn(parts, name);
  const removals = fleet
    .get(name)
    .instances.map(({ id }) =>
      fleet
        .link(name)
        .command(
          { $case: 'remove', value: { instance: id } },
          { what: `removing ${id} from ${name}`, timeoutMs: REMOVE_MS, signal },
        ),
    );
  const failed = (await Promise.allSettled(removals)).filter((one) => one.status === 'rejected');
  // One that ended by itself meanwhile is no failure.
  const bad = failed.find((one) => (one.reason as InitlessError).code !== 'NOT_FOUND');
  if (bad !== undefined) throw bad.reason;
  const message = `${name} is empty; what was cut at the deadline: ${before.message}`;
  events.add({ kind: 'host.drained', host: name, message });
  return { instances: { running: 0, parked: 0, other: 0 }, leases: 0, services: [], message, done: true };
}

/** Services that no other host can have. */
function stuckOn({ fleet, reconciler }: AdminParts, name: string): string[] {
  const now = Date.now();
  const host = { ...fleet.get(name), drainingSince: now };
  const snapshot = reconciler.snapshot();
  const drained = { ...snapshot, hosts: snapshot.hosts.map((one) => (one.name === name ? host : one)) };
  return snapshot.services
    .filter((record) => isEnabled(record) && record.hosts.includes(name))
    .filter((record) => placementOf(record, drained, now).hosts.includes(name))
    .map((record) => record.name);
}

function leftOn({ fleet, reconciler }: AdminParts, name: string): DrainHostResponse {
  const host = fleet.get(name);
  const instances = countInstances(host.instances);
  const leases = host.instances.reduce((sum, one) => sum + one.leases, 0);
  const placed = reconciler.snapshot().services.filter((one) => isEnabled(one) && one.hosts.includes(name));
  const services = [
    ...new Set([
      ...host.assignments.flatMap((one) => one.config?.serviceName ?? []),
      ...placed.map((record) => record.name),
    ]),
  ].sort();
  const done = host.connected && host.reported && host.instances.length === 0 && services.length === 0;
  const count = instances.running + instances.parked + instances.other;
  const message = done
    ? `${name} is empty`
    : `${services.length === 0 ? 'no service' : services.join(', ')} served there still; ${count} instances, ${leases} leases held`;
  return { instances, leases, services, message, done };
}
