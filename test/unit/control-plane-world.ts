import { parseServiceConfig } from '../../control-plane/config/service.js';
import { parseSettings } from '../../control-plane/config/settings.js';
import {
  accept,
  applyMaking,
  keepMade,
  type MakingResult,
  markRemoved,
  WANTED,
} from '../../control-plane/core/intake.js';
import type { HostState, PoolPlan, ServiceRecord, Snapshot, Work } from '../../control-plane/core/model.js';
import { workKey } from '../../control-plane/core/model.js';
import { type Decision, schedule } from '../../control-plane/core/schedule.js';
import type { Checkpoint } from '../../proto/gen/initless/v1/types.js';

const { settings } = parseSettings(undefined, 'defaults');
const FAILED = { code: 'BUILD_FAILED', message: 'no', nextStep: '', outputTail: [] };
const LOST = { code: 'AGENT_DOWN', message: 'lost', nextStep: '', outputTail: [] };

/** A host that is away for longer is lost. */
export const HOST_TIMEOUT_MS = 15_000;

/** How a build ends in this world. */
export type Ending = 'made' | 'uncheckpointed' | 'failed';

/**
 * Hosts and services as they would be, without processes or time of their own: what `schedule` decides is carried out at
 * once, builds end when the test says so.
 */
export class World {
  now = 1_000_000;
  readonly services = new Map<string, ServiceRecord>();
  readonly hosts = new Map<string, HostState>();
  readonly work: Work[] = [];
  readonly cooldowns = new Map<string, number>();
  readonly pools = new Map<string, PoolPlan>();
  readonly decided: Decision[] = [];
  #count = 0;

  constructor(hosts: readonly string[]) {
    for (const name of hosts) {
      this.hosts.set(name, {
        name,
        leaseAddress: `${name}:7072`,
        connected: false,
        since: this.now,
        reported: false,
        engine: { ready: true, version: '', restarts: 0, error: '' },
        instances: [],
        checkpoints: [],
        assignments: [],
        volumeServices: [],
        revisions: [],
        memoryAvailable: 8 * 2 ** 30,
        portsFree: 1_000,
        identity: name,
        cordoned: false,
        agentVersion: '',
        fingerprint: undefined,
        cpus: 2,
        memoryTotal: 0,
        confirmed: new Map(),
      });
    }
  }

  snapshot(): Snapshot {
    return {
      services: [...this.services.values()],
      hosts: [...this.hosts.values()],
      work: this.work,
      cooldowns: this.cooldowns,
      pools: this.pools,
      memory: new Map(),
      policy: { hostTimeoutMs: HOST_TIMEOUT_MS, keepRevisions: 1 },
    };
  }

  /** A service comes in with some content. */
  apply(name: string, content: string, more = '', explicit = true): void {
    const text = `service_name: ${name}\nservice_port: 1\nhost_port: 2\n${more}`;
    const config = parseServiceConfig(text, 'config.yaml', settings);
    const source = { text, dockerfile: 'Dockerfile' };
    const incoming = { source, config, folder: '', contextDigest: `sha256:${content}`, contentDigest: content };
    this.services.set(name, accept(this.services.get(name), incoming, explicit, this.now).record);
  }

  remove(name: string): void {
    const record = this.services.get(name);
    if (record !== undefined) this.services.set(name, markRemoved(record, this.now));
  }

