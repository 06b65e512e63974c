import { randomUUID } from 'node:crypto';
import { mkdir, open, readdir, readFile, rename } from 'node:fs/promises';
import { dirname } from 'node:path';
import { ClassicLevel } from 'classic-level';
import { InitlessError } from '../../proto/rpc/errors.js';
import type { HostRecord, ServiceRecord } from '../core/model.js';
import { addTo, type Change, changeOf, UnreadableRecord } from './records.js';
import type { Store, Stored } from './store.js';

type Level = ClassicLevel<string, string>;

/** Which store it is, and how many changes it has taken. It stands in the store and, as its witness, beside it. */
interface Identity {
  version: 1;
  id: string;
  changes: number;
}

const META = 'meta';

/**
 * The embedded store: a LevelDB in a folder, every change synced before it is acknowledged.
 *
 * LevelDB opens a folder that was emptied as a new store, and one whose log was cut as an older one. So a witness file
 * beside the folder says which store belongs there and how many changes it has acknowledged; a store that knows less
 * than its witness is refused. The witness is written after the store, so that a crash in between only makes it older.
 */
export class EmbeddedStore implements Store {
  readonly description: string;
  /** A store that has lost its content is refused, not opened. */
  readonly lost = false;
  readonly #folder: string;
  #level: Level;
  #identity: Identity;
  /** Set when a write failed: LevelDB refuses all writes from then on, until it is opened again. */
  #broken = false;
  #queue: Promise<unknown> = Promise.resolve();

  private constructor(folder: string, level: Level, identity: Identity) {
    this.#folder = folder;
    this.#level = level;
    this.#identity = identity;
    this.description = `embedded: ${folder}`;
  }

  /**
   * Opens the store in `folder`, or makes it when nothing says that there was one.
   *
   * @param leftovers a folder that is empty unless services were stored before: that of their build contexts.
   * Errors: STORE_DAMAGED (damaged, lost, or another store's), STORE_FAILED (another process has it open).
   */
  static async open(folder: string, leftovers: string): Promise<EmbeddedStore> {
    await mkdir(dirname(folder), { recursive: true, mode: 0o700 });
    const witness = await readWitness(folder);
    const there = await isFilled(folder);
    const used = witness !== undefined || (await isFilled(leftovers));
    if (!there && used) {
      throw damaged(folder, witness ? 'its files are gone' : 'it is gone, but services were stored before');
    }
    const level = await openLevel(folder, !there);
    try {
      const identity = await identify(folder, level, witness, used);
      await writeWitness(folder, identity);
      return new EmbeddedStore(folder, level, identity);
    } catch (error) {
      await level.close();
      throw error;
    }
  }

