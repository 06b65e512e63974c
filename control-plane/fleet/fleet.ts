import { randomBytes } from 'node:crypto';
import type {
  AgentHello,
  ConnectRequest,
  ConnectResponse,
  HostReport,
  HostSettings,
  ServiceAssignment,
} from '../../proto/gen/initless/v1/fleet.js';
import { InitlessError, problemOf, toInitlessError } from '../../proto/rpc/errors.js';
import type { BuildLog } from '../build-log.js';
import { Changes } from '../changes.js';
import { phaseOf } from '../core/hosts.js';
import type { HostRecord, HostState, Policy } from '../core/model.js';
import { agentDown } from '../core/view.js';
import type { EventLog } from '../events.js';
import type { Store } from '../store/store.js';
import { HostLink } from './host-link.js';
import { withReport } from './report.js';

/** An agent says something every second; one that has been silent for this long gives way to another of its name. */
const SILENT_MS = 3_000;
/** One that has been silent for this long is away. */
const DEAD_MS = 6_000;
/** Agents are told of other hosts this much later. */
const TELL_MS = 100;
/** An agent says who it is at once. */
const HELLO_MS = 10_000;
const HOST_NAME = /^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?$/;

/** What the fleet needs of the rest. */
export interface FleetParts {
  store: Store;
  events: EventLog;
  builds: BuildLog;
  /** The settings that agents carry out. */
  settings: () => HostSettings;
  /** The settings that say when a host is lost. */
  policy: () => Policy;
  /** Told what each host reports, before its state changes. */
  onReport: (host: string, report: HostReport) => void;
  /** Told what goes wrong without anybody waiting for it. */
  onError: (what: string, error: unknown) => void;
}

/** All hosts: those whose agents are connected, and those that were. */
export class Fleet {
  /** Told after every change of a host. */
  readonly changes = new Changes();
  readonly #parts: FleetParts;
  readonly #hosts = new Map<string, HostState>();
  /** The same as a list; what is worked out from it holds until a host changes. */
  #list: readonly HostState[] | undefined;
  readonly #links = new Map<string, HostLink>();
  /** Hosts that were said to be lost, and have not come back. */
  readonly #lost = new Set<string>();
  #closed = false;
  #telling: NodeJS.Timeout | undefined;

  /** @param known hosts that were connected before the control plane started. */
  constructor(parts: FleetParts, known: readonly HostRecord[]) {
    this.#parts = parts;
    for (const record of known) this.#hosts.set(record.name, unseen(record, Date.now()));
  }

  /** All hosts, by name. */
  list(): readonly HostState[] {
    this.#list ??= [...this.#hosts.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
    return this.#list;
  }

  /** The connection to a host. Errors: AGENT_DOWN, with what to do. */
  link(name: string): HostLink {
    const link = this.#links.get(name);
    if (link !== undefined && link.ended === undefined) return link;
    const { message, nextStep } = agentDown(name);
    throw new InitlessError('AGENT_DOWN', message, { subject: name, nextStep });
  }

