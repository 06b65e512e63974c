import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type Route, RoutingServiceDefinition, type WatchRoutesRequest } from '../../proto/gen/initless/v1/routing.js';
import { connect, createRpcClient } from '../../proto/rpc/client.js';
import { fromGrpcError, InitlessError } from '../../proto/rpc/errors.js';
import { PushStream } from '../../proto/rpc/push-stream.js';
import { codeOf, config, eventually, failure, Harness } from './control-plane-harness.js';

describe('agents', () => {
  let harness: Harness;
  beforeEach(async () => {
    harness = await Harness.start();
  });
  afterEach(() => harness.stop());

  it('are listed with what they report, and as lost when they are', async () => {
    const agent = await harness.agent();
    expect(agent.settings).toMatchObject({ reservedPortFirst: 20_000, reservedPortLast: 20_999, recycleWorkers: 4 });
    const list = async () => (await harness.admin.listHosts({})).hosts;
    await eventually('the report arrived', async () => (await list())[0]?.engine?.ready);
    expect((await list())[0]).toMatchObject({ name: 'host1', connected: true, cpus: 2 });
    await agent.kill();
    await eventually('it is lost', async () => (await list())[0]?.connected === false || undefined);
  });

  it('of one name are not connected twice while the first is alive, but a dead one is replaced at once', async () => {
    const first = await harness.agent();
    const second = harness.stranger('host1');
    expect(await codeOf(second.connect())).toBe('ALREADY_CONNECTED');
    expect(first.ended).toBeUndefined();
    await first.kill();
    await eventually('the second is taken in', async () =>
      second.connect().then(
        () => true,
        () => undefined,
      ),
    );
  });

  it('that say something else than hello first, or have no proper name, are refused', async () => {
    expect(await codeOf(harness.stranger('../x').connect())).toBe('BAD_NAME');
    const rude = harness.stranger('rude');
    const hello = rude.say.bind(rude);
    rude.say = (message) => (message.$case === 'hello' ? rude.report() : hello(message));
    expect(await codeOf(rude.connect())).toBe('BAD_REQUEST');
  });

  it('that are lost in the middle of a build are given it again when they are back', async () => {
    const agent = await harness.agent('host1', (fake) => {
      fake.script = (action) => (action.$case === 'prepare' ? new Promise(() => {}) : Promise.resolve(undefined));
    });
    await harness.folder('flask', config('flask', 8001));
    await harness.until('flask', 'SERVICE_STATE_BUILDING');
    await agent.kill();
    await harness.until('flask', 'SERVICE_STATE_PENDING');
    agent.script = async () => undefined;
    await agent.connect();
    await harness.until('flask', 'SERVICE_STATE_READY');
    expect(agent.received('prepare')).toHaveLength(2);
  });

  it('that come back with another lease address are reached there, without a build', async () => {
    const agent = await harness.agent();
    await harness.folder('flask', config('flask', 8001));
    await harness.until('flask', 'SERVICE_STATE_READY');
    await agent.kill();
    agent.assignments.clear();
    await eventually('it is back', async () =>
      agent.connect().then(
        () => true,
        () => undefined,
      ),
    );
    await eventually('it serves again', () => agent.assignments.has('flask') || undefined);
    expect(agent.received('prepare')).toHaveLength(1);
  });

  it('that lost a checkpoint make it again', async () => {
    const agent = await harness.agent();
    await harness.folder('flask', config('flask', 8001));
    await harness.until('flask', 'SERVICE_STATE_READY');
    await agent.kill();
    agent.checkpoints.length = 0;
    agent.assignments.clear();
    await eventually('it is back', async () =>
      agent.connect().then(
        () => true,
        () => undefined,
      ),
    );
    await eventually('it is made again', () => agent.received('prepare').length === 2 || undefined);
    await harness.until('flask', 'SERVICE_STATE_READY');
  });

  it('stop a build that a later apply supersedes', async () => {
    const agent = await harness.agent('host1', (fake) => {
      fake.script = (action, signal) =>
        action.$case !== 'prepare'
          ? Promise.resolve(undefined)
          : new Promise((_, reject) => {
              signal.addEventListener('abort', () => reject(new InitlessError('CANCELLED', 'stopped')));
            });
    });
    const folder = await harness.folder('flask', config('flask', 8001), {}, harness.root);
    await harness.upload(folder);
    await harness.until('flask', 'SERVICE_STATE_BUILDING');
    agent.script = async () => undefined;
    await harness.folder('flask', config('flask', 8001), { 'new.py': '2' }, harness.root);
    const { service } = await harness.upload(folder);
    const ready = await harness.until('flask', 'SERVICE_STATE_READY');
    expect(ready.current?.id).toBe(service?.pending?.id);
    expect(agent.cancelled).toHaveLength(1);
  });

  it('wake, park, thaw and remove instances', async () => {
    await harness.agent();
    await harness.folder('flask', config('flask', 8001));
    await harness.until('flask', 'SERVICE_STATE_READY');
    const { instance } = await harness.admin.wakeService({ serviceName: 'flask' });
    expect(instance).toMatchObject({ id: 'flask-1', host: 'host1' });
    const counts = async () => (await harness.service('flask')).instances;
    await eventually('it runs', async () => (await counts())?.running === 1 || undefined);
    await harness.admin.parkInstance({ instance: 'flask-1' });
    await eventually('it is parked', async () => (await counts())?.parked === 1 || undefined);
    await harness.admin.thawInstance({ instance: 'flask-1' });
    await harness.admin.removeInstance({ instance: 'flask-1' });
    await eventually('it is gone', async () => (await counts())?.running === 0 || undefined);
    expect(await codeOf(harness.admin.parkInstance({ instance: 'flask-1' }))).toBe('NOT_FOUND');
  });

  it('that are not there are named, with what starts them', async () => {
    const agent = await harness.agent();
    await harness.folder('flask', config('flask', 8001));
    await harness.until('flask', 'SERVICE_STATE_READY');
    await agent.kill();
    const down = await eventually('it is lost', async () => {
      const error = await failure(harness.admin.wakeService({ serviceName: 'flask' }));
      return error.nextStep.includes('initless host up host1') ? error : undefined;
    });
    expect(down.code).toBe('AGENT_DOWN');
  });

  it('show their checkpoints, and make new ones', async () => {
    const agent = await harness.agent();
    await harness.folder('flask', config('flask', 8001));
    await harness.until('flask', 'SERVICE_STATE_READY');
    expect((await harness.admin.listCheckpoints({})).checkpoints).toHaveLength(1);
    const { checkpoint } = await harness.admin.getCheckpoint({ serviceName: 'flask' });
    expect(checkpoint?.files).toHaveLength(1);
    await harness.admin.createCheckpoint({ serviceName: 'flask' });
    await eventually('it is made by force', () => agent.received('prepare').some((one) => one.force) || undefined);
    const error = await failure(harness.admin.getCheckpoint({ serviceName: 'flask', revision: 'abc' }));
    expect(error.code).toBe('NOT_FOUND');
  });

  it('with a quarantined checkpoint make a new one, once', async () => {
    const agent = await harness.agent();
    await harness.folder('flask', config('flask', 8001));
    await harness.until('flask', 'SERVICE_STATE_READY');
    await agent.kill();
    const quarantined = { code: 'CHECKPOINT_DAMAGED', message: 'altered', nextStep: '', outputTail: [] };
    agent.checkpoints[0]!.quarantined = quarantined;
    agent.script = async (action) => {
      if (action.$case === 'prepare') throw new InitlessError('DUMP_FAILED', 'no');
      return undefined;
    };
    await eventually('it is back', async () =>
      agent.connect().then(
        () => true,
        () => undefined,
      ),
    );
    const degraded = await harness.until('flask', 'SERVICE_STATE_DEGRADED');
    expect(degraded.problem?.code).toBe('CHECKPOINT_DAMAGED');
    await eventually('it was tried', () => agent.received('prepare').length === 2 || undefined);
    expect(agent.received('prepare')[1]?.force).toBe(true);
  });
});

