import { beforeAll, describe, expect, it } from 'vitest';
import { copyOf, deploy } from './deploy.js';
import { exactly, isFrozen, onTheHost } from './host.js';
import {
  asJson,
  events,
  getJson,
  type InstanceRow,
  initless,
  inspect,
  instances,
  mustRun,
  onHost,
  request,
  sleepService,
  until,
  wokenBy,
} from './support.js';

interface State {
  token: string;
  pid: number;
  requests: number;
  notes: string[];
}

/** One request at a time for each instance, and instances that stay for a minute. */
const MANY = { name: 'many', url: 'http://localhost:8221' };
/** An instance that goes after three idle seconds. */
const BRIEF = { name: 'brief', url: 'http://localhost:8222' };

beforeAll(async () => {
  await deploy(
    await copyOf('state', {
      service_name: 'many',
      host_port: 8221,
      max_concurrency: 1,
      max_pool_size: 10,
      idle_timeout: 1,
    }),
  );
  await deploy(await copyOf('state', { service_name: 'brief', host_port: 8222, idle_timeout: 0.05 }));
});

/** Parks an instance as soon as the gateway has given the lease of its last request back. */
async function park(id: string): Promise<void> {
  const stdout = await until(`the lease on ${id} to be given back`, async () => {
    const ran = await initless('instance', 'park', id);
    if (ran.code !== 0 && !ran.stderr.includes('in use')) throw new Error(ran.stderr);
    return ran.code === 0 && ran.stdout;
  });
  expect(stdout).toBe(`${id} is parked\n`);
}

describe('ten restores of one checkpoint at once', () => {
  it('answer each with its own state', { timeout: 120_000 }, async () => {
    await sleepService(MANY.name);
    const notes = Array.from({ length: 10 }, (_, index) => `note ${index}`);
    const answers = await Promise.all(
      notes.map((note) => getJson<State>(`${MANY.url}/slow?ms=8000&note=${encodeURIComponent(note)}`)),
    );
    const [first] = answers;
    expect(answers).toEqual(notes.map((note) => ({ token: first?.token, pid: 1, requests: 1, notes: [note] })));
    const made = await instances(MANY.name);
    expect(made).toHaveLength(10);
    expect(made.filter(({ origin }) => origin !== 'ORIGIN_RESTORED')).toEqual([]);
    expect(new Set(made.map(({ address }) => address)).size).toBe(10);
    await sleepService(MANY.name);
  });
});

describe('a crowd of requests to a sleeping service', () => {
  it('wakes as many instances as it needs, and no request fails', { timeout: 240_000 }, async () => {
    await deploy(await copyOf('go', { service_name: 'crowd', host_port: 8224, max_concurrency: 100, idle_timeout: 1 }));
    await sleepService('crowd');
    const answers = await Promise.all(Array.from({ length: 200 }, () => request('http://localhost:8224/healthz')));
    expect(answers.filter(({ status, body }) => status !== 200 || body !== 'ok')).toEqual([]);
    const made = (await events('crowd')).filter(({ kind }) => kind === 'instance.running');
    expect(made.length).toBeLessThanOrEqual(2);
    expect(made.filter(({ origin }) => origin !== 'ORIGIN_RESTORED')).toEqual([]);
  });
});

describe('service wake', () => {
  it('restores an instance without a request, and the next request finds it', async () => {
    await sleepService(MANY.name);
    const woken = await asJson<InstanceRow>('service', 'wake', MANY.name);
    expect(woken).toMatchObject({ state: 'INSTANCE_STATE_RUNNING', origin: 'ORIGIN_RESTORED' });
    expect(await getJson<State>(MANY.url)).toMatchObject({ requests: 1 });
    expect((await instances(MANY.name)).map(({ id }) => id)).toEqual([woken.id]);
  });
});

