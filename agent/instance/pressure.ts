import type { Logger } from 'pino';
import type { ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import { sleep } from '../../proto/rpc/deadline.js';
import { InitlessError, problemOf } from '../../proto/rpc/errors.js';
import type { MemoryReading } from '../runtime/memory.js';
import type { Instance } from './instance.js';
import type { Instances } from './instances.js';
import { parkedWanted } from './pool.js';
import type { Usage } from './usage.js';

/** How often memory is looked at. */
const LOOK_MS = 1_000;
/** Memory is short when less than this share of it is available, or ... */
const FLOOR_SHARE = 0.1;
/** ... less than this, bytes, whichever is less. */
const MAX_FLOOR = 512 * 2 ** 20;
/** It is short until this many times the floor is available again. */
const RELIEF = 1.25;

/** The reading below its floor by the most, when memory is short; undefined when it is not. Pure. */
export function shortage(readings: readonly MemoryReading[], wasShort: boolean): MemoryReading | undefined {
  const spare = (reading: MemoryReading) => reading.available - floorOf(reading) * (wasShort ? RELIEF : 1);
  return readings.filter((reading) => spare(reading) < 0).sort((a, b) => spare(a) - spare(b))[0];
}

/** Whether `bytes` more can be taken without memory being short afterwards, or staying so. Pure. */
export function hasRoom(readings: readonly MemoryReading[], bytes: number): boolean {
  return readings.every((reading) => reading.available - bytes >= floorOf(reading) * RELIEF);
}

/** Bytes below which memory is short. */
function floorOf({ total }: MemoryReading): number {
  return Math.min(total * FLOOR_SHARE, MAX_FLOOR);
}

/** A parked instance, and what speaks for keeping it. */
export interface Candidate {
  id: string;
  /** What it is parked for: more than its pool wants, an automatic pool, a pool of a fixed number, or a person's wish. */
  kind: 'surplus' | 'auto' | 'fixed' | 'by hand';
  /** How likely it is to be needed soon, as the control plane has it: 0 to 4. */
  usefulness: number;
  /** When its service was last used; 0: not since the agent started. */
  lastUse: number;
  parkedSince: number;
}

const KINDS: readonly Candidate['kind'][] = ['surplus', 'auto', 'fixed', 'by hand'];

/** The parked instance that is missed least; undefined when there is none. Pure. */
export function leastUseful(parked: readonly Candidate[]): Candidate | undefined {
  const rank = (one: Candidate) => [KINDS.indexOf(one.kind), one.usefulness, one.lastUse, one.parkedSince];
  return [...parked].sort((a, b) => {
    const [left, right] = [rank(a), rank(b)];
    const at = left.findIndex((value, index) => value !== right[index]);
    return at === -1 ? a.id.localeCompare(b.id) : left[at]! - right[at]!;
  })[0];
}

/** What looking after memory needs. */
export interface PressureParts {
  instances: Pick<Instances, 'assignments' | 'list' | 'remove'>;
  usage: Pick<Usage, 'lastUse' | 'memoryOf'>;
  /** The memory there is. */
  read: () => MemoryReading[];
  log: Logger;
}

/** Gives parked instances up, the least useful first, when the host runs short of memory, and keeps pools from growing then. */
export class Pressure {
  readonly #parts: PressureParts;
  #readings: MemoryReading[];
  #short: MemoryReading | undefined;

  constructor(parts: PressureParts) {
    this.#parts = parts;
    this.#readings = parts.read();
    this.#short = shortage(this.#readings, false);
  }

  /** Memory that can still be taken on this host, bytes. */
  get available(): number {
    return Math.min(...this.#readings.map((reading) => reading.available));
  }

  /** Whether one more instance of a service may be parked. */
  mayPark(service: string): boolean {
    return this.#short === undefined && hasRoom(this.#readings, this.#parts.usage.memoryOf(service));
  }

  /** Looks at memory until `signal` aborts. */
  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        // After each that went there is another look before the next goes.
        while (!signal.aborted && (await this.look()));
      } catch (error) {
        this.#parts.log.error({ error }, 'looking after memory failed');
      }
      await sleep(LOOK_MS, signal).catch(() => {});
    }
  }

  /** Looks once, and gives one parked instance up if memory is short; whether it did. Errors: those of reading memory. */
  async look(): Promise<boolean> {
    const { instances, log } = this.#parts;
    const before = this.#short;
    this.#readings = this.#parts.read();
    this.#short = shortage(this.#readings, before !== undefined);
    if (this.#short === undefined) {
      if (before) log.info({ available: this.available }, 'there is enough memory again; pools are filled');
      return false;
    }
    const { of, available, total } = this.#short;
    if (before === undefined) log.warn({ of, available, total }, 'memory is short; pools are not filled');
    const chosen = leastUseful(this.#candidates());
    const instance = instances.list().find((one) => one.id === chosen?.id);
    if (instance === undefined) return false;
    instance.problem = problemOf(
      new InitlessError(
        'MEMORY_SHORT',
        `${instance.id} was given up: ${mebibytes(available)} of ${mebibytes(total)} of ${of} are available`,
        { subject: instance.id, nextStep: 'give the host more memory, or let fewer instances be parked or run' },
      ),
    );
    // Chosen and removed in one go: a lease that came before would have made it another state's.
    await instances.remove(instance.id, 'drained');
    return true;
  }

  #candidates(): Candidate[] {
    const { instances, usage } = this.#parts;
    const assignments = new Map(instances.assignments().map((one) => [one.config?.serviceName, one]));
    const all = instances.list();
    const kept = new Map<string, number>();
    return all
      .filter((instance) => instance.state === 'parked')
      .sort((a, b) => b.parkedSince - a.parkedSince)
      .map((instance) => {
        const { id, service, parkedSince } = instance;
        const assignment = assignments.get(service);
        const kind = kindOf(instance, assignment, all, kept);
        return {
          id,
          kind,
          usefulness: assignment?.pool?.usefulness ?? 0,
          lastUse: usage.lastUse(service),
          parkedSince,
        };
      });
  }
}

/** @param kept instances of each pool that are within what it wants, so far. */
function kindOf(
  instance: Instance,
  assignment: ServiceAssignment | undefined,
  all: readonly Instance[],
  kept: Map<string, number>,
): Candidate['kind'] {
  if (!instance.pooled) return 'by hand';
  const wanted = assignment ? parkedWanted(assignment, all) : 0;
  const before = kept.get(instance.service) ?? 0;
  if (before >= wanted) return 'surplus';
  kept.set(instance.service, before + 1);
  return assignment?.config?.preStartPoolAuto ? 'auto' : 'fixed';
}

function mebibytes(bytes: number): string {
  return `${Math.round(bytes / 2 ** 20)} MiB`;
}
