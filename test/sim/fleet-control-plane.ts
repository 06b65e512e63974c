import { applyMaking, keepMade, type MakingResult, WANTED } from '../../control-plane/core/intake.js';
import {
  type HostState,
  isEnabled,
  type Policy,
  type ServiceRecord,
  type Snapshot,
  type Work,
  workKey,
} from '../../control-plane/core/model.js';
import { routesOf } from '../../control-plane/core/routes.js';
import { type Decision, schedule } from '../../control-plane/core/schedule.js';
import { Pools } from '../../control-plane/fleet/pools.js';
import { MemoryStore } from '../../control-plane/store/memory.js';
import type { HostReport, ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import type { Route } from '../../proto/gen/initless/v1/routing.js';
import type { Clock } from './clock.js';
import type { SimHost } from './fleet-host.js';
import type { SimLink } from './fleet-link.js';

/** One that has been silent for this long is away, milliseconds. */
export const DEAD_MS = 6_000;
const PAUSES_MS = [1_000, 5_000, 15_000, 60_000];
const DONE_PAUSE_MS = 6_000;
const LOST = { code: 'AGENT_DOWN', message: 'the agent is away', nextStep: '', outputTail: [] };

interface Running extends Work {
  link: SimLink;
  /** Stops it at its host. */
  stop: () => void;
}

type Command = Extract<Decision, { type: 'prepare' | 'copy' | 'assign' | 'withdraw' | 'deleteRevisions' }>;

/** What the control plane tells the rest of the world. */
export interface ControlPlaneHooks {
  host: (name: string) => SimHost;
  decided: (decisions: readonly Decision[]) => void;
  routes: (routes: readonly Route[]) => void;
}

/**
 * The control plane: the real decisions, and a shell as thin as that of the real one, which carries them out over links that
 * take time and break. Services and hosts are stored; all else is forgotten when it is killed.
 */
export class SimControlPlane {
  up = true;
  readonly services = new Map<string, ServiceRecord>();
  readonly hosts = new Map<string, HostState>();
  readonly policy: Policy;
  readonly #clock: Clock;
  readonly #hooks: ControlPlaneHooks;
  readonly #store = new MemoryStore();
  readonly #links = new Map<string, SimLink>();
  readonly #tickMs: number;
  #pools = new Pools({ store: this.#store, onError: () => {} }, new Map());
  #work = new Map<string, Running>();
  #cooldowns = new Map<string, number>();
  #failures = new Map<string, number>();
  #passing = false;
  #count = 0;
  #run = 0;
  #routes = '';

  constructor(clock: Clock, policy: Policy, tickMs: number, hooks: ControlPlaneHooks) {
    this.#clock = clock;
    this.policy = policy;
    this.#tickMs = tickMs;
    this.#hooks = hooks;
    this.#tick();
  }

  snapshot(): Snapshot {
    return {
      services: [...this.services.values()].sort((a, b) => (a.name < b.name ? -1 : 1)),
      hosts: [...this.hosts.values()].sort((a, b) => (a.name < b.name ? -1 : 1)),
      work: [...this.#work.values()],
      cooldowns: this.#cooldowns,
      pools: this.#pools.plans(),
      memory: this.#pools.memory(),
      policy: this.policy,
    };
  }

  /** Changes a service's record. */
  update(name: string, change: (record: ServiceRecord) => ServiceRecord | undefined): void {
    const record = this.services.get(name);
    if (record === undefined) return;
    const next = change(record);
    if (next === undefined) this.services.delete(name);
    else this.services.set(name, next);
    this.wake();
  }

  mark(name: string, marks: Partial<HostState>): void {
    this.#update(name, ({ drainingSince: _, drainForced: __, ...host }) => ({ ...host, ...marks }));
  }

  /** It ends, with all that it has not stored. */
  kill(): void {
    this.up = false;
    this.#run += 1;
    for (const link of this.#links.values()) link.close();
    this.#links.clear();
    this.#work = new Map();
    this.#cooldowns = new Map();
    this.#failures = new Map();
  }

  start(): void {
    this.up = true;
    this.#routes = '';
    this.#pools = new Pools({ store: this.#store, onError: () => {} }, new Map());
    for (const [name, host] of this.hosts) this.hosts.set(name, unseen(host, this.#clock.now));
    this.#tick();
    this.wake();
  }

  /** An agent says hello over a new link. */
  admit(name: string, link: SimLink, identity: string): void {
    const other = this.#links.get(name);
    if (other !== undefined && other !== link) this.#left(name, other);
    this.#links.set(name, link);
    const now = this.#clock.now;
    const known = this.hosts.get(name) ?? unseen({ name, leaseAddress: '', identity: '', cordoned: false }, now);
    const isAnother = known.identity !== '' && known.identity !== identity;
    const before = isAnother ? unseen({ name, leaseAddress: '', identity, cordoned: false }, now) : known;
    this.hosts.set(name, {
      ...before,
      ...{ leaseAddress: `${name}:7072`, identity, agentVersion: 'x', cpus: 2, memoryTotal: 16 * 2 ** 30 },
      ...{ connected: true, reported: false, since: now, confirmed: new Map() },
    });
    this.wake();
  }

  /** A report arrives. */
  report(name: string, link: SimLink, report: HostReport): void {
    if (this.#links.get(name) !== link) return;
    link.heardAt = this.#clock.now;
    this.#pools.observe(name, report, this.#clock.now);
    const { engine, instances, checkpoints, assignments, volumeServices, revisions, memoryAvailable, portsFree } =
      report;
    this.#update(name, (host) => ({
      ...host,
      reported: true,
      ...{ engine, instances, checkpoints, assignments, volumeServices, revisions, memoryAvailable, portsFree },
    }));
  }

  /** A link is found to have ended. */
  lost(name: string, link: SimLink): void {
    if (this.up && this.#links.get(name) === link) this.#left(name, link);
  }

  wake(): void {
    if (this.#passing || !this.up) return;
    this.#passing = true;
    const run = this.#run;
    this.#clock.after(1, () => {
      this.#passing = false;
      if (this.up && run === this.#run) this.#pass();
      else this.wake();
    });
  }

  #tick(): void {
    const run = this.#run;
    this.#clock.after(this.#tickMs, () => {
      if (run !== this.#run) return;
      for (const [name, link] of this.#links) {
        if (this.#clock.now - link.heard(this.#clock.now) > DEAD_MS) this.#left(name, link);
      }
      this.wake();
      this.#tick();
    });
  }

  #left(name: string, link: SimLink): void {
    const since = link.heard(this.#clock.now);
    link.close();
    this.#links.delete(name);
    this.#update(name, (host) => ({ ...host, connected: false, since, confirmed: new Map() }));
    for (const work of [...this.#work.values()]) if (work.link === link) this.#ended(work, 'lost');
  }

  #pass(): void {
    const { now } = this.#clock;
    for (const [key, until] of this.#cooldowns) if (until <= now) this.#cooldowns.delete(key);
    const { services, hosts } = this.snapshot();
    this.#pools.refresh(services, hosts, now);
    const decisions = schedule(this.snapshot(), now);
    this.#hooks.decided(decisions);
    for (const decision of decisions) this.#carryOut(decision);
    const routes = routesOf(this.snapshot(), now);
    const text = JSON.stringify(routes);
    if (text === this.#routes) return;
    this.#routes = text;
    this.#hooks.routes(routes);
  }

  #carryOut(decision: Decision): void {
    switch (decision.type) {
      case 'place':
        this.update(decision.service, (record) => ({ ...record, host: decision.maker, hosts: decision.hosts }));
        return;
      case 'keep':
        this.update(decision.service, keepMade);
        return;
      case 'remake': {
        const making = { ...WANTED, force: decision.force };
        this.update(decision.service, (record) => ({ ...record, current: { ...record.current!, making } }));
        return;
      }
      case 'forget':
        this.update(decision.service, (record) => (record.removed ? undefined : record));
        return;
      case 'cancel': {
        const work = this.#work.get(decision.work);
        if (work === undefined) return;
        work.cancelled = true;
        work.link.say('down', () => {
          work.stop();
          work.link.say('up', () => this.#ended(work, 'cancelled'));
        });
        return;
      }
      default:
        this.#begin(decision);
    }
  }

  #begin(decision: Command): void {
    const link = this.#links.get(decision.host);
    if (link === undefined) return;
    this.#count += 1;
    const { type: kind, service, host } = decision;
    const revision = 'revision' in decision ? decision.revision : '';
    const work: Running = {
      id: String(this.#count),
      kind,
      service,
      host,
      revision,
      cancelled: false,
      link,
      stop: () => {},
    };
    this.#work.set(work.id, work);
    link.say('down', () => {
      const agent = this.#hooks.host(host);
      const epoch = agent.epoch;
      // What the command changed is reported before its result.
      work.stop = this.#execute(agent, decision, () => {
        if (!agent.up || agent.epoch !== epoch) return;
        const report = agent.report();
        link.say('up', () => this.report(host, link, report));
        link.say('up', () => this.#ended(work, decision));
      });
    });
  }

  /** Returns what stops it. */
  #execute(agent: SimHost, decision: Command, done: () => void): () => void {
    switch (decision.type) {
      case 'prepare':
        return agent.obtain('make', decision.service, decision.revision, done);
      case 'copy': {
        const key = `${decision.service} ${decision.revision}`;
        const source = decision.sources.map((one) => this.#hooks.host(one.host)).find((one) => one.up);
        // Nobody has it any more: the real one answers with an error, here the answer is lost.
        if (source?.checkpoints.has(key)) return agent.obtain('copy', decision.service, decision.revision, done);
        done();
        break;
      }
      case 'assign':
        agent.assign(decision.assignment, done);
        break;
      case 'withdraw':
        agent.withdraw(decision.service);
        done();
        break;
      case 'deleteRevisions':
        agent.delete(decision.service, decision.keep);
        done();
        break;
    }
    return () => {};
  }

  /** A command ended: as it was decided, or not. */
  #ended(work: Running, how: 'lost' | 'cancelled' | Command): void {
    if (!this.#work.delete(work.id)) return;
    const now = this.#clock.now;
    const { service, host, revision } = work;
    if (work.kind === 'prepare') {
      let result: MakingResult = { kind: 'made', imageId: 'sha256:i', problem: undefined };
      if (work.cancelled) result = { kind: 'cancelled' };
      else if (how === 'lost') result = { kind: 'lost', problem: LOST };
      this.update(service, (record) => applyMaking(record, revision, host, result, now));
      return;
    }
    const key = workKey(work.kind, host, service);
    if (typeof how === 'string') {
      if (work.cancelled) return;
      const failures = this.#failures.get(key) ?? 0;
      this.#failures.set(key, failures + 1);
      this.#cooldowns.set(key, now + PAUSES_MS[Math.min(failures, PAUSES_MS.length - 1)]!);
    } else {
      this.#failures.delete(key);
      if (how.type === 'assign') this.#confirm(host, service, how.assignment);
      else this.#cooldowns.set(key, now + DONE_PAUSE_MS);
      if (how.type === 'withdraw') this.#confirm(host, service, undefined);
    }
    this.wake();
  }

  #confirm(name: string, service: string, assignment: ServiceAssignment | undefined): void {
    this.#update(name, (host) => {
      const confirmed = new Map(host.confirmed);
      const assignments = host.assignments.filter((one) => one.config?.serviceName !== service);
      if (assignment === undefined) confirmed.delete(service);
      else {
        confirmed.set(service, { assignment, at: this.#clock.now });
        assignments.push(assignment);
      }
      return { ...host, confirmed, assignments };
    });
  }

  #update(name: string, change: (host: HostState) => HostState): void {
    const host = this.hosts.get(name);
    if (host === undefined) return;
    this.hosts.set(name, change(host));
    this.wake();
  }

  /** Services that are to be served. */
  enabled(): ServiceRecord[] {
    return [...this.services.values()].filter(isEnabled);
  }
}

function unseen(host: Pick<HostState, 'name' | 'leaseAddress' | 'identity' | 'cordoned'>, since: number): HostState {
  const { name, leaseAddress, identity, cordoned, drainingSince, drainForced } = host as HostState;
  return {
    ...{ name, leaseAddress, identity, cordoned },
    ...(drainingSince !== undefined && { drainingSince }),
    ...(drainForced && { drainForced }),
    ...{ connected: false, since, reported: false, engine: undefined, instances: [], checkpoints: [] },
    ...{ assignments: [], volumeServices: [], revisions: [], memoryAvailable: 0, portsFree: 0, agentVersion: '' },
    ...{ fingerprint: undefined, cpus: 0, memoryTotal: 0, confirmed: new Map() },
  };
}
