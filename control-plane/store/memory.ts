import type { HostRecord, ServiceRecord } from '../core/model.js';
import { addTo, type Change, changeOf } from './records.js';
import type { Store, Stored } from './store.js';

/** A store that forgets when its process ends, for tests. Its records pass through their form on disk all the same. */
export class MemoryStore implements Store {
  readonly description = 'memory';
  readonly lost = false;
  readonly #texts = new Map<string, string>();

  async load(): Promise<Stored> {
    const stored: Stored = { services: [], hosts: [], histories: new Map() };
    for (const [key, text] of this.#texts) addTo(stored, key, text);
    return stored;
  }

  putService = async (record: ServiceRecord) => this.#change(changeOf.putService(record));
  deleteService = async (name: string) => this.#change(changeOf.deleteService(name));
  putHost = async (record: HostRecord) => this.#change(changeOf.putHost(record));
  deleteHost = async (name: string) => this.#change(changeOf.deleteHost(name));
  putHistories = async (histories: ReadonlyMap<string, unknown>) => this.#change(...changeOf.putHistories(histories));

  #change(...changes: Change[]): void {
    for (const { key, text } of changes) {
      if (text === undefined) this.#texts.delete(key);
      else this.#texts.set(key, text);
    }
  }

  trouble(): string {
    return '';
  }

  watch(): void {}

  async close(): Promise<void> {}
}
