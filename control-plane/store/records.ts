import type { HostRecord, ServiceRecord } from '../core/model.js';
import {
  DamagedRecord,
  decodeHistory,
  decodeHost,
  decodeService,
  encodeHistory,
  encodeHost,
  encodeService,
} from './codec.js';
import type { Stored } from './store.js';

/** A change of a store of texts: a key and its new text, or none. */
export interface Change {
  key: string;
  /** Undefined: the key is deleted. */
  text: string | undefined;
}

const SERVICE = 'service/';
const HOST = 'host/';
const HISTORY = 'history/';

/** What each change of a record is in a store of texts. */
export const changeOf = {
  putService: (record: ServiceRecord): Change => ({ key: SERVICE + record.name, text: encodeService(record) }),
  deleteService: (name: string): Change => ({ key: SERVICE + name, text: undefined }),
  putHost: (record: HostRecord): Change => ({ key: HOST + record.name, text: encodeHost(record) }),
  deleteHost: (name: string): Change => ({ key: HOST + name, text: undefined }),
  putHistories: (histories: ReadonlyMap<string, unknown>): Change[] =>
    [...histories].map(([service, history]) => ({
      key: HISTORY + service,
      text: history === undefined ? undefined : encodeHistory(history),
    })),
};

/** Why a record cannot be read, and which. */
export class UnreadableRecord extends Error {
  constructor(key: string, cause: unknown) {
    const reason = cause instanceof DamagedRecord ? cause.message : 'it is incomplete';
    super(`the record ${JSON.stringify(key)} cannot be read: ${reason}`, { cause });
  }
}

/** Adds what a text stands for. Errors: {@link UnreadableRecord}; a damaged history is left out, since it is learned again. */
export function addTo(stored: Stored, key: string, text: string): void {
  try {
    if (key.startsWith(SERVICE)) stored.services.push(decodeService(text));
    else if (key.startsWith(HOST)) stored.hosts.push(decodeHost(text));
    else if (key.startsWith(HISTORY)) stored.histories.set(key.slice(HISTORY.length), decodeHistory(text));
  } catch (error) {
    if (!key.startsWith(HISTORY)) throw new UnreadableRecord(key, error);
  }
}
