import { beforeAll, describe, expect, it } from 'vitest';
import { copyOf, deploy, untilListening } from '../e2e/deploy.js';
import {
  type Answer,
  asJson,
  CONTAINER,
  events,
  getJson,
  HOST,
  initless,
  inspect,
  instances,
  mustRun,
  onHost,
  request,
  run,
  sleepService,
  until,
  wokenBy,
} from '../e2e/support.js';
import { killAgent, partPid, status, untilOnlyWhatIsListed, untilUp } from './system.js';

interface State {
  token: string;
  requests: number;
}

/** A service whose instances stay while a test goes on, and one that needs an instance for each request. */
const STEADY = { name: 'steady', url: 'http://localhost:8261' };
const WIDE = { name: 'wide', url: 'http://localhost:8262' };

beforeAll(async () => {
  await deploy(await copyOf('state', { service_name: STEADY.name, host_port: 8261, idle_timeout: 3 }));
  await deploy(
    await copyOf('state', {
      service_name: WIDE.name,
      host_port: 8262,
      idle_timeout: 3,
      max_concurrency: 1,
      max_pool_size: 6,
    }),
  );
});

/** What came of a request that may fail, as long as it ends: an answer, or a connection that broke. */
async function ending(url: string): Promise<Answer | undefined> {
  return request(url).catch((error: NodeJS.ErrnoException) => {
    if (/no answer within/.test(error.message)) throw error;
    return undefined;
  });
}

describe('after kill -9 of the agent', () => {
  it('a running instance keeps serving, and is taken over by the next agent', async () => {
    const { answer, instance } = await wokenBy(STEADY.name, () => getJson<State>(STEADY.url));
    const slow = getJson<State>(`${STEADY.url}/slow?ms=4000`);
    await killAgent();
    expect(await slow).toMatchObject({ token: answer.token, requests: 2 });
    const next = await until('the service to answer', async () => getJson<State>(STEADY.url), 15_000);
    expect(next).toMatchObject({ token: answer.token, requests: 3 });
    await untilUp();
    const taken = await until('the instance to be listed again', async () => (await instances(STEADY.name))[0]);
    expect(taken).toMatchObject({ id: instance.id, origin: 'ORIGIN_RESTORED', state: 'INSTANCE_STATE_RUNNING' });
    await untilOnlyWhatIsListed();
  });

  it('a parked instance is taken over too, and answers', async () => {
    const { instance } = await wokenBy(STEADY.name, () => getJson<State>(STEADY.url));
    await until('the instance to be parked', async () => (await initless('instance', 'park', instance.id)).code === 0);
    await killAgent();
    await untilUp();
    const taken = await until('the instance to be listed again', async () => (await instances(STEADY.name))[0]);
    expect(taken).toMatchObject({ id: instance.id, state: 'INSTANCE_STATE_PARKED' });
    expect(await getJson<State>(STEADY.url)).toMatchObject({ requests: 2 });
    await untilOnlyWhatIsListed();
  });

  it('in the middle of restores, nothing of a half-done one is left, and requests are answered', {
    timeout: 180_000,
  }, async () => {
    for (const delayMs of [50, 150, 300]) {
      await sleepService(WIDE.name);
      const asked = Array.from({ length: 5 }, (_, index) => ending(`${WIDE.url}/slow?ms=500&note=${index}`));
      await new Promise((resolve) => setTimeout(resolve, delayMs));
      await killAgent();
      for (const answer of await Promise.all(asked)) {
        if (answer && answer.status !== 200) expect(JSON.parse(answer.body)).toHaveProperty('error.code');
      }
      await untilUp();
      await until('the service to answer', () => getJson(WIDE.url), 15_000);
      await untilOnlyWhatIsListed();
    }
    await sleepService(WIDE.name);
    await wokenBy(WIDE.name, () => getJson(WIDE.url));
  });
});

describe('when CRIU is killed in the middle of a restore', () => {
  it('the request is answered, and nothing half-restored is left', { timeout: 180_000 }, async () => {
    await untilUp();
    const criu = (await onHost('command -v criu')).trim();
    await onHost(`mv ${criu} ${criu}.whole`);
    try {
      for (const seconds of [0.02, 0.04, 0.06]) {
        await sleepService(WIDE.name);
        await onHost(`
          printf '#!/bin/sh\\nexec timeout --signal KILL ${seconds} ${criu}.whole "$@"\\n' > ${criu}
          chmod +x ${criu}
        `);
        expect(await getJson<State>(WIDE.url)).toMatchObject({ requests: 1 });
        await untilOnlyWhatIsListed();
      }
    } finally {
      await onHost(`mv ${criu}.whole ${criu}`);
    }
    // Three restores that failed are as many as it takes for a checkpoint not to be trusted any more.
    const made = await initless('checkpoint', 'create', WIDE.name, '--wait');
    if (made.code !== 0) expect(made.stderr).toContain('is being made at this moment');
    await until('the service to be ready', async () => (await inspect(WIDE.name)).state === 'SERVICE_STATE_READY');
    await wokenBy(WIDE.name, () => getJson(WIDE.url));
  });
});

