import type { Route } from '../../proto/gen/initless/v1/routing.js';
import { ServiceState } from '../../proto/gen/initless/v1/types.js';
import { isEnabled, isKnown, type ServiceRecord, type Snapshot } from './model.js';
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
  const host = servingHost(record, snapshot, now);
  const { state, problem } = verdict(record, snapshot);
  return {
    service: record.name,
    hostPort: config.hostPort,
    maxConcurrency: config.maxConcurrency,
    queueTimeoutMs: config.queueTimeoutMs,
    queueLimit: config.queueLimit,
    hosts:
      host === undefined
        ? []
        : [
            {
              host: host.name,
              leaseAddress: host.leaseAddress,
              maxRunning: config.maxPoolSize,
              parked: 0,
              draining: false,
            },
          ],
    problem: host !== undefined ? undefined : (problem ?? notReady(record, state)),
  };
}

/**
 * A host stays in the table while the control plane cannot see it: its agent serves gateways by itself, and a gateway
 * finds out soon enough when it does not.
 */
function servingHost(record: ServiceRecord, snapshot: Snapshot, now: number) {
  const host = snapshot.hosts.find((one) => one.name === record.current?.host);
  if (host === undefined || host.leaseAddress === '') return undefined;
  const unsure = !isKnown(host) || now - host.since < RETURN_GRACE_MS;
  return unsure || serves(host, record.name) ? host : undefined;
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
