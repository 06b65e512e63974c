import { InitlessError } from '../../proto/rpc/errors.js';
import { Changes } from '../changes.js';
import type { ServiceRecord } from '../core/model.js';
import type { Store } from '../store/store.js';

/** All services. What it shows is in the store; changes are made one after the other. */
export class Registry {
  /** Told after every change. */
  readonly changes = new Changes();
  readonly #store: Store;
  readonly #records: Map<string, ServiceRecord>;
  /** The same as a list; what is worked out from it holds until a record changes. */
  #all: readonly ServiceRecord[] | undefined;
  #queue: Promise<unknown> = Promise.resolve();

  constructor(store: Store, records: readonly ServiceRecord[]) {
    this.#store = store;
    this.#records = new Map(records.map((record) => [record.name, record]));
  }

  /** All records by name, those of removed services too that some host still has to forget. */
  all(): readonly ServiceRecord[] {
    this.#all ??= [...this.#records.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
    return this.#all;
  }

  /** All services by name. */
  list(): ServiceRecord[] {
    return this.all().filter((record) => !record.removed);
  }

  /** One service; undefined when there is none of that name. */
  find(name: string): ServiceRecord | undefined {
    const record = this.#records.get(name);
    return record?.removed ? undefined : record;
  }

  /** One service. Errors: NOT_FOUND. */
  get(name: string): ServiceRecord {
    const record = this.find(name);
    if (record !== undefined) return record;
    throw new InitlessError('NOT_FOUND', `there is no service ${JSON.stringify(name)}`, {
      subject: name,
      nextStep: "'initless service ls' lists those that are there",
    });
  }

  /**
   * Changes a record, removed ones included; it is in the store when this resolves, and only then visible.
   *
   * @param change gives the new record, the old one for no change, or undefined to delete it. It may throw.
   * Errors: those of the store, and what `change` throws; nothing has changed then.
   */
  update(
    name: string,
    change: (record: ServiceRecord | undefined) => ServiceRecord | undefined,
  ): Promise<ServiceRecord | undefined> {
    const done = this.#queue.then(async () => {
      const before = this.#records.get(name);
      const after = change(before);
      if (after === before) return after;
      if (after === undefined) {
        await this.#store.deleteService(name);
        this.#records.delete(name);
      } else {
        await this.#store.putService(after);
        this.#records.set(name, after);
      }
      this.#all = undefined;
      this.changes.tell();
      return after;
    });
    this.#queue = done.catch(() => undefined);
    return done;
  }

  /** The same for a service that is there. Errors: NOT_FOUND too. */
  async change(name: string, change: (record: ServiceRecord) => ServiceRecord): Promise<ServiceRecord> {
    const record = await this.update(name, (existing) => {
      if (existing === undefined || existing.removed) this.get(name);
      return change(existing!);
    });
    return record!;
  }

  /** Waits for the changes that are under way. */
  async settle(): Promise<void> {
    await this.#queue;
  }
}