describe('after kill -9 of the control plane', () => {
  it('requests are answered meanwhile, warm and asleep; it comes back and makes nothing anew', async () => {
    await untilUp();
    await sleepService(WIDE.name);
    const before = await inspect(STEADY.name);
    const checkpoints = await checkpointTimes();
    const { answer } = await wokenBy(STEADY.name, () => getJson<State>(STEADY.url));
    const { pid, restarts } = await partPid('control-plane');
    process.kill(pid, 'SIGKILL');
    expect(await getJson<State>(STEADY.url)).toMatchObject({ token: answer.token, requests: 2 });
    expect(await getJson<State>(WIDE.url)).toMatchObject({ requests: 1 });
    await untilUp();
    expect(await partPid('control-plane')).toMatchObject({ restarts: restarts + 1 });
    const after = await until('the service to be ready', async () => {
      const found = await inspect(STEADY.name);
      return found.state === 'SERVICE_STATE_READY' && found;
    });
    expect(after).toMatchObject({ config: before.config, current: before.current });
    expect(await checkpointTimes()).toEqual(checkpoints);
    // Its events begin anew with it.
    expect((await events('')).filter(({ kind }) => kind.startsWith('revision.'))).toEqual([]);
    await until('the instances to be listed', async () => (await instances(WIDE.name)).length === 1);
    expect((await instances()).filter(({ origin }) => origin !== 'ORIGIN_RESTORED')).toEqual([]);
  });
});

/** When each service's checkpoint was made. */
async function checkpointTimes(): Promise<Record<string, string>> {
  const found = await asJson<{ service: string; createdAt: string }[]>('checkpoint', 'ls');
  return Object.fromEntries(found.map(({ service, createdAt }) => [service, createdAt]));
}

describe('after kill -9 of the gateway', () => {
  it('it listens again within seconds and goes on with the instances that are there', async () => {
    const { answer, instance } = await wokenBy(STEADY.name, () => getJson<State>(STEADY.url));
    const { pid, restarts } = await partPid('gateway');
    process.kill(pid, 'SIGKILL');
    const next = await until('the service to answer', () => getJson<State>(STEADY.url), 15_000, 50);
    expect(next).toMatchObject({ token: answer.token, requests: 2 });
    await untilUp();
    expect(await partPid('gateway')).toMatchObject({ restarts: restarts + 1 });
    expect((await instances(STEADY.name)).map(({ id }) => id)).toEqual([instance.id]);
  });
});

describe('after kill -9 of the supervisor and all that it keeps running', () => {
  it('status says so, and initless up brings them back', async () => {
    const { supervisor, parts } = await status();
    for (const pid of [supervisor?.pid, ...parts.map((part) => part.pid)]) process.kill(pid ?? 0, 'SIGKILL');
    const down = await initless('status');
    expect(down.code).toBe(1);
    expect(down.stderr).toMatch(/initless up/);
    await mustRun('up');
    await untilUp();
    await untilListening(STEADY.name);
    await until('the service to answer', () => getJson(STEADY.url), 15_000);
    await untilOnlyWhatIsListed();
  });
});

describe('with its host stopped', () => {
  it('a service says so, and which command starts the host; that command does', { timeout: 180_000 }, async () => {
    expect((await run('docker', ['stop', CONTAINER])).code).toBe(0);
    await until(
      'the loss of the agent to be seen',
      async () => (await inspect(STEADY.name)).problem?.code === 'AGENT_DOWN',
    );
    const { status, body } = await request(STEADY.url);
    expect(status).toBe(503);
    expect(JSON.parse(body)).toMatchObject({
      error: { code: 'AGENT_DOWN', next_step: expect.stringContaining('initless host up') },
    });
    const woken = await initless('service', 'wake', STEADY.name);
    expect(woken.code).toBe(1);
    expect(woken.stderr).toContain(`initless host up ${HOST}`);

    expect(await mustRun('host', 'up', HOST)).toMatch(/\(started\)/);
    await untilUp();
    await until('the service to answer', () => getJson(STEADY.url), 30_000);
    expect((await instances(STEADY.name)).map(({ origin }) => origin)).toEqual(['ORIGIN_RESTORED']);
    await untilOnlyWhatIsListed();
  });
});

describe('after docker restart of the host', () => {
  it('its services answer, restored, and nothing of before is left', { timeout: 180_000 }, async () => {
    await getJson(STEADY.url);
    expect((await run('docker', ['restart', CONTAINER])).code).toBe(0);
    await untilUp();
    await until('the service to answer', () => getJson(STEADY.url), 30_000);
    await wokenBy(STEADY.name, () => getJson(STEADY.url));
    await untilOnlyWhatIsListed();
  });
});