describe('a parked instance', () => {
  it('cannot be made of one that answers a request', async () => {
    await sleepService(MANY.name);
    const slow = getJson<State>(`${MANY.url}/slow?ms=5000`);
    const instance = await until('the instance to run', async () =>
      (await instances(MANY.name)).find(({ state }) => state === 'INSTANCE_STATE_RUNNING'),
    );
    const ran = await initless('instance', 'park', instance.id);
    expect(ran.code).toBe(1);
    expect(ran.stderr).toContain(`instance ${instance.id} is in use: 1 lease(s) are held on it`);
    expect(await slow).toMatchObject({ requests: 1 });
  });

  it('is frozen, silent, and answers the next request through the gateway with the state it had', async () => {
    const { answer: before, instance } = await wokenBy(MANY.name, () => getJson<State>(`${MANY.url}/?note=a`));
    await park(instance.id);
    const [listed] = await asJson<InstanceRow[]>('instance', 'ls', '--service', MANY.name);
    expect(listed).toMatchObject({ id: instance.id, state: 'INSTANCE_STATE_PARKED', origin: 'ORIGIN_RESTORED' });
    expect(await isFrozen(instance.id)).toBe(true);
    await expect(request(`http://${instance.address}/healthz`, { timeoutMs: 500 })).rejects.toThrow('no answer');

    const after = await getJson<State>(`${MANY.url}/?note=b`);
    expect(after).toEqual({ ...before, requests: 2, notes: ['a', 'b'] });
    expect(await isFrozen(instance.id)).toBe(false);
    await until(
      'the thaw to be reported',
      async () => (await instances(MANY.name))[0]?.state === 'INSTANCE_STATE_RUNNING',
    );
    expect((await instances(MANY.name)).map(({ id }) => id)).toEqual([instance.id]);
  });

  it('runs on after instance thaw', async () => {
    const { instance } = await wokenBy(MANY.name, () => getJson(MANY.url));
    const running = await initless('instance', 'thaw', instance.id);
    expect(running.code).toBe(1);
    expect(running.stderr).toContain(`instance ${instance.id} cannot be thawed: it is running, not parked`);
    await park(instance.id);
    expect(await mustRun('instance', 'thaw', instance.id)).toBe(`${instance.id} is running\n`);
    expect(await isFrozen(instance.id)).toBe(false);
    expect(await getJson<State>(MANY.url)).toMatchObject({ requests: 2 });
  });
});

describe('a service with pre_start_pool_size', () => {
  const POOL = { name: 'pool', url: 'http://localhost:8223' };
  const parked = async () =>
    (await instances(POOL.name)).filter(({ state }) => state === 'INSTANCE_STATE_PARKED').map(({ id }) => id);

  it('has that many parked, gives one to a request, and parks another in its place', async () => {
    await deploy(
      await copyOf('state', { service_name: POOL.name, host_port: 8223, pre_start_pool_size: 2, idle_timeout: 1 }),
    );
    const ahead = await until('two to be parked', async () => (await parked()).length === 2 && (await parked()));
    for (const id of ahead) expect(await isFrozen(id)).toBe(true);
    expect(await getJson<State>(POOL.url)).toMatchObject({ requests: 1 });
    const running = await until('one to be reported as running', async () =>
      (await instances(POOL.name)).find(({ state }) => state === 'INSTANCE_STATE_RUNNING'),
    );
    expect(ahead).toContain(running.id);
    expect(running.origin).toBe('ORIGIN_RESTORED');
    await until('two to be parked again', async () => (await parked()).length === 2);
    await mustRun('service', 'rm', POOL.name);
    await until('all of them to go', async () => (await instances()).every(({ service }) => service !== POOL.name));
  });
});