describe('gateways', () => {
  let harness: Harness;
  let channel: ReturnType<typeof connect>;
  beforeEach(async () => {
    harness = await Harness.start();
    channel = connect(harness.address);
  });
  afterEach(async () => {
    channel.close();
    await harness.stop();
  });

  /** A gateway that notes the last table it was sent. */
  function gateway(id: string) {
    const outgoing = new PushStream<WatchRoutesRequest>('gateway');
    const seen: { routes: Route[] | undefined; error: unknown } = { routes: undefined, error: undefined };
    const client = createRpcClient(RoutingServiceDefinition, channel);
    const abort = new AbortController();
    const done = (async () => {
      for await (const { routes } of client.watchRoutes(outgoing, { signal: abort.signal })) seen.routes = routes;
    })().catch((error: unknown) => {
      seen.error = error;
    });
    const hello = () => outgoing.push({ message: { $case: 'hello', value: { gateway: id, table: '', version: 0 } } });
    const stop = async () => {
      abort.abort();
      await done;
    };
    return { outgoing, seen, hello, stop };
  }

  it('get the whole table at once, then after each change', async () => {
    const { seen, hello, outgoing, stop } = gateway('gw');
    hello();
    expect(await eventually('the first table', () => seen.routes)).toEqual([]);
    await harness.folder('flask', config('flask', 8001, 'max_concurrency: 7\n'));
    const waiting = await eventually('the service', () => (seen.routes?.length ? seen.routes[0] : undefined));
    expect(waiting).toMatchObject({ service: 'flask', hostPort: 8001, maxConcurrency: 7, hosts: [] });
    expect(waiting.problem).toBeDefined();
    const agent = await harness.agent();
    const served = await eventually('its host', () => (seen.routes?.[0]?.hosts.length ? seen.routes[0] : undefined));
    expect(served.hosts[0]).toMatchObject({ host: 'host1' });
    expect(served.problem).toBeUndefined();

    const listener = { gateway: '', service: 'flask', address: '127.0.0.1:8001', listening: true, error: '' };
    outgoing.push({ message: { $case: 'listeners', value: { listeners: [listener] } } });
    await eventually(
      'the listener is shown',
      async () => (await harness.service('flask')).listeners[0]?.gateway === 'gw' || undefined,
    );

    await agent.kill();
    await harness.until('flask', 'SERVICE_STATE_PENDING');
    expect(seen.routes?.[0]?.hosts).toHaveLength(1);
    await stop();
  });

  it('keep their hosts over a restart of the control plane, before any agent is back', async () => {
    const agent = await harness.agent();
    await harness.folder('flask', config('flask', 8001));
    await harness.until('flask', 'SERVICE_STATE_READY');
    await agent.kill();
    await harness.halt();
    await harness.boot();
    channel.close();
    channel = connect(harness.address);
    const { seen, hello, stop } = gateway('gw');
    hello();
    const routes = await eventually('the first table', () => seen.routes);
    expect(routes[0]?.hosts).toHaveLength(1);
    await stop();
  });

  it('that do not say hello first are refused', async () => {
    const { seen, outgoing, stop } = gateway('gw');
    outgoing.push({ message: { $case: 'listeners', value: { listeners: [] } } });
    const error = await eventually('the refusal', () => seen.error);
    expect(fromGrpcError(error, 'test').code).toBe('BAD_REQUEST');
    await stop();
  });
});
