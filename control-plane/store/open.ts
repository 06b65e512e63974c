import { join } from 'node:path';
import type { Settings } from '../config/settings.js';
import { EmbeddedStore } from './embedded.js';
import { RedisStore } from './redis.js';
import type { Store } from './store.js';

/** What says where the state is. */
export interface StorePlace {
  settings: Pick<Settings, 'redisHost' | 'redisPort'>;
  stateDir: string;
  project: string;
  /** Folder of the build contexts: it is empty unless services were stored before. */
  contexts: string;
}

/**
 * Opens the state: in Redis where `redis_host` is set, else on disk. Redis is waited for until `signal` aborts. Errors: those of
 * the stores.
 */
export async function openStore(
  { settings, stateDir, project, contexts }: StorePlace,
  onWaiting: (why: string) => void,
  signal?: AbortSignal,
): Promise<Store> {
  if (settings.redisHost === '') return EmbeddedStore.open(join(stateDir, 'store'), contexts);
  const { redisHost: host, redisPort: port } = settings;
  return RedisStore.open({ host, port, project, copy: join(stateDir, 'redis.json') }, onWaiting, signal);
}
