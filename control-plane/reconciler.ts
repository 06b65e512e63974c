import { type InitlessError, problemOf, toInitlessError } from '../proto/rpc/errors.js';
import type { BuildLog } from './build-log.js';
import { Changes } from './changes.js';
import { applyMaking, keepMade, type MakingResult, WANTED } from './core/intake.js';
import { type Policy, type Snapshot, type Work, workKey } from './core/model.js';
import { effectiveConfig } from './core/revision.js';
import { type Decision, schedule } from './core/schedule.js';
import type { EventLog } from './events.js';
import { PassFigures } from './figures.js';
import type { Fleet } from './fleet/fleet.js';
import type { CommandOptions } from './fleet/host-link.js';
import type { Pools } from './fleet/pools.js';
import type { Registry } from './services/registry.js';

/** What carrying decisions out needs of the rest. */
export interface ReconcilerParts {
  registry: Registry;
  fleet: Fleet;
  pools: Pools;
  events: EventLog;
  builds: BuildLog;
  /** The settings that decisions depend on. */
  policy: () => Policy;
  /** The store has lost what was in it. */
  recovering?: boolean;
  /** Told what goes wrong without anybody waiting for it. */
  onError: (what: string, error: unknown) => void;
}

/** Building an image may take long; a start before the dump is bounded by `start_timeout` besides. */
const BUILD_MS = 45 * 60_000;
/** Withdrawing is quick; removing checkpoints waits for a disk. */
const QUICK_MS = 30_000;
/** An assignment of another revision is confirmed when instances of it are ready, which may mean cold starts. */
const ASSIGN_MS = 180_000;
/** A copy that does not fit the machine means a start there besides. */
const TIMES_MS = { assign: ASSIGN_MS, copy: BUILD_MS, withdraw: QUICK_MS, deleteRevisions: QUICK_MS };
/** Pauses after a command that failed, by the number of times in a row. */
const PAUSES_MS = [1_000, 5_000, 15_000, 60_000];
/** After a command that succeeded, the host's report is given this long to show it. */
const DONE_PAUSE_MS = 6_000;
/** Decisions are made this long after the last ones: in a storm of changes many are seen in one pass, and reports are read between. */
const PASS_EVERY_MS = 25;
/** After the store refused a change. */
const STORE_PAUSE_MS = 5_000;

interface Running extends Work {
  controller: AbortController;
}

type Start = Extract<Decision, { type: 'prepare' | 'copy' | 'assign' | 'withdraw' | 'deleteRevisions' }>;

