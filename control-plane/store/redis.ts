import { randomUUID } from 'node:crypto';
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { Redis } from 'ioredis';
import { sleep } from '../../proto/rpc/deadline.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import type { HostRecord, ServiceRecord } from '../core/model.js';
import { addTo, type Change, changeOf, UnreadableRecord } from './records.js';
import { HOLD, RELEASE, REPLACE, WRITE } from './redis-scripts.js';
import type { Store, Stored, StoreEvent } from './store.js';

/** A command that Redis does not answer within this time has failed; it may take effect all the same. */
const COMMAND_MS = 2_000;
const CONNECT_MS = 5_000;
const LONGEST_PAUSE_MS = 2_000;
/** The lock of a control plane that died is free after this long ... */
const LEASE_MS = 10_000;
/** ... and one that lives renews it, and looks whether all is there, this often. */
const RENEW_MS = 2_000;

/** Where a Redis store is. */
export interface RedisOptions {
  host: string;
  port: number;
  /** Everything of the project is under `initless:{PROJECT}`. */
  project: string;
  /** File with the control plane's own copy of what it stored: from it an emptied Redis is filled again. */
  copy: string;
}

/** Which state it is: the store it belongs to, how many changes it has taken, and which write made the last one. */
interface Identity {
  id: string;
  changes: number;
  write: string;
}

/**
 * The state in Redis, by ioredis: one hash for the project, each change one script that compares what it changes with
 * what we know, so that it is made whole or not at all, and never over what somebody else wrote.
 *
 * The control plane keeps a copy of its own, in memory and on its disk. A Redis that was emptied, or came back with an older
 * state, is filled from it again. While Redis is away, what was read stands, and changes are refused.
 */
export class RedisStore implements Store {
  readonly description: string;
  readonly #redis: Redis;
  readonly #watcher: Redis;
  readonly #keys: [string, string];
  readonly #owner = randomUUID();
  readonly #options: RedisOptions;
  #mirror = new Map<string, string>();
  #identity: Identity | undefined;
  #queue: Promise<unknown> = Promise.resolve();
  #listeners: ((event: StoreEvent) => void)[] = [];
  #timer: NodeJS.Timeout | undefined;
  #trouble = '';
  #wasLost = false;
  /** A write that failed by its time: nobody knows whether Redis takes it. */
  #givenUp: Identity | undefined;

