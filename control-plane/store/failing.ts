import { InitlessError } from '../../proto/rpc/errors.js';
import type { Store } from './store.js';

/** A store that loads as empty and takes no change, for tests of what is told and kept when a disk fails. */
export class FailingStore implements Store {
  readonly description = 'failing';
  readonly lost = false;

  async load() {
    return { services: [], hosts: [], histories: new Map() };
  }

  putService = fail;
  deleteService = fail;
  putHost = fail;
  deleteHost = fail;
  putHistories = fail;

  trouble(): string {
    return 'it takes no changes';
  }

  watch(): void {}

  async close(): Promise<void> {}
}

async function fail(): Promise<never> {
  throw new InitlessError('STORE_FAILED', 'the store takes no changes');
}