/** Carries out what `schedule` decides, again after every change and every second, until it decides nothing. */
export class Reconciler {
  /** Told after every change of services, hosts and work. */
  readonly changes = new Changes();
  /** What it has decided so far, and how long that took. */
  readonly figures = new PassFigures();
  readonly #parts: ReconcilerParts;
  readonly #work = new Map<string, Running>();
  readonly #cooldowns = new Map<string, number>();
  readonly #failures = new Map<string, number>();
  readonly #running = new Set<Promise<void>>();
  #count = 0;
  #passing = false;
  #again = false;
  #passedAt = 0;
  #soon: NodeJS.Timeout | undefined;
  #stopped = false;
  #pausedUntil = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(parts: ReconcilerParts) {
    this.#parts = parts;
  }

  /** Begins. */
  start(): void {
    const wake = () => this.#wake();
    this.#parts.registry.changes.subscribe(wake);
    this.#parts.fleet.changes.subscribe(wake);
    this.#parts.pools.start();
    this.#timer = setInterval(() => {
      this.#parts.fleet.sweep(Date.now());
      wake();
    }, 1_000);
    wake();
  }

  /** Decides nothing more. Commands under way are not recorded: they are decided on again after the next start. */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearInterval(this.#timer);
    clearTimeout(this.#soon);
    for (const work of this.#work.values()) work.controller.abort();
    await Promise.allSettled([...this.#running]);
    await this.#parts.pools.stop();
  }

  /** What is, and what is being done. */
  snapshot(): Snapshot {
    return {
      services: this.#parts.registry.all(),
      hosts: this.#parts.fleet.list(),
      work: [...this.#work.values()],
      cooldowns: this.#cooldowns,
      pools: this.#parts.pools.plans(),
      memory: this.#parts.pools.memory(),
      policy: this.#parts.policy(),
      recovering: this.#parts.recovering ?? false,
    };
  }

  #wake(): void {
    if (this.#stopped) return;
    this.#again = true;
    if (this.#passing) return;
    this.#passing = true;
    // Not within the change that woke us: what else changes with it is seen in one pass.
    const wait = this.#passedAt + PASS_EVERY_MS - performance.now();
    const pass = () => {
      this.#pass()
        .catch((error: unknown) => this.#parts.onError('deciding what to do next', error))
        .finally(() => {
          this.#passing = false;
          this.changes.tell();
          this.#passedAt = performance.now();
          if (this.#again) this.#wake();
        });
    };
    if (wait > 0) this.#soon = setTimeout(pass, wait);
    else setImmediate(pass);
  }

  async #pass(): Promise<void> {
    this.#again = false;
    const now = Date.now();
    if (this.#stopped || now < this.#pausedUntil) return;
    for (const [key, until] of this.#cooldowns) if (until <= now) this.#cooldowns.delete(key);
    const begin = performance.now();
    this.#parts.pools.refresh(this.#parts.registry.all(), this.#parts.fleet.list(), now);
    const decisions = schedule(this.snapshot(), now);
    this.figures.add(performance.now() - begin, decisions);
    for (const decision of decisions) {
      try {
        await this.#carryOut(decision);
      } catch (error) {
        this.#pausedUntil = Date.now() + STORE_PAUSE_MS;
        this.#parts.onError(`carrying out: ${decision.type}`, error);
        return;
      }
    }
  }

  async #carryOut(decision: Decision): Promise<void> {
    const { registry, builds } = this.#parts;
    switch (decision.type) {
      case 'place':
        await this.#place(decision);
        return;
      case 'keep':
        await registry.update(decision.service, (record) => record && keepMade(record));
        return;
      case 'remake':
        await registry.update(
          decision.service,
          (record) =>
            record?.current && {
              ...record,
              current: { ...record.current, making: { ...WANTED, force: decision.force } },
            },
        );
        return;
      case 'forget':
        // It may have been taken in again since.
        await registry.update(decision.service, (record) => (record?.removed ? undefined : record));
        builds.forget(decision.service);
        return;
      case 'cancel': {
        const work = this.#work.get(decision.work);
        if (work === undefined) return;
        work.cancelled = true;
        work.controller.abort();
        return;
      }
      default:
        this.#begin(decision);
    }
  }

  async #place({ service, maker, hosts }: Extract<Decision, { type: 'place' }>): Promise<void> {
    const before = this.#parts.registry.find(service)?.hosts ?? [];
    await this.#parts.registry.update(service, (record) => record && { ...record, host: maker, hosts });
    const where = hosts.length === 0 ? 'no host' : hosts.join(', ');
    const was = before.length === 0 ? '' : ` (before: ${before.join(', ')})`;
    this.#parts.events.add({ kind: 'service.placed', service, message: `${service} is placed on ${where}${was}` });
  }

  #begin(decision: Start): void {
    this.#count += 1;
    const work: Running = {
      id: String(this.#count),
      kind: decision.type,
      service: decision.service,
      host: decision.host,
      revision: 'revision' in decision ? decision.revision : '',
      cancelled: false,
      controller: new AbortController(),
    };
    this.#work.set(work.id, work);
    const done = this.#run(work, decision)
      .catch((error: unknown) => {
        this.#pausedUntil = Date.now() + STORE_PAUSE_MS;
        this.#parts.onError(`${work.kind} ${work.service} on ${work.host}`, error);
      })
      .finally(() => {
        this.#work.delete(work.id);
        this.#running.delete(done);
        this.#wake();
      });
    this.#running.add(done);
  }

  async #run(work: Running, decision: Start): Promise<void> {
    if (decision.type === 'prepare') {
      await this.#prepare(work, decision.force);
      return;
    }
    const key = workKey(work.kind, work.host, work.service);
    try {
      await this.#quick(work, decision);
      this.#failures.delete(key);
      if (decision.type !== 'assign') this.#cooldowns.set(key, Date.now() + DONE_PAUSE_MS);
    } catch (thrown) {
      if (this.#stopped || work.cancelled) return;
      const failures = this.#failures.get(key) ?? 0;
      this.#failures.set(key, failures + 1);
      this.#cooldowns.set(key, Date.now() + PAUSES_MS[Math.min(failures, PAUSES_MS.length - 1)]!);
      const { service, host } = work;
      const problem = problemOf(thrown);
      const message = `${work.kind} of ${service} on ${host} failed: ${problem.message}`;
      this.#parts.events.add({ kind: 'host.command_failed', service, host, message, problem });
    }
  }

  async #quick(work: Running, decision: Exclude<Start, { type: 'prepare' }>): Promise<void> {
    const { fleet } = this.#parts;
    const { service, host } = decision;
    const options = {
      what: `${work.kind} of ${service} on ${host}`,
      timeoutMs: TIMES_MS[decision.type],
      signal: work.controller.signal,
    };
    switch (decision.type) {
      case 'assign':
        await fleet.link(host).command({ $case: 'assign', value: decision.assignment }, options);
        fleet.confirm(host, service, decision.assignment);
        return;
      case 'copy':
        await this.#copy(decision, options);
        return;
      case 'withdraw':
        await fleet.link(host).command({ $case: 'withdraw', value: { service, reason: decision.reason } }, options);
        fleet.confirm(host, service, undefined);
        return;
      case 'deleteRevisions': {
        const { keep, removed } = decision;
        await fleet.link(host).command({ $case: 'deleteRevisions', value: { service, keep, removed } }, options);
        return;
      }
    }
  }

  /** Has a host get a revision from others; the sources are tried in their order. */
  async #copy({ service, host, revision, sources }: Extract<Decision, { type: 'copy' }>, options: CommandOptions) {
    const record = this.#parts.registry.find(service);
    const { current } = record ?? {};
    if (record === undefined || current?.id !== revision) return;
    const { imageId, problem } = current;
    const config = effectiveConfig(record, current);
    const value = { config, revision, imageId, sources, imageOnly: problem !== undefined };
    const outcome = await this.#parts.fleet.link(host).command({ $case: 'copy', value }, options);
    if (outcome.$case !== 'prepared') throw new Error(`the agent answered a copy with '${outcome.$case}'`);
  }

  async #prepare(work: Running, force: boolean): Promise<void> {
    const { registry, fleet, builds, events } = this.#parts;
    const { service, host, revision } = work;
    const record = registry.find(service);
    const wanted = [record?.pending, record?.current].find((one) => one?.id === revision);
    if (record === undefined || wanted === undefined) return;
    builds.begin(service);
    events.add({ kind: 'revision.building', service, host, revision, message: `${service} is made on ${host}` });
    const config = effectiveConfig(record, wanted);
    const { contextDigest } = wanted;
    let result: MakingResult;
    try {
      const outcome = await fleet
        .link(host)
        .command(
          { $case: 'prepare', value: { config, revision, contextDigest, force } },
          { what: `making ${service} on ${host}`, timeoutMs: BUILD_MS, signal: work.controller.signal },
        );
      if (outcome.$case !== 'prepared') throw new Error(`the agent answered a build with '${outcome.$case}'`);
      const { imageId, problem } = outcome.value;
      result = { kind: 'made', imageId, problem };
    } catch (thrown) {
      result = failure(work, toInitlessError(thrown));
    }
    if (this.#stopped) return;
    await registry.update(service, (before) => before && applyMaking(before, revision, host, result, Date.now()));
    this.#tell(work, result);
  }

  #tell(work: Running, result: MakingResult): void {
    const { service, host, revision } = work;
    const about = { service, host, revision };
    const problem = 'problem' in result ? result.problem : undefined;
    const say = (kind: string, message: string) => this.#parts.events.add({ ...about, kind, message, problem });
    switch (result.kind) {
      case 'made':
        if (problem === undefined) say('revision.ready', `${service} is made`);
        else say('revision.degraded', `${service} could not be checkpointed: ${problem.message}`);
        return;
      case 'failed':
        say('revision.failed', `${service} could not be made: ${problem?.message}`);
        return;
      case 'lost':
        say('revision.lost', `making ${service} was cut short: ${problem?.message}`);
        return;
      case 'cancelled':
        say('revision.cancelled', `making ${service} was stopped`);
    }
  }
}

function failure(work: Work, error: InitlessError): MakingResult {
  if (work.cancelled) return { kind: 'cancelled' };
  const problem = problemOf(error);
  const isHosts = error.code === 'AGENT_DOWN' || error.code === 'ENGINE_DOWN' || error.code === 'CANCELLED';
  return isHosts ? { kind: 'lost', problem } : { kind: 'failed', problem };
}
