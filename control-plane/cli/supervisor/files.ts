import { linkSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { InitlessError } from '../../../proto/rpc/errors.js';
import { identityOf, isAlive, type ProcessIdentity } from './process-identity.js';

/** A program that is kept running. */
export interface Part {
  /** Such as "gateway"; names its log too. */
  name: string;
  /** The program: a path, or a name that is looked for in PATH. Undefined: Node. */
  program?: string;
  /** Its arguments. */
  args: string[];
  /** Variables that it gets besides ours. */
  env?: Record<string, string>;
  /** "http://..." answers with 200 when the part is ready; to "tcp://HOST:PORT" a connection can then be made. */
  readyUrl: string;
}

/** What one supervisor keeps running. */
export interface Plan {
  /** In the order of their starts; they are stopped in the opposite order. */
  parts: Part[];
  /** Stands for the compiled code: parts of an older build are replaced. */
  build: string;
  /** Settings file and `code_dir` that were given, for an `initless up` that gives none. */
  settings: string | undefined;
  codeDir: string | undefined;
  /** Gateways, and whether there is a Redis, likewise. */
  gateways?: number;
  redis?: boolean;
}

/** How one part is doing. */
export interface PartState {
  name: string;
  /** Undefined: it is not running, and is started again when its wait is over. */
  process: ProcessIdentity | undefined;
  /** When it was last started, RFC 3339. */
  since: string;
  /** Starts after the first one. */
  restarts: number;
  /** How it last ended; empty: it has not. */
  lastEnd: string;
}

/** The files in a project's run folder through which supervisor and commands speak. */
export class RunFiles {
  readonly folder: string;

  constructor(folder: string) {
    this.folder = folder;
  }

  /** Makes the folder, readable by root only. */
  prepare(): void {
    mkdirSync(this.folder, { recursive: true, mode: 0o700 });
  }

  /** A part's log. */
  log(name: string): string {
    return join(this.folder, `${name}.log`);
  }

  readPlan(): Plan | undefined {
    return this.#read<Plan>('plan.json');
  }

  writePlan(plan: Plan): void {
    this.#write('plan.json', plan);
  }

  readStates(): PartState[] {
    return this.#read<PartState[]>('parts.json') ?? [];
  }

  writeStates(states: readonly PartState[]): void {
    this.#write('parts.json', states);
  }

  /** The supervisor that runs; undefined when there is none. A pid file that is stale, also by a reboot, is seen through. */
  supervisor(): ProcessIdentity | undefined {
    const identity = this.#read<ProcessIdentity>('supervisor.pid');
    return identity && isAlive(identity) ? identity : undefined;
  }

  /** Makes this process the project's supervisor; false when another one is. */
  claim(): boolean {
    const own = identityOf(process.pid);
    if (!own) throw new InitlessError('INTERNAL', '/proc does not show this process');
    const path = join(this.folder, 'supervisor.pid');
    const mine = `${path}.${process.pid}`;
    writeFileSync(mine, JSON.stringify(own), { mode: 0o600 });
    try {
      for (let attempt = 0; attempt < 2; attempt += 1) {
        try {
          linkSync(mine, path);
          return true;
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
          if (this.supervisor()) return false;
          rmSync(path, { force: true });
        }
      }
      return false;
    } finally {
      rmSync(mine);
    }
  }

  /** Gives the claim back. */
  release(): void {
    rmSync(join(this.folder, 'supervisor.pid'), { force: true });
  }

  #read<T>(name: string): T | undefined {
    try {
      return JSON.parse(readFileSync(join(this.folder, name), 'utf8')) as T;
    } catch (error) {
      // Missing, or cut off by a crash: either way nothing is known, and nothing is lost that is not found anew.
      if (error instanceof SyntaxError || (error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw error;
    }
  }

  #write(name: string, value: unknown): void {
    const path = join(this.folder, name);
    writeFileSync(`${path}.new`, JSON.stringify(value), { mode: 0o600 });
    renameSync(`${path}.new`, path);
  }
}
