import type { HostRecord, ServiceRecord } from '../core/model.js';

/** What a store holds. */
export interface Stored {
  services: ServiceRecord[];
  hosts: HostRecord[];
  /** How services are used, by service. What was damaged is left out: it is worth less than a start. */
  histories: Map<string, unknown>;
}

/** Something that happened to a store by itself. */
export interface StoreEvent {
  kind: 'store.away' | 'store.back' | 'store.restored';
  /** One line for people. */
  message: string;
}

/**
 * Where the control plane keeps what must survive it. A change is on disk when its promise resolves, and only then is it
 * acknowledged to whoever asked for it. Errors of every method: STORE_FAILED, DISK_FULL; as after a crash, the change may
 * then be there or not, but never in part, and the next call tries anew.
 */
export interface Store {
  /** Where it is, for people. */
  readonly description: string;
  /** It was found empty though nothing says that it is new: what was in it may still be known to hosts. */
  readonly lost: boolean;
  /** Why it takes no changes at present; empty: it does. */
  trouble(): string;
  /** Has what happens to it told. */
  watch(listener: (event: StoreEvent) => void): void;
  /** All that is there. */
  load(): Promise<Stored>;
  putService(record: ServiceRecord): Promise<void>;
  /** Without effect when it is not there. */
  deleteService(name: string): Promise<void>;
  putHost(record: HostRecord): Promise<void>;
  /** Without effect when it is not there. */
  deleteHost(name: string): Promise<void>;
  /** Puts histories, plain JSON, together; undefined deletes. */
  putHistories(histories: ReadonlyMap<string, unknown>): Promise<void>;
  /** No call may follow. */
  close(): Promise<void>;
}