describe('an idle instance', () => {
  it('is removed after idle_timeout, with its root, its sandbox and its cgroups', async () => {
    for (const { service } of await instances()) await sleepService(service);
    const { instance } = await wokenBy(BRIEF.name, () => getJson(`${BRIEF.url}/?note=here`));
    const during = await onTheHost();
    expect(during).toMatchObject(exactly([instance.id]));
    expect(during.namespaces).toHaveLength(1);
    await onHost(`test -f /var/lib/docker/initless/instances/${instance.id}/root/notes/1`);

    await until('the idle instance to go', async () => (await instances(BRIEF.name)).length === 0, 15_000);
    expect(await onTheHost()).toEqual({ ...exactly([]), namespaces: [] });
    expect(await onHost(`test -d /proc/${instance.pid} && echo there || echo gone`)).toBe('gone\n');
    const last = (await events(BRIEF.name)).filter((event) => event.instance === instance.id).at(-1);
    expect(last).toMatchObject({ kind: 'instance.gone', goneReason: 'GONE_REASON_IDLE', origin: 'ORIGIN_RESTORED' });
  });

  it('leaves its log: what it printed on each output', async () => {
    const { instance } = await wokenBy(BRIEF.name, () => getJson(`${BRIEF.url}/?note=remember`));
    const lines = async (...more: string[]) => {
      const ran = await initless('service', 'logs', BRIEF.name, '--instance', instance.id, ...more);
      expect(ran.code, ran.stderr).toBe(0);
      return { stdout: ran.stdout, noted: ran.stderr.split('\n').filter((line) => line.startsWith('noted')) };
    };
    expect(await lines()).toEqual({ stdout: 'request 1\n', noted: ['noted: remember'] });
    await until('the idle instance to go', async () => (await instances(BRIEF.name)).length === 0, 15_000);
    expect(await lines()).toEqual({ stdout: 'request 1\n', noted: ['noted: remember'] });
    await wokenBy(BRIEF.name, () => getJson(BRIEF.url));
    expect(await lines('--tail', '1')).toEqual({ stdout: 'request 1\n', noted: ['noted: remember'] });
  });
});

describe('initless test', () => {
  it('prints the times of both kinds of start as JSON, and nothing else on stdout', async () => {
    await sleepService(BRIEF.name);
    const ran = await initless('test', BRIEF.name, '-n', '2', '-o', 'json');
    expect(ran.code, ran.stderr).toBe(0);
    const results = JSON.parse(ran.stdout) as { docker_run_ms: Times; restored_ms: Times; ratio: number }[];
    const times = {
      min: expect.any(Number),
      p50: expect.any(Number),
      p95: expect.any(Number),
      max: expect.any(Number),
    };
    expect(results).toEqual([
      { service: BRIEF.name, rounds: 2, docker_run_ms: times, restored_ms: times, ratio: expect.any(Number) },
    ]);
    for (const { docker_run_ms, restored_ms, ratio } of results) {
      for (const { min, p50, p95, max } of [docker_run_ms, restored_ms]) {
        expect([min, p50, p95, max]).toEqual([min, p50, p95, max].sort((a, b) => a - b));
        expect(min).toBeGreaterThan(0);
      }
      expect(ratio).toBeCloseTo(docker_run_ms.p50 / restored_ms.p50, 1);
    }
    expect(await instances(BRIEF.name)).toEqual([]);
  });

  it('is what initless -t is short for, and prints a table', async () => {
    const ran = await initless('-t', BRIEF.name, '-n', '1');
    expect(ran.code, ran.stderr).toBe(0);
    const [head, docker, restored] = ran.stdout.split('\n').map((line) => line.trim().split(/ {2,}/));
    expect(head).toEqual(['SERVICE', 'ROUNDS', 'START', 'MIN ms', 'P50 ms', 'P95 ms', 'MAX ms', 'RATIO']);
    expect(docker?.slice(0, 3)).toEqual([BRIEF.name, '1', 'docker run']);
    expect(restored?.slice(0, 3)).toEqual([BRIEF.name, '1', 'restored']);
    expect(restored?.at(-1)).toMatch(/^\d+\.\dx$/);
  });
});

interface Times {
  min: number;
  p50: number;
  p95: number;
  max: number;
}

/** Puts a program that always fails in CRIU's place while `work` is done. */
async function withBrokenCriu<T>(work: () => Promise<T>): Promise<T> {
  const criu = (await onHost('command -v criu')).trim();
  await onHost(`
    mv ${criu} ${criu}.whole
    printf '#!/bin/sh\\necho "criu is broken on purpose" >&2\\nexit 1\\n' > ${criu}
    chmod +x ${criu}
  `);
  try {
    return await work();
  } finally {
    await onHost(`mv ${criu}.whole ${criu}`);
  }
}

