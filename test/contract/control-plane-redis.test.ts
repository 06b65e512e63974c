import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { RedisStore } from '../../control-plane/store/redis.js';
import type { StoreEvent } from '../../control-plane/store/store.js';
import { type InitlessError, toInitlessError } from '../../proto/rpc/errors.js';
import { codeOf, config, eventually, Harness } from './control-plane-harness.js';
import { RedisServer } from './redis-server.js';

let server: RedisServer;
let root: string;
let projects = 0;
let project: string;
beforeAll(async () => {
  server = await RedisServer.start();
});
afterAll(() => server.stop());
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'initless-redis-store-'));
  project = `p${++projects}`;
});
afterEach(() => rm(root, { recursive: true, force: true }));

const HOST = { name: 'host1', leaseAddress: '10.0.0.1:7072', identity: 'i', cordoned: false };
const key = () => `initless:{${project}}`;
const refusal = async (work: Promise<unknown>): Promise<InitlessError> =>
  toInitlessError(await work.then(() => new Error('it was not refused')).catch((error: unknown) => error));

describe('the Redis store', () => {
  const opened: RedisStore[] = [];
  const open = async (copy = 'copy.json') => {
    const options = { host: '127.0.0.1', port: server.port, project, copy: join(root, copy) };
    const store = await RedisStore.open(options, () => {}, AbortSignal.timeout(25_000));
    opened.push(store);
    return store;
  };
  const eventsOf = (store: RedisStore) => {
    const events: StoreEvent[] = [];
    store.watch((event) => events.push(event));
    return events;
  };
  const hostsIn = async (store: RedisStore) => (await store.load()).hosts.map(({ name }) => name);
  const restored = (events: StoreEvent[]) =>
    eventually('it is filled again', () => events.some(({ kind }) => kind === 'store.restored') || undefined);
  afterEach(async () => {
    for (const store of opened.splice(0)) await store.close();
  });

  it('keeps everything of a project in one hash under a prefix, beside its lock', async () => {
    const store = await open();
    await store.putHost(HOST);
    const keys = await server.as((redis) => redis.keys(`*${project}*`));
    expect(keys.sort()).toEqual([key(), `${key()}:lock`]);
    expect(Object.keys(await server.as((redis) => redis.hgetall(key()))).sort()).toEqual(['host/host1', 'meta']);
    await store.close();
    expect(await server.as((redis) => redis.exists(`${key()}:lock`))).toBe(0);
  });

  it('is refused to a second control plane, and given to it once the first has gone', async () => {
    const first = await open();
    const stop = AbortSignal.timeout(2_000);
    const options = { host: '127.0.0.1', port: server.port, project, copy: join(root, 'other.json') };
    const said: string[] = [];
    await expect(RedisStore.open(options, (why) => said.push(why), stop)).rejects.toThrow(/timeout/i);
    expect(said).toEqual([expect.stringContaining('another control plane has the project')]);
    await first.putHost(HOST);
    await first.close();
    expect(await hostsIn(await open('other.json'))).toEqual(['host1']);
  });

  it('refuses changes while Redis is away, with what to do, and takes them again by itself', async () => {
    const store = await open();
    const events = eventsOf(store);
    await store.putHost(HOST);
    await server.kill();
    const error = await refusal(store.putHost({ ...HOST, name: 'host2' }));
    expect(error).toMatchObject({ code: 'STORE_FAILED', nextStep: expect.stringContaining('comes back by itself') });
    expect(store.trouble()).not.toBe('');
    expect(await hostsIn(store)).toEqual(['host1']);
    await server.start();
    await eventually('it takes changes again', () =>
      store.putHost({ ...HOST, name: 'host3' }).then(
        () => true,
        () => undefined,
      ),
    );
    expect(store.trouble()).toBe('');
    expect(events.map(({ kind }) => kind)).toEqual(['store.away', 'store.back']);
    await store.close();
    expect((await hostsIn(await open())).sort()).toEqual(['host1', 'host3']);
  });

  it('takes a write back that was given up and lands late all the same', async () => {
    const store = await open();
    await store.putHost(HOST);
    server.freeze();
    try {
      expect((await refusal(store.putHost({ ...HOST, name: 'late' }))).code).toBe('STORE_FAILED');
    } finally {
      server.thaw();
    }
    await eventually('it takes changes again', () =>
      store.putHost({ ...HOST, name: 'next' }).then(
        () => true,
        () => undefined,
      ),
    );
    const fields = async () => Object.keys(await server.as((redis) => redis.hgetall(key()))).sort();
    await eventually('only what was acknowledged is there', async () => {
      const now = await fields();
      return (now.length === 3 && !now.includes('host/late')) || undefined;
    });
    expect(await fields()).toEqual(['host/host1', 'host/next', 'meta']);
  });

  it('fills a Redis again that was emptied under it, before the next change or by itself', async () => {
    const store = await open();
    const events = eventsOf(store);
    await store.putHost(HOST);
    await server.as((redis) => redis.del(key()));
    await store.putHost({ ...HOST, name: 'host2' });
    expect(Object.keys(await server.as((redis) => redis.hgetall(key()))).sort()).toEqual([
      'host/host1',
      'host/host2',
      'meta',
    ]);
    events.length = 0;
    await server.as((redis) => redis.del(key()));
    await restored(events);
    expect(await server.as((redis) => redis.hexists(key(), 'host/host1'))).toBe(1);
  });

  it('fills a Redis again that came back with an older state', async () => {
    const store = await open();
    const events = eventsOf(store);
    await store.putHost(HOST);
    const old = await server.as((redis) => redis.hgetall(key()));
    await store.putHost({ ...HOST, name: 'host2' });
    await server.as(async (redis) => {
      await redis.del(key());
      await redis.hset(key(), old);
    });
    await restored(events);
    expect(await server.as((redis) => redis.hexists(key(), 'host/host2'))).toBe(1);
  });

  it('fills a Redis again that was emptied while no control plane ran, from the copy on its disk', async () => {
    const store = await open();
    await store.putHost(HOST);
    await store.close();
    await server.as((redis) => redis.del(key()));
    const again = await open();
    expect(again.lost).toBe(false);
    expect(await hostsIn(again)).toEqual(['host1']);
  });

  it('says that it is empty where there is no copy either', async () => {
    expect((await open()).lost).toBe(true);
  });

  it('writes nothing over what somebody else has changed', async () => {
    const store = await open();
    await store.putHost(HOST);
    const meta = JSON.stringify({ id: 'somebody', changes: 99, write: 'else' });
    await server.as((redis) => redis.hset(key(), 'meta', meta));
    const error = await refusal(store.putHost({ ...HOST, name: 'host2' }));
    expect(error).toMatchObject({ code: 'STORE_FAILED', message: expect.stringContaining('somebody else') });
    expect(await server.as((redis) => redis.hget(key(), 'meta'))).toBe(meta);
  });

  it('is refused when it holds another state than this control plane had', async () => {
    const store = await open();
    await store.putHost(HOST);
    await store.close();
    await server.as((redis) => redis.hset(key(), 'meta', JSON.stringify({ id: 'other', changes: 99, write: 'x' })));
    expect(await refusal(open())).toMatchObject({ code: 'STORE_DAMAGED' });
  });
});

