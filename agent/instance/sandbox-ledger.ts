import type { PortRange, Sandbox } from '../runtime/sandbox.js';

/**
 * Where a sandbox stands. `making`: for the pool; one that is made for a tenant is `used` from the first. `returned`:
 * its tenant is gone, and it waits to be looked at; `checking` is that. `leaving`: it waits to be removed; `removing` is
 * that. `port`: no sandbox at all, only a leased port.
 */
export type Stage = 'making' | 'spare' | 'used' | 'port' | 'returned' | 'checking' | 'leaving' | 'removing';

/** What the pool knows of a sandbox. */
export interface Entry {
  readonly index: number;
  /** Its leased port; undefined for one that an earlier agent left, whose lease went with that agent's rules. */
  readonly port: number | undefined;
  stage: Stage;
  /** Service port that its leased port leads to; undefined: nowhere. */
  leadsTo: number | undefined;
  /** Since when it is spare. */
  since: number;
  /** What its tenant was given; undefined while it has none. */
  sandbox: Sandbox | undefined;
  /** Times that its removal failed, and when it may be tried again. */
  failures: number;
  notBefore: number;
}

/** How many sandboxes and leased ports there are. */
export interface SandboxCounts {
  /** In use by an instance, or being made for one. */
  used: number;
  /** Ready to be taken. */
  spare: number;
  /** Being made, looked at or removed, or waiting for it. */
  changing: number;
  /** Leased ports without a sandbox. */
  ports: number;
  /** Ports that nothing of the above has. */
  free: number;
}

/** Stages that a tenant has nothing to do with: what is in them can be had by the next one, sooner or later. */
const TENANTLESS = ['making', 'spare', 'returned', 'checking', 'leaving', 'removing'] as const;

/** Which numbers and leased ports are whose. No two entries ever have the same of either. It has no effects. */
export class Ledger {
  range: PortRange;
  readonly #entries = new Map<number, Entry>();

  constructor(range: PortRange) {
    this.range = range;
  }

  /** The entry of a number. */
  get(index: number): Entry | undefined {
    return this.#entries.get(index);
  }

  /** All entries in some stages, in the order in which they were entered. */
  all(...stages: readonly Stage[]): Entry[] {
    return [...this.#entries.values()].filter((entry) => stages.includes(entry.stage));
  }

  /** Enters a number that nothing has. */
  enter(index: number, port: number | undefined, stage: Stage): Entry {
    const entry: Entry = {
      ...{ index, port, stage },
      ...{ leadsTo: undefined, since: 0, sandbox: undefined, failures: 0, notBefore: 0 },
    };
    this.#entries.set(index, entry);
    return entry;
  }

  /** Enters the lowest number with the lowest port of the range that nothing has; undefined when no port is left. */
  enterFree(stage: Stage): Entry | undefined {
    const { first, last } = this.range;
    const ports = new Set([...this.#entries.values()].map((entry) => entry.port));
    let port = first;
    while (ports.has(port)) port++;
    if (port > last) return undefined;
    let index = 0;
    while (this.#entries.has(index)) index++;
    return this.enter(index, port, stage);
  }

  /** Strikes an entry out; its number and port are free. */
  strike(entry: Entry): void {
    this.#entries.delete(entry.index);
  }

  /** Whether the port of an entry may be leased; one that was leased before the range changed may not be again. */
  inRange({ port }: Entry): boolean {
    return port !== undefined && port >= this.range.first && port <= this.range.last;
  }

  /** Ports of the range that no tenant has. */
  capacity(): number {
    return this.range.last - this.range.first + 1 - this.#ports('used', 'port');
  }

  counts(): SandboxCounts {
    const count = (...stages: readonly Stage[]) => this.all(...stages).length;
    const spare = count('spare');
    return {
      used: count('used'),
      spare,
      changing: count(...TENANTLESS) - spare,
      ports: count('port'),
      free: this.capacity() - this.#ports(...TENANTLESS),
    };
  }

  #ports(...stages: readonly Stage[]): number {
    return this.all(...stages).filter((entry) => this.inRange(entry)).length;
  }
}