describe('while CRIU is broken', () => {
  it('a request is answered all the same, by a cold start that says why', async () => {
    const { answer: before } = await wokenBy(MANY.name, () => getJson<State>(MANY.url));
    await sleepService(MANY.name);
    const seen = Number((await events(MANY.name)).at(-1)?.sequence);
    await withBrokenCriu(async () => {
      const answer = await getJson<State>(MANY.url);
      expect(answer.requests).toBe(1);
      // A process that was started anew has made itself a token of its own.
      expect(answer.token).not.toBe(before.token);
      const instance = await until('the instance to be reported', async () =>
        (await instances(MANY.name)).find(({ state }) => state === 'INSTANCE_STATE_RUNNING'),
      );
      expect(instance).toMatchObject({ origin: 'ORIGIN_COLD', problem: { code: 'RESTORE_FAILED' } });
      expect(instance.problem?.message).toMatch(/CRIU could not restore/);
      const failed = (await events(MANY.name)).filter(
        ({ sequence, goneReason }) => Number(sequence) > seen && goneReason === 'GONE_REASON_RESTORE_FAILED',
      );
      // It was tried twice, each time in a sandbox of its own.
      expect(new Set(failed.map(({ instance }) => instance)).size).toBe(2);
    });
    await sleepService(MANY.name);
    expect(await onTheHost()).toMatchObject(exactly([]));
  });

  it('initless test fails, and so does every test here that asks for a restored instance', async () => {
    await withBrokenCriu(async () => {
      const ran = await initless('test', BRIEF.name, '-n', '1', '-o', 'json');
      expect(ran.code).toBe(1);
      expect(ran.stderr).toMatch(/round 1.* was (started )?cold/);
      expect(JSON.parse(ran.stdout)).toEqual([]);
      await expect(wokenBy(BRIEF.name, () => getJson(BRIEF.url))).rejects.toThrow('was not restored: ORIGIN_COLD');
    });
  });

  it('nothing is lost: afterwards instances are restored again', async () => {
    for (const { name, url } of [MANY, BRIEF]) {
      expect((await wokenBy(name, () => getJson<State>(url))).answer.requests).toBe(1);
      expect((await inspect(name)).state).toBe('SERVICE_STATE_READY');
    }
  });
});

describe('a checkpoint with a file that was', () => {
  it.each([
    {
      what: 'altered',
      file: 'criu/pages-1.img',
      harm: (path: string) => `printf x >> ${path}`,
      says: /had \d+ bytes and has \d+/,
    },
    {
      what: 'altered to the same size',
      file: 'criu/pages-1.img',
      harm: (path: string) => `printf '\\377' | dd of=${path} bs=1 seek=4096 conv=notrunc status=none`,
      says: /had the digest sha256:/,
    },
    { what: 'deleted', file: 'criu/inventory.img', harm: (path: string) => `rm ${path}`, says: /is missing/ },
  ])(
    '$what is refused by its name, a cold start serves, and a new checkpoint makes it right',
    { timeout: 120_000 },
    async ({ file, harm, says }) => {
      await mustRun('checkpoint', 'create', MANY.name, '--wait');
      await sleepService(MANY.name);
      const [checkpoint] = await asJson<{ path: string }[]>('checkpoint', 'ls', '--service', MANY.name);
      await onHost(harm(`${checkpoint?.path}/${file}`));

      expect((await getJson<State>(MANY.url)).requests).toBe(1);
      const instance = await until('the instance to be reported', async () => (await instances(MANY.name))[0]);
      expect(instance).toMatchObject({ origin: 'ORIGIN_COLD', problem: { code: 'CHECKPOINT_DAMAGED' } });
      expect(instance.problem?.message).toContain(`${file} `);
      expect(instance.problem?.message).toMatch(says);

      const verified = await initless('checkpoint', 'inspect', MANY.name, '--verify');
      expect(verified.code).toBe(1);
      expect(verified.stdout + verified.stderr).toContain(`${file} `);
      expect(verified.stdout + verified.stderr).toMatch(/initless checkpoint create/);
      const service = await until('the service to be degraded', async () => {
        const found = await inspect(MANY.name);
        return found.state === 'SERVICE_STATE_DEGRADED' && found;
      });
      expect(service.problem?.code).toBe('CHECKPOINT_DAMAGED');

      await mustRun('checkpoint', 'create', MANY.name, '--wait');
      await wokenBy(MANY.name, () => getJson(MANY.url));
      expect((await inspect(MANY.name)).state).toBe('SERVICE_STATE_READY');
      expect((await initless('checkpoint', 'inspect', MANY.name, '--verify')).code).toBe(0);
    },
  );
});