  connect(name: string): void {
    this.#host(name, (host) =>
      host.connected ? host : { ...host, connected: true, reported: true, since: this.now, confirmed: new Map() },
    );
  }

  /** @param restarted its agent has forgotten what it was to serve. */
  disconnect(name: string, restarted: boolean): void {
    for (const work of [...this.work]) if (work.host === name) this.#end(work, { kind: 'lost', problem: LOST });
    this.#host(name, (host) => ({
      ...host,
      connected: false,
      since: host.connected ? this.now : host.since,
      confirmed: new Map(),
      assignments: restarted ? [] : host.assignments,
    }));
  }

  /** A host loses its checkpoints while it is away. */
  wipe(name: string): void {
    this.disconnect(name, true);
    this.#host(name, (host) => ({ ...host, checkpoints: [], revisions: [] }));
  }

  /** Decides and carries out once; gives the number of decisions. */
  step(): number {
    const decisions = schedule(this.snapshot(), this.now);
    this.decided.push(...decisions);
    for (const decision of decisions) this.#carryOut(decision);
    return decisions.length;
  }

  /** Ends the oldest build. */
  endBuild(ending: Ending): void {
    const work = this.work.find((one) => one.kind === 'prepare');
    if (work === undefined) return;
    if (work.cancelled) this.#end(work, { kind: 'cancelled' });
    else if (ending === 'failed') this.#end(work, { kind: 'failed', problem: FAILED });
    else this.#end(work, { kind: 'made', imageId: 'sha256:i', problem: ending === 'made' ? undefined : FAILED });
  }

  #end(work: Work, result: MakingResult): void {
    this.work.splice(this.work.indexOf(work), 1);
    if (work.kind !== 'prepare') return;
    const record = this.services.get(work.service);
    if (result.kind === 'made') this.#hold(work.service, work.host, work.revision, result.problem === undefined);
    if (record === undefined || record.removed) return;
    this.services.set(work.service, applyMaking(record, work.revision, work.host, result, this.now));
  }

  /** A host has a revision from now on, made or copied. */
  #hold(service: string, at: string, revision: string, checkpointed: boolean): void {
    const checkpoint = { service, revision, host: at } as Checkpoint;
    this.#host(at, (host) => {
      const others = host.checkpoints.filter((one) => one.service !== service || one.revision !== revision);
      const images = host.revisions.filter((one) => one.service !== service || one.revision !== revision);
      return {
        ...host,
        checkpoints: checkpointed ? [...others, checkpoint] : others,
        revisions: [...images, { service, revision, imageId: 'sha256:i', noCheckpoint: !checkpointed }],
      };
    });
  }

  #carryOut(decision: Decision): void {
    const record = this.services.get('service' in decision ? decision.service : '');
    switch (decision.type) {
      case 'place':
        this.services.set(decision.service, { ...record!, host: decision.maker, hosts: decision.hosts });
        return;
      case 'keep':
        this.services.set(decision.service, keepMade(record!));
        return;
      case 'copy':
        this.#hold(decision.service, decision.host, decision.revision, record!.current?.problem === undefined);
        return;
      case 'remake': {
        const making = { ...WANTED, force: decision.force };
        this.services.set(decision.service, { ...record!, current: { ...record!.current!, making } });
        return;
      }
      case 'prepare': {
        this.#count += 1;
        const { service, host, revision } = decision;
        this.work.push({ id: String(this.#count), kind: 'prepare', service, host, revision, cancelled: false });
        return;
      }
      case 'cancel':
        this.work.find((work) => work.id === decision.work)!.cancelled = true;
        return;
      case 'assign': {
        const { assignment, service } = decision;
        this.#host(decision.host, (host) => ({
          ...host,
          confirmed: new Map(host.confirmed).set(service, { assignment, at: this.now }),
          assignments: [...host.assignments.filter((one) => one.config?.serviceName !== service), assignment],
        }));
        return;
      }
      case 'withdraw':
        this.#host(decision.host, (host) => ({
          ...host,
          confirmed: new Map([...host.confirmed].filter(([service]) => service !== decision.service)),
          assignments: host.assignments.filter((one) => one.config?.serviceName !== decision.service),
        }));
        this.cooldowns.set(workKey('withdraw', decision.host, decision.service), this.now + 1_000);
        return;
      case 'deleteRevisions':
        this.#host(decision.host, (host) => ({
          ...host,
          checkpoints: host.checkpoints.filter(
            (one) => one.service !== decision.service || decision.keep.includes(one.revision),
          ),
          revisions: host.revisions.filter(
            (one) => one.service !== decision.service || decision.keep.includes(one.revision),
          ),
          volumeServices: host.volumeServices.filter((one) => one !== decision.service || !decision.removed),
        }));
        return;
      case 'forget':
        this.services.delete(decision.service);
    }
  }

  #host(name: string, change: (host: HostState) => HostState): void {
    this.hosts.set(name, change(this.hosts.get(name)!));
  }
}
