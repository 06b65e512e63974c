import { describe, expect, it } from 'vitest';
import { change, copyOf, deploy } from './deploy.js';
import { type EventRow, events, getJson, goneOf, inspect, instances, request, until, wokenBy } from './support.js';

interface State {
  token: string;
  requests: number;
  release?: string;
}

/** The instances of a service that are in a state. */
async function inState(service: string, state: 'PARKED' | 'RUNNING') {
  return (await instances(service)).filter((instance) => instance.state === `INSTANCE_STATE_${state}`);
}

/** Waits until a service has this many parked instances and none that runs. */
function untilParked(service: string, count: number) {
  return until(`${service} to have ${count} parked`, async () => {
    const parked = await inState(service, 'PARKED');
    return parked.length === count && parked;
  });
}

describe('a parked pool', () => {
  const NAME = 'pooled';
  const URL = 'http://localhost:8271';

  it('is filled by itself, meets a request with a parked instance, and replaces what was taken', async () => {
    await deploy(
      await copyOf('state', { service_name: NAME, host_port: 8271, pre_start_pool_size: 2, idle_timeout: 0.1 }),
    );
    const before = (await untilParked(NAME, 2)).map(({ id }) => id);
    expect(await getJson<State>(URL)).toMatchObject({ requests: 1 });
    const [running] = await until('the instance to be listed as running', async () => {
      const found = await inState(NAME, 'RUNNING');
      return found.length === 1 && found;
    });
    expect(before).toContain(running?.id);
    expect(running?.origin).toBe('ORIGIN_RESTORED');
    await untilParked(NAME, 2);
    // It may not be used again, so it goes once it is idle, and the pool stays as it is.
    expect((await goneOf(NAME, running?.id ?? '')).goneReason).toBe('GONE_REASON_IDLE');
    await untilParked(NAME, 2);
  });

  it('takes a larger and a smaller size, without a new revision', async () => {
    const { current } = await inspect(NAME);
    const folder = await copyOf('state', {
      service_name: NAME,
      host_port: 8271,
      pre_start_pool_size: 4,
      idle_timeout: 0.1,
    });
    await deploy(folder);
    await untilParked(NAME, 4);
    await change(folder, { pre_start_pool_size: 1 });
    await deploy(folder);
    await untilParked(NAME, 1);
    expect((await inspect(NAME)).current).toMatchObject({ id: current?.id, createdAt: current?.createdAt });
  });

  it('takes an idle instance back where the service allows reuse', async () => {
    const name = 'reused';
    const url = 'http://localhost:8272';
    await deploy(
      await copyOf('state', {
        service_name: name,
        host_port: 8272,
        pre_start_pool_size: 1,
        max_pool_size: 1,
        idle_timeout: 0.01,
        reuse: true,
      }),
    );
    await untilParked(name, 1);
    const first = await getJson<State>(url);
    await until('the instances to be parked again', async () => (await inState(name, 'RUNNING')).length === 0);
    const seen = new Set<number>();
    await until('an instance to serve for the second time', async () => {
      const again = await getJson<State>(url);
      seen.add(again.requests);
      await until('it to be parked again', async () => (await inState(name, 'RUNNING')).length === 0);
      return again.requests > first.requests;
    });
  });
});

describe('a new revision', () => {
  const NAME = 'rolled';
  const URL = 'http://localhost:8273';

  it('replaces the old one under load without a failed request, its first instance ready before the old ones go', async () => {
    const folder = await copyOf('state', {
      service_name: NAME,
      host_port: 8273,
      pre_start_pool_size: 1,
      env: { RELEASE: 'one' },
    });
    await deploy(folder);
    await untilParked(NAME, 1);
    expect(await getJson<State>(URL)).toMatchObject({ release: 'one' });

    const { current: old } = await inspect(NAME);
    const load = { over: false, releases: [] as string[], failures: [] as string[] };
    const client = async () => {
      while (!load.over) {
        const answer = await request(`${URL}/slow?ms=20`).catch((error: Error) => ({ status: 0, body: error.message }));
        if (answer.status === 200) load.releases.push((JSON.parse(answer.body) as State).release ?? '');
        else load.failures.push(`${answer.status} ${answer.body}`);
      }
    };
    const clients = Array.from({ length: 4 }, client);
    const held = request(`${URL}/slow?ms=9000`);
    await change(folder, { env: { RELEASE: 'two' } });
    await deploy(folder);
    const switched = await until('the new revision to answer', async () => {
      const from = load.releases.length;
      await new Promise((resolve) => setTimeout(resolve, 200));
      return load.releases.slice(from).every((release) => release === 'two') && load.releases.length > from;
    });
    expect(switched).toBe(true);
    load.over = true;
    await Promise.all(clients);
    expect(load.failures).toEqual([]);
    expect(new Set(load.releases)).toEqual(new Set(['one', 'two']));
    // A request that the old one had in hand is answered by it, however long it takes.
    expect(JSON.parse((await held).body)).toMatchObject({ release: 'one' });

    const { current } = await inspect(NAME);
    const isReplaced = ({ revision, goneReason }: EventRow) =>
      revision === old?.id && goneReason === 'GONE_REASON_SUPERSEDED';
    const told = await until('the old instances to be gone', async () => {
      const all = await events(NAME);
      return all.some(isReplaced) && all;
    });
    const ready = told.findIndex((event) => event.kind === 'instance.parked' && event.revision === current?.id);
    const gone = told.findIndex(isReplaced);
    const order = told.map(({ kind, instance, revision, goneReason }) =>
      [kind, instance, revision, goneReason].join(' '),
    );
    if (ready < 0 || ready > gone) throw new Error(`the old one went first:\n${order.join('\n')}`);
    await until('only the new revision to be there', async () =>
      (await instances(NAME)).every(({ revision }) => revision === current?.id),
    );
  });
});

describe('an instance that fails while it runs', () => {
  const NAME = 'failing';
  const URL = 'http://localhost:8274';

  it('is replaced with its exit code told, when it ends', async () => {
    await deploy(
      await copyOf('state', {
        service_name: NAME,
        host_port: 8274,
        idle_timeout: 1,
        hang_timeout: 2,
        health_check: { path: '/healthz', wanted: 'ok', timeout: 500 },
      }),
    );
    const { instance } = await wokenBy(NAME, () => getJson<State>(URL));
    await request(`${URL}/exit?code=37`, { method: 'POST' });
    expect(await goneOf(NAME, instance.id)).toMatchObject({
      goneReason: 'GONE_REASON_CRASHED',
      problem: { message: expect.stringContaining('exit code 37') },
    });
    expect(await getJson<State>(URL)).toMatchObject({ requests: 1 });
  });

  it('is replaced with the last health check told, when it hangs; its caller gets a clean error', async () => {
    const { instance } = await wokenBy(NAME, () => getJson<State>(URL));
    const { status, body } = await request(`${URL}/hang`, { method: 'POST' });
    expect(status).toBe(502);
    expect(JSON.parse(body)).toHaveProperty('error.code');
    expect(await goneOf(NAME, instance.id)).toMatchObject({
      goneReason: 'GONE_REASON_HEALTH_TIMEOUT',
      problem: { message: expect.stringMatching(/hangs: every health check GET \/healthz has failed for 2 s/) },
    });
    expect(await getJson<State>(URL)).toMatchObject({ requests: 1 });
  });
});