  /** A host confirmed that it serves a service as told. */
  confirm(name: string, service: string, assignment: ServiceAssignment | undefined): void {
    this.#update(name, (host) => {
      const confirmed = new Map(host.confirmed);
      const assignments = host.assignments.filter((one) => one.config?.serviceName !== service);
      if (assignment === undefined) confirmed.delete(service);
      else {
        confirmed.set(service, { assignment, at: Date.now() });
        assignments.push(assignment);
      }
      // The next report says the same; until then this is what is known.
      return { ...host, confirmed, assignments };
    });
  }

  /** One agent's connection, for as long as it lasts. */
  async *connect(requests: AsyncIterable<ConnectRequest>, signal: AbortSignal): AsyncGenerator<ConnectResponse> {
    const incoming = requests[Symbol.asyncIterator]();
    const hello = await this.#hello(incoming);
    const link = this.#admit(hello);
    const onAbort = () => link.end(away(link.name, 'it closed the connection'));
    signal.addEventListener('abort', onAbort, { once: true });
    if (signal.aborted) onAbort();
    const reading = this.#read(link, incoming);
    reading.catch(() => undefined); // It is waited for below; until then it must not count as unhandled.
    try {
      yield* link.outgoing;
    } finally {
      signal.removeEventListener('abort', onAbort);
      link.end(away(link.name, 'it closed the connection'));
      this.#leave(link);
    }
    // What went wrong in what the agent said is its answer.
    await reading;
  }

  /** Tells every agent the settings as they are now, and where the others are. */
  tellSettings(): void {
    for (const link of this.#links.values()) link.tellSettings(this.#settingsFor(link.name));
  }

  /** Drops agents that say nothing any more, and tells of hosts that are lost. To be called every second or so. */
  sweep(now: number): void {
    for (const link of this.#links.values()) {
      const silent = now - link.heardAt;
      if (silent > DEAD_MS) link.end(away(link.name, `it said nothing for ${Math.round(silent / 1000)} s`));
    }
    for (const host of this.#hosts.values()) {
      if (phaseOf(host, this.#parts.policy(), now) !== 'lost' || this.#lost.has(host.name)) continue;
      this.#lost.add(host.name);
      const message = `${host.name} is lost: it has been away for ${Math.round((now - host.since) / 1000)} s`;
      const problem = problemOf(away(host.name, message));
      this.#parts.events.add({ kind: 'host.lost', host: host.name, message, problem });
      this.changes.tell();
    }
  }

  /** A host. Errors: NOT_FOUND. */
  get(name: string): HostState {
    const host = this.#hosts.get(name);
    if (host !== undefined) return host;
    throw new InitlessError('NOT_FOUND', `there is no host ${JSON.stringify(name)}`, {
      subject: name,
      nextStep: "'initless host ls' lists those that are there",
    });
  }

  /** Changes what is stored of a host; it is in the store when this resolves. Errors: NOT_FOUND, those of the store. */
  async mark(name: string, marks: Pick<HostRecord, 'cordoned' | 'drainingSince' | 'drainForced'>): Promise<HostState> {
    const host = this.get(name);
    const { leaseAddress, identity } = host;
    await this.#parts.store.putHost({ name, leaseAddress, identity, ...marks });
    this.#update(name, ({ drainingSince: _, drainForced: __, ...rest }) => ({ ...rest, ...marks }));
    return this.get(name);
  }

  /** Forgets a host that is not connected. Errors: NOT_FOUND, NOT_ALLOWED, those of the store. */
  async remove(name: string): Promise<void> {
    if (this.get(name).connected) {
      throw new InitlessError('NOT_ALLOWED', `the host ${name} is connected`, {
        subject: name,
        nextStep: `drain it and stop it first: initless host drain ${name}; initless host down ${name}`,
      });
    }
    await this.#forget(name);
    this.#parts.events.add({ kind: 'host.removed', host: name, message: `${name} was forgotten` });
    this.changes.tell();
  }

  /** Forgets hosts that are not connected and not cordoned, once no service is placed on them. */
  async forget(inUse: ReadonlySet<string>): Promise<void> {
    for (const host of this.list()) {
      if (!host.connected && !host.cordoned && !inUse.has(host.name)) await this.#forget(host.name);
    }
  }

  async #forget(name: string): Promise<void> {
    await this.#parts.store.deleteHost(name);
    this.#hosts.delete(name);
    this.#list = undefined;
    this.#lost.delete(name);
    this.#tellSoon();
  }

  /** Many hosts that come at once are told of in one message, not each in one of its own to all others. */
  #tellSoon(): void {
    this.#telling ??= setTimeout(() => {
      this.#telling = undefined;
      this.tellSettings();
    }, TELL_MS);
  }

  #settingsFor(name: string): HostSettings {
    const agents = this.list().flatMap((host) =>
      host.name === name || host.leaseAddress === '' ? [] : [host.leaseAddress],
    );
    return { ...this.#parts.settings(), agents };
  }

  /** Ends all connections, and takes no more. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#telling);
    for (const link of this.#links.values()) link.end(away(link.name, 'the control plane stops'));
  }

  async #hello(incoming: AsyncIterator<ConnectRequest>): Promise<AgentHello> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      const text = `gave up after ${HELLO_MS} ms; pending was: an agent's hello`;
      timer = setTimeout(() => reject(new InitlessError('DEADLINE', text)), HELLO_MS);
    });
    try {
      const first = await Promise.race([incoming.next(), late]);
      const message = first.done ? undefined : first.value.message;
      if (message?.$case !== 'hello') throw new InitlessError('BAD_REQUEST', 'an agent says hello first');
      if (!HOST_NAME.test(message.value.host)) {
        throw new InitlessError('BAD_NAME', `${JSON.stringify(message.value.host.slice(0, 80))} is not a host's name`);
      }
      return message.value;
    } finally {
      clearTimeout(timer);
    }
  }

  #admit(hello: AgentHello): HostLink {
    const now = Date.now();
    const name = hello.host;
    if (this.#closed) throw new InitlessError('CONTROL_PLANE_DOWN', 'the control plane stops');
    const other = this.#links.get(name);
    if (other !== undefined && other.ended === undefined) {
      if (now - other.heardAt <= SILENT_MS) {
        throw new InitlessError('ALREADY_CONNECTED', `an agent of the host ${name} is connected already`, {
          subject: name,
          nextStep: 'give this host another name',
        });
      }
      other.end(away(name, 'a newer agent of that name took its place'));
    }
    const link = new HostLink(name, randomBytes(6).toString('hex'), now);
    this.#links.set(name, link);
    const known = this.#hosts.get(name) ?? unseen({ name, leaseAddress: '', identity: '', cordoned: false }, now);
    const { leaseAddress, agentVersion, fingerprint, cpus, memoryTotal, identity } = hello;
    const isAnother = known.identity !== '' && identity !== '' && known.identity !== identity;
    // Another machine under an old name: what was said of the old one does not hold for it.
    const { name: _, ...fresh } = unseen({ name, leaseAddress, identity, cordoned: false }, now);
    const before = isAnother ? { ...fresh, name } : known;
    this.#lost.delete(name);
    this.#list = undefined;
    this.#hosts.set(name, {
      ...before,
      ...{ leaseAddress, agentVersion, fingerprint, cpus, memoryTotal, identity },
      connected: true,
      reported: false,
      since: now,
      confirmed: new Map(),
    });
    if (known.leaseAddress !== leaseAddress || known.identity !== identity) this.#store(this.get(name));
    link.welcome(this.#settingsFor(name));
    this.#tellSoon();
    const message = isAnother ? `${name} is connected; it is another host than before` : `${name} is connected`;
    this.#parts.events.add({ kind: 'host.connected', host: name, message });
    this.changes.tell();
    return link;
  }

  #store({ name, leaseAddress, identity, cordoned, drainingSince, drainForced }: HostState): void {
    const marks = { ...(drainingSince !== undefined && { drainingSince }), ...(drainForced && { drainForced }) };
    this.#parts.store
      .putHost({ name, leaseAddress, identity, cordoned, ...marks })
      .catch((error: unknown) => this.#parts.onError(`storing the host ${name}`, error));
  }

  /** Reads what an agent says until it ends. Gives the error that is its fault, if any. */
  async #read(link: HostLink, incoming: AsyncIterator<ConnectRequest>): Promise<void> {
    try {
      for (;;) {
        const next = await incoming.next();
        if (next.done || link.ended !== undefined) break;
        link.heardAt = Date.now();
        this.#take(link, next.value);
      }
      link.end(away(link.name, 'it closed the connection'));
    } catch (error) {
      const bad = error instanceof InitlessError ? error : undefined;
      link.end(away(link.name, toInitlessError(error).message));
      if (bad !== undefined) throw bad;
    }
  }

  #take(link: HostLink, { message }: ConnectRequest): void {
    const host = link.name;
    switch (message?.$case) {
      case 'report':
        this.#report(host, message.value);
        return;
      case 'event': {
        const { sequence: _, ...fields } = message.value;
        this.#parts.events.add({ ...fields, host });
        return;
      }
      case 'buildOutput':
        this.#parts.builds.add(message.value);
        return;
      case 'result':
        link.onResult(message.value);
        return;
      case 'log':
        link.onLog(message.value);
        return;
      case 'heartbeat':
        link.beat();
        return;
      case 'hello':
        throw new InitlessError('BAD_REQUEST', 'an agent says hello once');
      case undefined:
        // From a newer agent; what we do not know, we do not need.
        return;
    }
  }

  #report(name: string, report: HostReport): void {
    this.#parts.onReport(name, report);
    const host = this.#hosts.get(name);
    if (host === undefined) return;
    const { after, changed } = withReport(host, report);
    this.#hosts.set(name, after);
    this.#list = undefined;
    if (changed) this.changes.tell();
  }

  #update(name: string, change: (host: HostState) => HostState): void {
    const host = this.#hosts.get(name);
    if (host === undefined) return;
    this.#hosts.set(name, change(host));
    this.#list = undefined;
    this.changes.tell();
  }

  #leave(link: HostLink): void {
    if (this.#links.get(link.name) !== link) return;
    this.#links.delete(link.name);
    const reason = link.ended ?? away(link.name, 'it closed the connection');
    this.#update(link.name, (host) => ({ ...host, connected: false, since: link.heardAt, confirmed: new Map() }));
    if (this.#closed) return;
    this.#parts.events.add({
      kind: 'host.away',
      host: link.name,
      message: reason.message,
      problem: problemOf(reason),
    });
  }
}

function unseen(record: HostRecord, since: number): HostState {
  return {
    ...record,
    connected: false,
    since,
    reported: false,
    engine: undefined,
    instances: [],
    checkpoints: [],
    assignments: [],
    volumeServices: [],
    revisions: [],
    memoryAvailable: 0,
    portsFree: 0,
    agentVersion: '',
    fingerprint: undefined,
    cpus: 0,
    memoryTotal: 0,
    confirmed: new Map(),
  };
}

function away(name: string, reason: string): InitlessError {
  return new InitlessError('AGENT_DOWN', `the agent of ${name} is away: ${reason}`, {
    subject: name,
    nextStep: `run 'initless host up ${name}' if it does not come back by itself`,
  });
}
