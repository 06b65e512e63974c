import { beforeAll, describe, expect, it } from 'vitest';
import { change, copyOf, deploy } from '../e2e/deploy.js';
import { echo, Load } from '../e2e/load.js';
import { events, gatewayWakes, initless, instances, sleepService, until, wokenBy } from '../e2e/support.js';
import { killAgent, killPart, partPid, untilOnlyWhatIsListed, untilUp } from './system.js';

/** A service that one instance serves, warm, and one whose every request needs an instance of its own. */
const WARM = { name: 'warm', url: 'http://localhost:8275' };
const BURST = { name: 'burst', url: 'http://localhost:8276' };

/** Of BURST. */
let folder: string;

beforeAll(async () => {
  await untilUp();
  await deploy(await copyOf('state', { service_name: WARM.name, host_port: 8275, idle_timeout: 1 }));
  folder = await copyOf('state', {
    service_name: BURST.name,
    host_port: 8276,
    max_concurrency: 100,
    idle_timeout: 0.1,
  });
  await deploy(folder);
});

describe('a thousand requests at once to a sleeping service', () => {
  it('are all answered, by no more instances than they need', async () => {
    await sleepService(BURST.name);
    const before = (await gatewayWakes(BURST.name)).restored;
    const failures = await Promise.all(Array.from({ length: 1_000 }, (_, number) => echo(BURST.url, `${number}`)));
    expect(failures.filter((failure) => failure !== undefined)).toEqual([]);
    const started = (await gatewayWakes(BURST.name)).restored - before;
    expect(started).toBeGreaterThan(0);
    expect(started).toBeLessThanOrEqual(10);
    expect((await instances(BURST.name)).filter(({ origin }) => origin !== 'ORIGIN_RESTORED')).toEqual([]);
  });
});

describe('under load', () => {
  it('kill -9 of the control plane, again and again, fails no request and has nothing restored in vain', async () => {
    await wokenBy(WARM.name, () => echo(WARM.url, 'first'));
    const ids = (await instances(WARM.name)).map(({ id }) => id);
    const load = new Load(WARM.url, 4);
    for (let round = 0; round < 3; round++) {
      await load.progress();
      await killPart('control-plane');
      await load.progress();
      await untilUp();
    }
    const { failures, answered } = await load.stop();
    expect({ failures }).toEqual({ failures: [] });
    expect(answered).toBeGreaterThan(100);
    const after = await until('the instances to be listed', async () => {
      const found = await instances(WARM.name);
      return found.length >= ids.length && found;
    });
    expect(after.map(({ id }) => id)).toEqual(expect.arrayContaining(ids));
  });

  it('kill -9 of the agent fails no request to an instance that runs, which the next agent takes over', async () => {
    const { instance } = await wokenBy(WARM.name, () => echo(WARM.url, 'first'));
    const load = new Load(WARM.url, 4);
    for (let round = 0; round < 2; round++) {
      await load.progress();
      await killAgent();
      await load.progress();
      await untilUp();
    }
    const { failures } = await load.stop();
    expect({ failures }).toEqual({ failures: [] });
    const found = await until('the instance to be listed', async () =>
      (await instances(WARM.name)).find(({ id }) => id === instance.id),
    );
    expect(found.state).toBe('INSTANCE_STATE_RUNNING');
    await untilOnlyWhatIsListed();
  });

  it('kill -9 of the gateway fails no more than the requests in flight, and wakes nothing twice', async () => {
    const { instance } = await wokenBy(WARM.name, () => echo(WARM.url, 'first'));
    const load = new Load(WARM.url, 4);
    await load.progress();
    const { pid, restarts } = await partPid('gateway');
    process.kill(pid, 'SIGKILL');
    await load.progress();
    await untilUp();
    await load.progress();
    const { failures } = await load.stop();
    expect((await partPid('gateway')).restarts).toBe(restarts + 1);
    // Those in flight were cut off; whoever came before it listened again was refused at once.
    expect(failures.filter((failure) => !/ECONNRESET|ECONNREFUSED|socket hang up|^aborted$/.test(failure))).toEqual([]);
    // A client's next request may have been in the backlog of the listener that was dying, and be cut off too.
    expect(failures.filter((failure) => !/ECONNREFUSED/.test(failure)).length).toBeLessThanOrEqual(2 * 4);
    const running = (await instances(WARM.name)).filter(({ state }) => state === 'INSTANCE_STATE_RUNNING');
    expect(running.map(({ id }) => id)).toEqual([instance.id]);
  });
});

describe('kill -9 of the agent while instances are being removed', () => {
  it('leaves nothing of them', async () => {
    await sleepService(BURST.name);
    await Promise.all(Array.from({ length: 400 }, (_, number) => echo(BURST.url, `${number}`)));
    expect((await instances(BURST.name)).length).toBeGreaterThan(1);
    await change(folder, { is_enabled: false });
    const removing = initless('service', 'apply', folder);
    await until(
      'the first to be removed',
      async () => (await events(BURST.name)).some(({ kind }) => kind === 'instance.draining'),
      10_000,
      5,
    );
    await killAgent();
    await removing;
    await untilUp();
    await untilOnlyWhatIsListed();
    await change(folder, { is_enabled: true });
    await deploy(folder);
    expect(await echo(BURST.url, 'again')).toBeUndefined();
  });
});
