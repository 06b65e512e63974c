import type { HostRecord, ServiceRecord } from '../core/model.js';
import { decodeHistory, decodeHost, decodeService, encodeHistory, encodeHost, encodeService } from './codec.js';
import type { Store, Stored } from './store.js';

/** A store that forgets when its process ends, for tests. Its records pass through their form on disk all the same. */
export class MemoryStore implements Store {
  readonly description = 'memory';
  readonly #services = new Map<string, string>();
  readonly #hosts = new Map<string, string>();
  readonly #histories = new Map<string, string>();

  async load(): Promise<Stored> {
    return {
      services: [...this.#services.values()].map(decodeService),
      hosts: [...this.#hosts.values()].map(decodeHost),
      histories: new Map([...this.#histories].map(([service, text]) => [service, decodeHistory(text)])),
    };
  }

  async putService(record: ServiceRecord): Promise<void> {
    this.#services.set(record.name, encodeService(record));
  }

  async deleteService(name: string): Promise<void> {
    this.#services.delete(name);
  }

  async putHost(record: HostRecord): Promise<void> {
    this.#hosts.set(record.name, encodeHost(record));
  }

  async deleteHost(name: string): Promise<void> {
    this.#hosts.delete(name);
  }

  async putHistories(histories: ReadonlyMap<string, unknown>): Promise<void> {
    for (const [service, history] of histories) {
      if (history === undefined) this.#histories.delete(service);
      else this.#histories.set(service, encodeHistory(history));
    }
  }

  async close(): Promise<void> {}
}
