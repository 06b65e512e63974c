import type { HostReport, PoolShare } from '../../proto/gen/initless/v1/fleet.js';
import { InstanceState } from '../../proto/gen/initless/v1/types.js';
import {
  type History,
  historyFromJson,
  historyToJson,
  newHistory,
  observe,
  type Target,
  target,
} from '../core/autoscale.js';
import { assignmentAt } from '../core/hosts.js';
import { type HostState, isEnabled, isKnown, type PoolPlan, type ServiceRecord } from '../core/model.js';
import { memoryBudget, type Planned, planPools, type Wish } from '../core/pool-plan.js';
import type { Store } from '../store/store.js';

/** Histories are stored at most this often, and at the stop. What a crash takes is a few minutes of them. */
const SAVE_MS = 5 * 60_000;

/** What the pools need of the rest. */
export interface PoolsParts {
  store: Store;
  /** Told what goes wrong without anybody waiting for it. */
  onError: (what: string, error: unknown) => void;
}

/** How the services are used, and what is to be parked of those whose pools follow it. */
export class Pools {
  readonly #parts: PoolsParts;
  readonly #histories = new Map<string, History>();
  /** Services whose stored history is behind, or that left one. */
  readonly #unsaved = new Set<string>();
  /** Bytes of its own that a parked instance holds, by service. */
  readonly #memory = new Map<string, number>();
  /** Targets as they were worked out last, and from what. */
  readonly #targets = new Map<string, { history: History; maxPoolSize: number; target: Target }>();
  #plans: ReadonlyMap<string, Planned> = new Map();
  #timer: NodeJS.Timeout | undefined;

  /** @param stored what the store gave; what cannot be read is left out, and its service begins anew. */
  constructor(parts: PoolsParts, stored: ReadonlyMap<string, unknown>) {
    this.#parts = parts;
    for (const [service, raw] of stored) {
      const history = historyFromJson(raw);
      if (history !== undefined) this.#histories.set(service, history);
    }
  }

  /** Begins to store histories. */
  start(): void {
    this.#timer = setInterval(() => void this.#save(), SAVE_MS);
  }

  /** Stores what is not stored yet. A store that fails costs histories, nothing else: it is told, not thrown. */
  async stop(): Promise<void> {
    clearInterval(this.#timer);
    await this.#save();
  }

  /** A host reported. */
  observe(host: string, report: HostReport, now: number): void {
    for (const usage of report.usage) {
      const { service, inUse, idleMs, stretch, mostInUse, mostTaken } = usage;
      const before = this.#histories.get(service);
      const arrivals = usage.foundRunning + usage.foundParked + usage.started;
      const source = `${host} ${report.usageEpoch}`;
      const after = observe(before, { source, arrivals, inUse, idleMs, stretch, mostInUse, mostTaken }, now);
      this.#histories.set(service, after);
      // That nothing happened is not worth a write.
      if (after.lastUse !== before?.lastUse) this.#unsaved.add(service);
      if (usage.parkedMemory > 0) this.#memory.set(service, usage.parkedMemory);
    }
  }

  /** Works out what is to be parked now. To be called before each round of decisions. */
  refresh(services: readonly ServiceRecord[], fleet: readonly HostState[], now: number): void {
    this.#forget(new Set(services.filter((record) => !record.removed).map((record) => record.name)));
    const wishes = services
      .filter((record) => isEnabled(record) && record.config.preStartPoolAuto)
      .map((record): Wish => {
        const { name, config, hosts } = record;
        const { maxPoolSize } = config;
        const memory = this.#memory.get(name) ?? 0;
        return {
          service: name,
          hosts: servedBy(hosts, fleet, name),
          target: this.#target(name, maxPoolSize, now),
          maxPoolSize,
          memory,
        };
      });
    const budgets = new Map(
      fleet.filter(isKnown).map((host) => [host.name, memoryBudget(host, this.#parkedBytes(host, wishes))]),
    );
    this.#plans = planPools(wishes, budgets, this.#before(wishes, fleet), now);
  }

  /** Bytes of its own that a parked instance holds, by service, as far as it was measured. */
  memory(): ReadonlyMap<string, number> {
    return this.#memory;
  }

  /** The plans, by service. */
  plans(): ReadonlyMap<string, PoolPlan> {
    return this.#plans;
  }

  #target(service: string, maxPoolSize: number, now: number): Target {
    let history = this.#histories.get(service);
    if (history === undefined) {
      history = newHistory(now);
      this.#histories.set(service, history);
    }
    const last = this.#targets.get(service);
    const holds = last?.history === history && last.maxPoolSize === maxPoolSize && now < last.target.nextLookAt;
    if (holds) return last.target;
    const fresh = target(history, { maxPoolSize }, now);
    this.#targets.set(service, { history, maxPoolSize, target: fresh });
    return fresh;
  }

  /** The plans in force. After a start those are what the hosts were told before it: nothing is removed in haste. */
  #before(wishes: readonly Wish[], hosts: readonly HostState[]): Map<string, Planned> {
    const before = new Map(this.#plans);
    for (const { service } of wishes) {
      if (before.has(service)) continue;
      const told = hosts.flatMap((host): [string, PoolShare][] => {
        const share = assignmentAt(host, service)?.pool;
        return share === undefined ? [] : [[host.name, share]];
      });
      if (told.length === 0) continue;
      const sum = (key: 'parked' | 'ready') => told.reduce((total, [, share]) => total + share[key], 0);
      const usefulness = Math.max(...told.map(([, share]) => share.usefulness));
      const perHost = new Map(told.map(([host, share]) => [host, share.parked]));
      before.set(service, {
        ...{ parked: sum('parked'), ready: sum('ready'), usefulness, perHost },
        ...{ reason: '', lowerSince: undefined },
      });
    }
    return before;
  }

  #parkedBytes(host: HostState, wishes: readonly Wish[]): number {
    const bytes = new Map(wishes.map(({ service, memory }) => [service, memory]));
    return host.instances
      .filter(({ state }) => state === InstanceState.INSTANCE_STATE_PARKED)
      .reduce((sum, { service }) => sum + (bytes.get(service) ?? 0), 0);
  }

  #forget(services: ReadonlySet<string>): void {
    for (const service of this.#histories.keys()) {
      if (services.has(service)) continue;
      this.#histories.delete(service);
      this.#targets.delete(service);
      this.#memory.delete(service);
      this.#unsaved.add(service);
    }
  }

  async #save(): Promise<void> {
    const services = [...this.#unsaved];
    if (services.length === 0) return;
    this.#unsaved.clear();
    const changes = services.map((service): [string, unknown] => {
      const history = this.#histories.get(service);
      return [service, history && historyToJson(history)];
    });
    try {
      await this.#parts.store.putHistories(new Map(changes));
    } catch (error) {
      for (const service of services) this.#unsaved.add(service);
      this.#parts.onError('storing how services are used', error);
    }
  }
}

/** Hosts of a service that were told to serve it; before any was, those that it is placed on. */
function servedBy(hosts: readonly string[], fleet: readonly HostState[], service: string): string[] {
  const told = hosts.filter((name) => fleet.some((host) => host.name === name && assignmentAt(host, service)));
  return told.length > 0 ? told : [...hosts];
}