describe('a control plane with its state in Redis', () => {
  let harness: Harness;
  let settings: string;
  beforeEach(async () => {
    settings = join(root, 'settings.yaml');
    await writeFile(settings, `redis_host: 127.0.0.1\nredis_port: ${server.port}\n`);
    harness = await Harness.start({ settingsPath: settings, project });
  });
  afterEach(() => harness.stop());

  const boot = () => harness.boot({ settingsPath: settings, project });

  it('has its services again after a restart, and says where they are', async () => {
    await harness.agent();
    await harness.folder('web', config('web', 8001));
    await harness.until('web', 'SERVICE_STATE_READY');
    await harness.halt();
    await boot();
    expect((await harness.service('web')).current).toBeDefined();
    expect((await harness.admin.getInfo({})).store).toContain(`redis: 127.0.0.1:${server.port}`);
  });

  it('goes on telling what is there while Redis is away, refuses changes, and warns', async () => {
    await harness.agent();
    const folder = await harness.folder('up', config('up', 8002), {}, join(root, 'elsewhere'));
    await harness.upload(folder);
    await harness.until('up', 'SERVICE_STATE_READY');
    await server.kill();
    expect(await codeOf(harness.admin.removeService({ serviceName: 'up' }))).toBe('STORE_FAILED');
    expect((await harness.service('up')).current).toBeDefined();
    expect((await harness.admin.getInfo({})).warnings.join()).toContain('does not take the change');
    await server.start();
    await eventually('it can be removed', () =>
      harness.admin.removeService({ serviceName: 'up' }).then(
        () => true,
        () => undefined,
      ),
    );
  });

  it('takes services back from what hosts serve when Redis and its own copy are empty', async () => {
    const agent = await harness.agent();
    const folder = await harness.folder(
      'up',
      config('up', 8002, 'idle_timeout: 7\nenv: {A: b}\n'),
      {},
      join(root, 'elsewhere'),
    );
    await harness.upload(folder);
    const before = await harness.until('up', 'SERVICE_STATE_READY');
    await harness.halt();
    await server.as((redis) => redis.del(key()));
    await rm(join(harness.stateDir, 'redis.json'));
    await boot();
    const back = harness.stranger('host1');
    back.assignments.set('up', agent.assignments.get('up')!);
    back.checkpoints.push(...agent.checkpoints);
    await back.connect();
    const after = await harness.until('up', 'SERVICE_STATE_READY');
    expect(after.current?.id).toBe(before.current?.id);
    expect(after.config).toEqual(before.config);
    expect(back.received('withdraw')).toEqual([]);
    expect(back.received('prepare')).toEqual([]);
  });
});
