import type { Route, RouteHost } from '../../proto/gen/initless/v1/routing.js';
import { ServiceState } from '../../proto/gen/initless/v1/types.js';
import { assignmentAt, phaseOf } from './hosts.js';
import { hostsAround } from './lookup.js';
import { type HostState, isEnabled, isKnown, type ServiceRecord, type Snapshot } from './model.js';
import { serves, verdict } from './view.js';

/** A host that just connected is told again what to serve; until then it is not taken from the gateways. */
const RETURN_GRACE_MS = 10_000;

/** The route table: one route for each enabled service, by name. */
export function routesOf(snapshot: Snapshot, now: number): Route[] {
  return snapshot.services
    .filter(isEnabled)
    .map((record) => route(record, snapshot, now))
    .sort((a, b) => (a.service < b.service ? -1 : 1));
}

function route(record: ServiceRecord, snapshot: Snapshot, now: number): Route {
  const { config } = record;
  const hosts = servingHosts(record, snapshot, now);
  const { state, problem } = verdict(record, snapshot);
  return {
    service: record.name,
    hostPort: config.hostPort,
    maxConcurrency: config.maxConcurrency,
    queueTimeoutMs: config.queueTimeoutMs,
    queueLimit: config.queueLimit,
    hosts: hosts.map((host) => routeHost(host, record, snapshot)),
    problem: hosts.length > 0 ? undefined : (problem ?? notReady(record, state)),
  };
}

/**
 * Hosts that serve a service: those that keep instances parked first, then in the order of its placement; those that are
 * to be left last. One that the control plane cannot see stays in the table: its agent serves gateways by itself, and a
 * gateway finds out soon enough when it does not. Once it is lost it stays only if there is no other.
 */
function servingHosts(record: ServiceRecord, snapshot: Snapshot, now: number): HostState[] {
  const at = (host: HostState) => {
    const index = record.hosts.indexOf(host.name);
    return index === -1 ? record.hosts.length : index;
  };
  const parks = (host: HostState) => (assignmentAt(host, record.name)?.pool?.parked ?? 1) > 0;
  const isThere = (host: HostState) => phaseOf(host, snapshot.policy, now) !== 'lost';
  const serving = hostsAround(record, snapshot).filter((host) => mayServe(host, record, now));
  const there = serving.filter(isThere);
  return (there.length > 0 ? there : serving).sort(
    (a, b) =>
      Number(isLeft(a, record)) - Number(isLeft(b, record)) || Number(parks(b)) - Number(parks(a)) || at(a) - at(b),
  );
}

function mayServe(host: HostState, record: ServiceRecord, now: number): boolean {
  if (host.leaseAddress === '' || record.current === undefined) return false;
  // What an agent served when it was last heard of, it serves still; of one not heard of since our start, that is not known.
  const served = serves(host, record.name) || (!host.reported && record.hosts.includes(host.name));
  const isBack = isKnown(host) && now - host.since < RETURN_GRACE_MS && record.hosts.includes(host.name);
  return served || isBack;
}

/** Whether a host serves only until others have taken over. */
function isLeft(host: HostState, record: ServiceRecord): boolean {
  return host.drainingSince !== undefined || !record.hosts.includes(host.name);
}

function routeHost(host: HostState, record: ServiceRecord, snapshot: Snapshot): RouteHost {
  const { maxPoolSize, preStartPoolSize, preStartPoolAuto } = record.config;
  const share = assignmentAt(host, record.name)?.pool;
  const all = preStartPoolAuto ? (snapshot.pools.get(record.name)?.parked ?? 0) : preStartPoolSize;
  return {
    host: host.name,
    leaseAddress: host.leaseAddress,
    maxRunning: share?.maxRunning ?? maxPoolSize,
    parked: share?.parked ?? all,
    draining: isLeft(host, record),
  };
}

function notReady(record: ServiceRecord, state: ServiceState) {
  const doing = state === ServiceState.SERVICE_STATE_BUILDING ? 'is being built' : 'waits to be built';
  return {
    code: 'NOT_READY',
    message: `${record.name} ${doing}`,
    nextStep: `'initless service inspect ${record.name}' shows how far it is`,
    outputTail: [],
  };
}