  async load(): Promise<Stored> {
    const stored: Stored = { services: [], hosts: [], histories: new Map() };
    try {
      for await (const [key, text] of this.#level.iterator()) {
        if (key !== META) addTo(stored, key, text);
      }
    } catch (error) {
      if (error instanceof UnreadableRecord) throw damaged(this.#folder, error.message, error);
      throw translate(this.#folder, error);
    }
    return stored;
  }

  putService = (record: ServiceRecord) => this.#change(changeOf.putService(record));
  deleteService = (name: string) => this.#change(changeOf.deleteService(name));
  putHost = (record: HostRecord) => this.#change(changeOf.putHost(record));
  deleteHost = (name: string) => this.#change(changeOf.deleteHost(name));
  putHistories = (histories: ReadonlyMap<string, unknown>) => this.#change(...changeOf.putHistories(histories));

  trouble(): string {
    return '';
  }

  watch(): void {}

  async close(): Promise<void> {
    await this.#queue.catch(() => undefined);
    await this.#level.close();
  }

  /** One change after the other: each is in the store, then in its witness, before it is acknowledged. */
  #change(...changes: Change[]): Promise<void> {
    const done = this.#queue.then(() => this.#write(changes));
    this.#queue = done.catch(() => undefined);
    return done;
  }

  async #write(changes: readonly Change[]): Promise<void> {
    const identity = { ...this.#identity, changes: this.#identity.changes + 1 };
    try {
      if (this.#broken) await this.#reopen();
      const meta = { type: 'put', key: META, value: JSON.stringify(identity) } as const;
      const batch = changes.map(({ key, text }) =>
        text === undefined ? ({ type: 'del', key } as const) : ({ type: 'put', key, value: text } as const),
      );
      await this.#level.batch([...batch, meta], { sync: true });
      this.#identity = identity;
      await writeWitness(this.#folder, identity);
    } catch (error) {
      this.#broken = true;
      throw translate(this.#folder, error);
    }
  }

  async #reopen(): Promise<void> {
    await this.#level.close();
    this.#level = await openLevel(this.#folder, false);
    // A write that failed may have reached the disk all the same.
    this.#identity = (await readIdentity(this.#level)) ?? this.#identity;
    this.#broken = false;
  }
}

async function isFilled(folder: string): Promise<boolean> {
  const names = await readdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    throw error;
  });
  return names.length > 0;
}

async function openLevel(folder: string, create: boolean): Promise<Level> {
  const level: Level = new ClassicLevel(folder, { createIfMissing: create, errorIfExists: create });
  try {
    await level.open();
    return level;
  } catch (error) {
    const cause = (error as Error).cause as NodeJS.ErrnoException | undefined;
    if (cause?.code === 'LEVEL_LOCKED') {
      throw new InitlessError('STORE_FAILED', `the store ${folder} is in use by another control plane`, {
        subject: folder,
        nextStep: "stop the other one ('initless status' shows it), or give this one another --project",
        cause,
      });
    }
    if (/No space left/.test(String(cause?.message))) throw translate(folder, cause);
    throw damaged(folder, cause?.message ?? String(error), error);
  }
}

/** Which store has been opened. Errors: STORE_DAMAGED when it is not the one that belongs there, or knows too little. */
async function identify(folder: string, level: Level, witness: Identity | undefined, used: boolean): Promise<Identity> {
  const identity = await readIdentity(level).catch((error: unknown) => {
    throw damaged(folder, (error as Error).message, error);
  });
  if (identity === undefined) {
    if (used) throw damaged(folder, 'it has lost its content');
    const created: Identity = { version: 1, id: randomUUID(), changes: 0 };
    await level.put(META, JSON.stringify(created), { sync: true });
    return created;
  }
  if (identity.version !== 1) throw damaged(folder, `it was written by another version (form ${identity.version})`);
  if (witness !== undefined && witness.id !== identity.id) throw damaged(folder, 'it is another store than before');
  if (witness !== undefined && witness.changes > identity.changes) {
    const lost = witness.changes - identity.changes;
    throw damaged(folder, `it has lost the last ${lost} of ${witness.changes} acknowledged changes`);
  }
  return identity;
}

async function readIdentity(level: Level): Promise<Identity | undefined> {
  const text = await level.get(META);
  return text === undefined ? undefined : (JSON.parse(text) as Identity);
}

const witnessPath = (folder: string) => `${folder}.json`;

async function readWitness(folder: string): Promise<Identity | undefined> {
  const path = witnessPath(folder);
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  });
  if (text === undefined) return undefined;
  try {
    const parsed = JSON.parse(text) as Identity;
    if (typeof parsed.id === 'string' && typeof parsed.changes === 'number') return parsed;
  } catch {
    // Told below.
  }
  throw damaged(folder, `its witness ${path} cannot be read`);
}

async function writeWitness(folder: string, identity: Identity): Promise<void> {
  const path = witnessPath(folder);
  const file = await open(`${path}.new`, 'w', 0o600);
  try {
    await file.writeFile(`${JSON.stringify(identity)}\n`);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(`${path}.new`, path);
  const parent = await open(dirname(path), 'r');
  try {
    await parent.sync();
  } finally {
    await parent.close();
  }
}

function damaged(folder: string, reason: string, cause?: unknown): InitlessError {
  return new InitlessError('STORE_DAMAGED', `the store ${folder} is damaged: ${reason}`, {
    subject: folder,
    nextStep:
      `put ${folder} and ${witnessPath(folder)} back from a backup; or, to begin anew, move them and the folder ` +
      'contexts beside them away: services below code_dir come back by themselves, others have to be applied again',
    cause,
  });
}

function translate(folder: string, error: unknown): InitlessError {
  if (error instanceof InitlessError) return error;
  const cause = ((error as Error).cause as Error | undefined) ?? (error as Error);
  const code = (cause as NodeJS.ErrnoException).code;
  if (code === 'ENOSPC' || /No space left/.test(cause.message)) {
    return new InitlessError('DISK_FULL', `no space left on the disk of the store ${folder}`, {
      subject: folder,
      nextStep: 'free some space, then try again; nothing that was acknowledged is lost',
      cause: error,
    });
  }
  if (code === 'LEVEL_CORRUPTION') return damaged(folder, cause.message, error);
  return new InitlessError('STORE_FAILED', `the store ${folder} failed: ${cause.message}`, {
    subject: folder,
    cause: error,
  });
}