  private constructor(options: RedisOptions) {
    this.#options = options;
    const { host, port, project } = options;
    this.description = `redis: ${host}:${port}, initless:{${project}}`;
    this.#keys = [`initless:{${project}}`, `initless:{${project}}:lock`];
    const connection = {
      ...{ host, port, lazyConnect: true, enableOfflineQueue: false, connectTimeout: CONNECT_MS },
      ...{ commandTimeout: COMMAND_MS, maxRetriesPerRequest: 0 },
      retryStrategy: (times: number) => Math.min(100 * times, LONGEST_PAUSE_MS),
    };
    this.#redis = new Redis(connection);
    this.#watcher = new Redis({
      ...connection,
      enableOfflineQueue: true,
      commandTimeout: undefined,
      maxRetriesPerRequest: null,
    });
    // Told by the calls that fail; without a listener it would end the process.
    for (const one of [this.#redis, this.#watcher]) one.on('error', () => {});
  }

  /**
   * Opens the state, once Redis can be reached and no other control plane has the project. `onWaiting` is told what is waited for, once
   * for each reason. Errors: STORE_FAILED (another control plane holds it for longer than its lease), STORE_DAMAGED (a record
   * cannot be read, or the state is another one's), and the signal's reason.
   */
  static async open(
    options: RedisOptions,
    onWaiting: (why: string) => void,
    signal?: AbortSignal,
  ): Promise<RedisStore> {
    const store = new RedisStore(options);
    try {
      await store.#begin(onWaiting, signal);
      return store;
    } catch (error) {
      await store.close();
      throw error;
    }
  }

  async load(): Promise<Stored> {
    const stored: Stored = { services: [], hosts: [], histories: new Map() };
    for (const [key, text] of this.#mirror) {
      try {
        addTo(stored, key, text);
      } catch (error) {
        if (!(error instanceof UnreadableRecord)) throw error;
        throw new InitlessError('STORE_DAMAGED', `${this.description} is damaged: ${error.message}`, {
          subject: this.#keys[0],
          nextStep: `restore it from a backup of Redis, or remove the key ${this.#keys[0]} and apply services again`,
          cause: error,
        });
      }
    }
    return stored;
  }

  putService = (record: ServiceRecord) => this.#change(changeOf.putService(record));
  deleteService = (name: string) => this.#change(changeOf.deleteService(name));
  putHost = (record: HostRecord) => this.#change(changeOf.putHost(record));
  deleteHost = (name: string) => this.#change(changeOf.deleteHost(name));
  putHistories = (histories: ReadonlyMap<string, unknown>) => this.#change(...changeOf.putHistories(histories));

  /** What is wrong with it now; empty: nothing. */
  trouble(): string {
    return this.#trouble;
  }

  /** Whether it was found empty, or older, when it was opened, with no copy here to fill it from. */
  get lost(): boolean {
    return this.#wasLost;
  }

  /** Tells of what happens to it. */
  watch(listener: (event: StoreEvent) => void): void {
    this.#listeners.push(listener);
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    await this.#queue.catch(() => undefined);
    await this.#script(RELEASE).catch(() => undefined);
    this.#redis.disconnect();
    this.#watcher.disconnect();
  }

  async #begin(onWaiting: (why: string) => void, signal: AbortSignal | undefined): Promise<void> {
    let said = '';
    const copy = await this.#readCopy();
    const end = Date.now() + 2 * LEASE_MS;
    for (;;) {
      signal?.throwIfAborted();
      try {
        if (this.#redis.status === 'wait') await this.#redis.connect();
        const [owner = '', meta = ''] = await this.#script(HOLD);
        if (owner === this.#owner) {
          await this.#take(meta, copy);
          break;
        }
        if (Date.now() > end) throw this.#heldByAnother();
        if (said !== owner) onWaiting(`another control plane has the project in ${this.description}`);
        said = owner;
      } catch (error) {
        if (error instanceof InitlessError) throw error;
        const why = `${this.description} cannot be reached: ${(error as Error).message}`;
        if (said !== why) onWaiting(why);
        said = why;
      }
      await sleep(500, signal);
    }
    this.#timer = setInterval(() => this.#look(), RENEW_MS);
    await this.#watcher.connect().catch(() => undefined);
    this.#watcher.on('message', (_channel, text: string) => {
      if (this.#identity !== undefined && text !== JSON.stringify(this.#identity)) this.#look();
    });
    void this.#watcher.subscribe(this.#keys[0]).catch(() => undefined);
    // What was published meanwhile was missed.
    this.#redis.on('ready', () => this.#look());
  }

  /** Makes what is in Redis, and in the copy, the state that we go by. */
  async #take(meta: string, copy: Copy | undefined): Promise<void> {
    const there = parse(meta);
    if (there !== undefined && (copy === undefined || !isBehind(there, copy.identity))) {
      if (copy !== undefined && copy.identity.id !== there.id) {
        throw new InitlessError(
          'STORE_DAMAGED',
          `${this.description} holds another state than this control plane had`,
          {
            subject: this.#keys[0],
            nextStep: `put the right one back; or, to go on with what is there, remove ${this.#options.copy}`,
          },
        );
      }
      const all = await this.#redis.hgetall(this.#keys[0]);
      delete all.meta;
      this.#mirror = new Map(Object.entries(all));
      this.#identity = there;
      await this.#writeCopy();
      return;
    }
    if (copy !== undefined) {
      this.#mirror = copy.records;
      this.#identity = copy.identity;
      await this.#fill(there === undefined ? 'it was empty' : 'it had an older state');
      return;
    }
    this.#wasLost = there === undefined;
    this.#identity = { id: randomUUID(), changes: 0, write: randomUUID() };
    await this.#replace();
  }

  /** Writes all that we know into a Redis that has lost it. */
  async #fill(why: string): Promise<void> {
    this.#identity = { ...this.#identity!, changes: this.#identity!.changes + 1, write: randomUUID() };
    await this.#replace();
    this.#tell({
      kind: 'store.restored',
      message: `${this.description} was filled again from the control plane's copy: ${why}`,
    });
  }

  async #replace(): Promise<void> {
    const identity = JSON.stringify(this.#identity);
    const [owner] = await this.#script(REPLACE, identity, ...[...this.#mirror].flat());
    if (owner !== this.#owner) throw this.#heldByAnother();
    await this.#writeCopy();
  }

  /** Renews the lock, and sees to it that what is there is what we know. */
  #look(): void {
    const done = this.#queue.then(async () => {
      const [owner = '', meta = ''] = await this.#script(HOLD);
      if (owner !== this.#owner) {
        this.#inTrouble(this.#heldByAnother().message);
        return;
      }
      await this.#agree(meta);
      this.#inTrouble('');
    });
    this.#queue = done.catch((error: unknown) => this.#inTrouble(this.#failure(error).message));
  }

  /** Errors: STORE_FAILED when somebody else wrote. */
  async #agree(meta: string): Promise<void> {
    const there = parse(meta);
    const known = this.#identity!;
    if (there?.write === known.write) return;
    if (there !== undefined && there.write === this.#givenUp?.write) {
      // Whoever asked for it was told that it failed.
      this.#identity = { ...there, changes: there.changes + 1, write: randomUUID() };
      this.#givenUp = undefined;
      await this.#replace();
      return;
    }
    if (there === undefined || isBehind(there, known)) {
      await this.#fill(there === undefined ? 'it was emptied' : 'it came back with an older state');
      return;
    }
    throw new InitlessError(
      'STORE_FAILED',
      `somebody else has changed ${this.description}: nothing is written over it`,
      {
        subject: this.#keys[0],
        nextStep: 'end what wrote there, then restart this control plane: it reads what is there',
      },
    );
  }

  #change(...changes: Change[]): Promise<void> {
    const done = this.#queue.then(() => this.#write(changes));
    this.#queue = done.catch(() => undefined);
    return done;
  }

  async #write(changes: readonly Change[]): Promise<void> {
    const known = this.#identity!;
    const next: Identity = { ...known, changes: known.changes + 1, write: randomUUID() };
    const args = [JSON.stringify(next), ...changes.flatMap(({ key, text }) => [key, text ?? ''])];
    try {
      for (let tries = 0; ; tries++) {
        const expected = JSON.stringify(this.#identity);
        const [owner = '', meta = ''] = await this.#script(WRITE, expected, ...args);
        if (owner !== this.#owner) throw this.#heldByAnother();
        if (parse(meta)?.write === next.write) break;
        if (tries > 0) throw new Error('its state changes again and again');
        // Emptied since, or a write that was given up has landed after all.
        await this.#agree(meta);
        next.changes = this.#identity!.changes + 1;
        args[0] = JSON.stringify(next);
      }
    } catch (error) {
      const failure = this.#failure(error);
      this.#inTrouble(failure.message);
      // It may land late all the same, and is then taken back.
      this.#givenUp = next;
      throw failure;
    }
    this.#identity = next;
    for (const { key, text } of changes) {
      if (text === undefined) this.#mirror.delete(key);
      else this.#mirror.set(key, text);
    }
    this.#inTrouble('');
    await this.#writeCopy();
  }

  async #script(text: string, ...args: string[]): Promise<string[]> {
    return (await this.#redis.eval(text, 2, ...this.#keys, this.#owner, LEASE_MS, ...args)) as string[];
  }

  #inTrouble(why: string): void {
    if (why === this.#trouble) return;
    const before = this.#trouble;
    this.#trouble = why;
    if (why !== '') this.#tell({ kind: 'store.away', message: why });
    else if (before !== '') this.#tell({ kind: 'store.back', message: `${this.description} takes changes again` });
  }

  #tell(event: StoreEvent): void {
    for (const listener of this.#listeners) listener(event);
  }

  #failure(error: unknown): InitlessError {
    if (error instanceof InitlessError) return error;
    return new InitlessError(
      'STORE_FAILED',
      `${this.description} does not take the change: ${(error as Error).message}`,
      {
        subject: this.#keys[0],
        nextStep: 'services go on being served; see to Redis, and try again: the connection comes back by itself',
        cause: error,
      },
    );
  }

  #heldByAnother(): InitlessError {
    return new InitlessError('STORE_FAILED', `another control plane has the project in ${this.description}`, {
      subject: this.#keys[1],
      nextStep: 'stop the other one, or give this one another --project',
    });
  }

  async #readCopy(): Promise<Copy | undefined> {
    const text = await readFile(this.#options.copy, 'utf8').catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return undefined;
      throw error;
    });
    if (text === undefined) return undefined;
    try {
      const { identity, records } = JSON.parse(text) as { identity: Identity; records: [string, string][] };
      return { identity, records: new Map(records) };
    } catch (cause) {
      throw new InitlessError('STORE_DAMAGED', `the copy ${this.#options.copy} of what is in Redis cannot be read`, {
        subject: this.#options.copy,
        nextStep: 'remove it: what is in Redis is then taken as it is',
        cause,
      });
    }
  }

  /** The copy may be a change behind after a crash: Redis has what was acknowledged. */
  async #writeCopy(): Promise<void> {
    const { copy } = this.#options;
    await mkdir(dirname(copy), { recursive: true, mode: 0o700 });
    await writeFile(`${copy}.new`, JSON.stringify({ identity: this.#identity, records: [...this.#mirror] }), {
      mode: 0o600,
    });
    await rename(`${copy}.new`, copy);
  }
}

interface Copy {
  identity: Identity;
  records: Map<string, string>;
}

/** Whether a state is an earlier one of the same store. */
function isBehind(there: Identity, known: Identity): boolean {
  return there.id === known.id && there.changes < known.changes;
}

function parse(meta: string): Identity | undefined {
  return meta === '' ? undefined : (JSON.parse(meta) as Identity);
}
