import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { DrainHostResponse } from '../../proto/gen/initless/v1/admin.js';
import { HostPhase, InstanceState } from '../../proto/gen/initless/v1/types.js';
import { fromGrpcError } from '../../proto/rpc/errors.js';
import { codeOf, config, eventually, failure, Harness } from './control-plane-harness.js';
import type { FakeFleetAgent } from './fake-fleet-agent.js';

describe('a service on two hosts', () => {
  let harness: Harness;
  let host1: FakeFleetAgent;
  let host2: FakeFleetAgent;
  beforeEach(async () => {
    harness = await Harness.start();
    await writeFile(join(harness.root, 'settings.yaml'), 'host_timeout: 8\n');
    await harness.halt();
    await harness.boot({ settingsPath: join(harness.root, 'settings.yaml') });
    host1 = await harness.agent('host1');
    host2 = await harness.agent('host2');
  });
  afterEach(() => harness.stop());

  const share = (agent: FakeFleetAgent, service = 'web') => agent.assignments.get(service)?.pool;
  const both = () => [host1, host2];

  /** Waits until both hosts serve with shares that sum to the pool. */
  async function served(more = ''): Promise<void> {
    await harness.folder('web', config('web', 8001, more));
    await eventually('both have their shares', () => {
      const most = both().map((agent) => share(agent)?.maxRunning ?? 0);
      return (most.every((count) => count > 0) && most[0]! + most[1]! === 10) || undefined;
    });
  }

  it('is made on one and copied by the other from there', async () => {
    await served('pre_start_pool_size: 3\n');
    expect(
      both()
        .map((agent) => agent.received('prepare').length)
        .sort(),
    ).toEqual([0, 1]);
    const [maker, other] = host1.received('prepare').length === 1 ? [host1, host2] : [host2, host1];
    expect(other.received('copy')).toMatchObject([{ sources: [{ host: maker.name }], imageOnly: false }]);
    expect(
      both()
        .map((agent) => share(agent)?.parked)
        .sort(),
    ).toEqual([1, 2]);
    const { hosts } = await harness.service('web');
    expect(hosts.map(({ serves, maxRunning }) => [serves, maxRunning])).toEqual([
      [true, 5],
      [true, 5],
    ]);
  });

  it('gives no host a larger share before the other has taken its smaller one', async () => {
    await host2.kill();
    await harness.folder('web', config('web', 8001));
    await eventually('the one host serves', () => host1.assignments.has('web') || undefined);
    const before = host1.received('assign').length;
    let release = () => {};
    const held = new Promise<undefined>((resolve) => {
      release = () => resolve(undefined);
    });
    host1.script = (action) => (action.$case === 'assign' ? held : Promise.resolve(undefined));
    await eventually('host2 is back', () =>
      host2.connect().then(
        () => true,
        () => undefined,
      ),
    );
    await eventually('host1 is told its smaller share', () => host1.received('assign').length > before || undefined);
    await eventually('host2 serves', () => host2.assignments.has('web') || undefined);
    expect(share(host2)).toMatchObject({ maxRunning: 0, elsewhere: true });
    release();
    await eventually('host2 has its share', () => share(host2)?.maxRunning === 5 || undefined);
  });

  it('keeps its hosts while one is away, and is replaced once when it is lost', async () => {
    await served();
    await host2.kill();
    await eventually('host2 is away', async () => {
      const { hosts } = await harness.admin.listHosts({});
      return hosts.find(({ name }) => name === 'host2')?.phase === HostPhase.HOST_PHASE_AWAY || undefined;
    });
    expect(share(host1)?.maxRunning).toBe(5);
    const host3 = await harness.agent('host3');
    await eventually('host1 has what host2 had', async () => {
      const { hosts } = await harness.service('web');
      return !hosts.some(({ host }) => host === 'host2') || undefined;
    }).catch(() => undefined);
    await eventually('host2 is lost and host3 in its place', () => (share(host3)?.maxRunning ?? 0) > 0 || undefined);
    expect(host3.received('copy').length).toBe(1);
    expect([host1, host2, host3].flatMap((agent) => agent.received('prepare'))).toHaveLength(1);
  }, 30_000);

  it('is not placed on a cordoned host, which can be asked why', async () => {
    await harness.admin.cordonHost({ host: 'host2' });
    await harness.folder('web', config('web', 8001));
    await harness.until('web', 'SERVICE_STATE_READY');
    const { hosts } = await harness.admin.explainService({ serviceName: 'web' });
    expect(hosts.map(({ host, placed }) => [host, placed])).toEqual([
      ['host1', true],
      ['host2', false],
    ]);
    expect(hosts[1]?.reasons).toContain('it is cordoned');
    await harness.admin.uncordonHost({ host: 'host2' });
    await eventually('host2 serves too', () => host2.assignments.has('web') || undefined);
  });

  it('leaves a host that is drained once the other serves, and the drain says how far it is', async () => {
    await served();
    host1.instances.push({ ...host1.instance('web', 'web-1'), leases: 1 });
    host1.report();
    const said: DrainHostResponse[] = [];
    const drain = (async () => {
      for await (const message of harness.admin.drainHost({ host: 'host1', deadlineMs: 20_000 })) said.push(message);
    })();
    await eventually('host1 is withdrawn', () => !host1.assignments.has('web') || undefined);
    await eventually(
      'the drain waits for the lease',
      () => said.some(({ leases, services }) => leases === 1 && services.length === 0) || undefined,
    );
    expect(said.at(-1)?.done).toBe(false);
    expect(share(host2)?.maxRunning ?? 10).toBeGreaterThan(0);
    host1.instances.length = 0;
    host1.report();
    await drain;
    expect(said.at(-1)).toMatchObject({ done: true, leases: 0 });
    await eventually('all of the pool is on host2', () => (share(host2)?.maxRunning ?? 10) === 10 || undefined);
  });

  it('is named by a drain that comes to its deadline, with nothing cut', async () => {
    await served();
    host1.instances.push({ ...host1.instance('web', 'web-1'), state: InstanceState.INSTANCE_STATE_RUNNING, leases: 1 });
    host1.report();
    const drain = async () => {
      for await (const _ of harness.admin.drainHost({ host: 'host1', deadlineMs: 1_500 })) {
        // Only its end is of interest.
      }
    };
    const error = fromGrpcError(await drain().catch((thrown: unknown) => thrown), 'test');
    expect(error).toMatchObject({ code: 'DEADLINE', message: expect.stringContaining('1 leases held') });
    expect(host1.received('remove')).toEqual([]);
  });

  it('that can go nowhere else keeps its host from being drained, but for a forced one', async () => {
    await host2.kill();
    await harness.folder('web', config('web', 8001));
    await harness.until('web', 'SERVICE_STATE_READY');
    const drain = async (force: boolean) => {
      for await (const { done } of harness.admin.drainHost({ host: 'host1', deadlineMs: 5_000, force }))
        if (done) return;
    };
    expect(await codeOf(drain(false))).toBe('NOT_ALLOWED');
    expect(host1.assignments.has('web')).toBe(true);
    await drain(true);
    expect(host1.assignments.has('web')).toBe(false);
  });

  it('goes back to the revision before, at once and on both, and stays there', async () => {
    await served();
    const first = (await harness.service('web')).current!.id;
    await harness.folder('web', config('web', 8001, 'env: {A: b}\n'));
    const revisions = () => both().map((agent) => agent.assignments.get('web')?.revision);
    await eventually('both serve the second', () => revisions().every((id) => id !== first) || undefined);
    const second = (await harness.service('web')).current!.id;
    const made = both().flatMap((agent) => agent.received('prepare')).length;
    await harness.admin.rollbackService({ serviceName: 'web' });
    await eventually('both serve the first', () => revisions().every((id) => id === first) || undefined);
    expect(both().flatMap((agent) => agent.received('prepare'))).toHaveLength(made);
    await harness.halt();
    await harness.boot({ settingsPath: join(harness.root, 'settings.yaml') });
    expect(await harness.service('web')).toMatchObject({ current: { id: first }, pending: undefined });
    expect((await harness.service('web')).previous.map(({ id }) => id)).toEqual([second]);
    await harness.apply('web');
    await eventually('it was applied, and is to be the second again', async () => {
      const { current, pending } = await harness.service('web');
      return current?.id === second || pending?.id === second || undefined;
    });
  });

  it('cannot go back where nothing was before', async () => {
    await served();
    expect(await codeOf(harness.admin.rollbackService({ serviceName: 'web' }))).toBe('NOT_ALLOWED');
    expect(await codeOf(harness.admin.rollbackService({ serviceName: 'web', revision: 'abc' }))).toBe('NOT_FOUND');
  });

  it('is woken on the host that is named', async () => {
    await served();
    const { instance } = await harness.admin.wakeService({ serviceName: 'web', host: 'host2' });
    expect(instance?.host).toBe('host2');
    expect(await codeOf(harness.admin.wakeService({ serviceName: 'web', host: 'host9' }))).toBe('NOT_FOUND');
  });

  it('tells each agent where the others are', async () => {
    await eventually('host1 knows host2', () => host1.settings?.agents.length === 1 || undefined);
    expect(host2.settings?.agents).toHaveLength(1);
  });

  it('has nothing of a host that was forgotten; one that is connected is not', async () => {
    expect((await failure(harness.admin.removeHost({ host: 'host2' }))).code).toBe('NOT_ALLOWED');
    await host2.kill();
    await eventually('it may be forgotten', () =>
      harness.admin.removeHost({ host: 'host2' }).then(
        () => true,
        () => undefined,
      ),
    );
    expect((await harness.admin.listHosts({})).hosts.map(({ name }) => name)).toEqual(['host1']);
  });

  it('that says nothing any more is away, though its connection stands', async () => {
    host2.silent = true;
    await eventually('host2 is away', async () => {
      const { hosts } = await harness.admin.listHosts({});
      return hosts.find(({ name }) => name === 'host2')?.connected === false || undefined;
    });
  }, 20_000);
});
