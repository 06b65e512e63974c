import type { Instance } from '../../../proto/gen/initless/v1/types.js';
import { ServiceState } from '../../../proto/gen/initless/v1/types.js';
import { errorOf, InitlessError } from '../../../proto/rpc/errors.js';
import type { BuildLog } from '../../build-log.js';
import type { MadeRevision, ServiceRecord } from '../../core/model.js';
import { isEnabled } from '../../core/model.js';
import { serves, serviceView, verdict } from '../../core/view.js';
import type { EventLog } from '../../events.js';
import type { Fleet } from '../../fleet/fleet.js';
import type { HostLink } from '../../fleet/host-link.js';
import type { Reconciler } from '../../reconciler.js';
import type { Intake } from '../../services/intake.js';
import type { Registry } from '../../services/registry.js';
import type { Gateways } from '../routing-service.js';

/** What the admin calls are made of. */
export interface AdminParts {
  registry: Registry;
  intake: Intake;
  fleet: Fleet;
  reconciler: Reconciler;
  gateways: Gateways;
  events: EventLog;
  builds: BuildLog;
  /** About the control plane itself. */
  info: () => { version: string; settingsFile: string; codeDir: string; store: string; warnings: string[] };
}

/** A service as people see it. */
export function view(parts: AdminParts, record: ServiceRecord) {
  return serviceView(record, parts.reconciler.snapshot(), parts.gateways.listeners());
}

/** A service that a host serves now, and the way to that host. */
export interface Serving {
  record: ServiceRecord;
  current: MadeRevision;
  link: HostLink;
}

/**
 * A service on the host that requests are sent to first, or on the one that is named.
 *
 * Errors: NOT_FOUND, DISABLED, NOT_READY (why), NO_HOST, AGENT_DOWN.
 */
export function serving(parts: AdminParts, name: string, at = ''): Serving {
  const record = parts.registry.get(name);
  const { state, problem } = verdict(record, parts.reconciler.snapshot());
  if (!isEnabled(record)) {
    throw new InitlessError('DISABLED', problem?.message ?? `${name} is disabled`, {
      subject: name,
      nextStep: problem?.nextStep ?? 'set is_enabled: true in its config.yaml and apply it again',
    });
  }
  if (record.current === undefined || state === ServiceState.SERVICE_STATE_BUILDING) {
    if (problem?.code === 'NO_HOST' || problem?.code === 'AGENT_DOWN') throw errorOf(problem, name);
    const why = problem === undefined ? 'it is being built' : problem.message;
    throw new InitlessError('NOT_READY', `${name} cannot be started yet: ${why}`, {
      subject: name,
      nextStep: problem?.nextStep || `'initless service inspect ${name}' shows how far it is`,
      outputTail: problem?.outputTail,
    });
  }
  return {
    record,
    current: record.current,
    link: parts.fleet.link(at === '' ? servingHost(parts, record) : hostOf(parts, record, at)),
  };
}

function servingHost({ fleet }: AdminParts, record: ServiceRecord): string {
  const hosts = record.hosts.map((name) => fleet.list().find((host) => host.name === name));
  const found = hosts.find((host) => host?.connected && serves(host, record.name));
  return found?.name ?? record.hosts[0] ?? record.current?.host ?? '';
}

/** Errors: NOT_FOUND, NOT_READY. */
function hostOf({ fleet }: AdminParts, { name }: ServiceRecord, at: string): string {
  if (serves(fleet.get(at), name)) return at;
  throw new InitlessError('NOT_READY', `${at} does not serve ${name}`, {
    subject: name,
    nextStep: `'initless service explain ${name}' says which hosts do, and why`,
  });
}

/** An instance that a connected host has reported. Errors: NOT_FOUND. */
export function findInstance(parts: AdminParts, id: string): { instance: Instance; link: HostLink } {
  for (const host of parts.fleet.list()) {
    const instance = host.connected ? host.instances.find((one) => one.id === id) : undefined;
    if (instance !== undefined) return { instance, link: parts.fleet.link(host.name) };
  }
  throw new InitlessError('NOT_FOUND', `there is no instance ${JSON.stringify(id)}`, {
    subject: id,
    nextStep: "'initless instance ls' lists those that are there",
  });
}

/** The error for an agent whose answer is of another kind than the command asks for. */
export function oddAnswer(what: string, answer: string): InitlessError {
  return new InitlessError('INTERNAL', `the agent answered '${answer}' to: ${what}`);
}
