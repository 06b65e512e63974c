import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { appendFile, rm, writeFile } from 'node:fs/promises';
import http from 'node:http';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { apply, type Changes, change, copyOf, deploy, untilListening } from './deploy.js';
import {
  CODE_DIR,
  events,
  getJson,
  goneOf,
  initless,
  initlessWith,
  inspect,
  instances,
  mustRun,
  projectEnv,
  ROOT,
  request,
  services,
  sleepService,
  until,
  wokenBy,
} from './support.js';

/** A service that is right, so that its neighbours' faults can be seen not to harm it. */
const GOOD = { name: 'good', port: 8231, url: 'http://localhost:8231' };

beforeAll(async () => {
  await deploy(await copyOf('state', { service_name: GOOD.name, host_port: GOOD.port }));
});

/** A copy of the service "state" under another name. */
function stateAs(name: string, port: number, changes: Changes = {}): Promise<string> {
  return copyOf('state', { service_name: name, host_port: port, ...changes });
}

describe('service apply --wait of a service that cannot be made fails and says why:', () => {
  it.concurrent.each([
    {
      what: 'a Dockerfile that fails, with its last lines',
      name: 'broken',
      says: [
        /building broken:\S+ failed/,
        / {2}\| the recipe needs flour, and there is none/,
        /exit code: 7/,
        /next: correct the Dockerfile/,
      ],
    },
    {
      what: 'a process that ends before it is ready, with its exit code and its last lines',
      name: 'exits',
      says: [
        /exits ended with exit code 3 before it was ready/,
        / {2}\| reading the configuration\n {2}\| no database at db\.invalid/,
      ],
    },
    {
      what: 'a wrong answer to the health check, with what came back',
      name: 'unhealthy',
      says: [
        /health check GET \/healthz: wanted a 2xx status and \{"status":"up"\}/,
        /last came 200 \{"status": "starting"\}/,
        /health_check\.wanted/,
      ],
    },
    {
      what: 'a service that listens on 127.0.0.1 only',
      name: 'loopback',
      says: [/it listens on 127\.0\.0\.1:8080 only, which nothing outside/, /next: make it listen on 0\.0\.0\.0:8080/],
    },
    {
      what: 'a service that listens on another port, with that port',
      name: 'wrongport',
      says: [
        /nothing listens on port 8080 \(service_port\); it listens on 0\.0\.0\.0:9090/,
        /next: correct 'service_port'/,
      ],
    },
    {
      what: 'a message that never comes, by its text, with a hint at buffers',
      name: 'mute',
      says: [/mute did not print 'ready' \(msg_checkpoint\) within 5 s/, / {2}\| listening/, /PYTHONUNBUFFERED=1/],
    },
  ])('$what', { timeout: 120_000 }, async ({ name, says }) => {
    const ran = await apply(await copyOf(name, name === 'broken' ? {} : { start_timeout: 5 }));
    expect(ran.code).toBe(1);
    for (const text of says) expect(ran.stderr).toMatch(text);
    const service = await inspect(name);
    expect(service.state).toBe('SERVICE_STATE_FAILED');
    expect(service.current).toBeUndefined();
  });

  it('a base image that is neither there nor to be pulled, by its name', async () => {
    const folder = await stateAs('nobase', 8232);
    await writeFile(path.join(folder, 'Dockerfile'), 'FROM registry.invalid/there-is-none:1\nCOPY app.py /\n');
    const ran = await apply(folder);
    expect(ran.code).toBe(1);
    expect(ran.stderr).toMatch(
      /a base image is neither on the host nor to be pulled: registry\.invalid\/there-is-none:1/,
    );
    expect(ran.stderr).toMatch(/next: use an image that the host has/);
  });

  it('an answer of the gateway says why too, with 503 and Retry-After', async () => {
    const { status, headers, body } = await request('http://localhost:8111/');
    expect(status).toBe(503);
    expect(Number(headers['retry-after'])).toBeGreaterThan(0);
    expect(body.trimEnd().split('\n')).toHaveLength(1);
    const { error, request_id } = JSON.parse(body) as { error: { code: string; message: string }; request_id: string };
    expect(error).toMatchObject({ code: 'EXITED_EARLY', message: expect.stringContaining('exit code 3') });
    expect(request_id).toBe(headers['x-request-id']);
  });
});

describe('a service that CRIU cannot dump', () => {
  it('is degraded, with the reason of CRIU itself, and served by cold starts', async () => {
    const ran = await apply(await copyOf('uncheckpointable'));
    expect(ran.code).toBe(3);
    expect(ran.stderr).toMatch(/uncheckpointable serves on .*:8116\/, but every start is a cold one/);
    expect(ran.stderr).toMatch(/CRIU cannot checkpoint the process: Error \(criu\/\S+\): .*\/jobs/);
    const service = await inspect('uncheckpointable');
    expect(service).toMatchObject({ state: 'SERVICE_STATE_DEGRADED', problem: { code: 'DUMP_FAILED' } });
    await untilListening('uncheckpointable');
    expect(await request('http://localhost:8116/healthz')).toMatchObject({ status: 200, body: 'ok' });
    const instance = await until('the instance to be reported', async () => (await instances('uncheckpointable'))[0]);
    expect(instance).toMatchObject({ origin: 'ORIGIN_COLD', problem: { code: 'DUMP_FAILED' } });
    const tested = await initless('test', 'uncheckpointable', '-n', '1');
    expect(tested.code).toBe(1);
    expect(tested.stderr).toMatch(/uncheckpointable has no checkpoint: CRIU cannot checkpoint/);
  });
});

describe('what is not right in a folder is refused before anything is changed:', () => {
  it('no Dockerfile', async () => {
    const folder = await stateAs(GOOD.name, GOOD.port);
    await rm(path.join(folder, 'Dockerfile'));
    const ran = await apply(folder);
    expect(ran.code).toBe(1);
    expect(ran.stderr).toMatch(/has no file Dockerfile at its top\n {2}next: add the Dockerfile/);
  });

  it('a key that is missing, unknown or wrong, each with file, line, key, what was found and what was expected', async () => {
    const folder = await stateAs(GOOD.name, GOOD.port, { host_port: undefined, service_port: 80800 });
    await appendFile(path.join(folder, 'config.yaml'), 'idle_timout: 3\n');
    const ran = await apply(folder);
    expect(ran.code).toBe(1);
    expect(ran.stderr).toContain('has 3 faults');
    expect(ran.stderr).toMatch(/good\/config\.yaml:\d+: service_port: found 80800, expected a port from 1 to 65535/);
    expect(ran.stderr).toMatch(/good\/config\.yaml:\d+: host_port: found nothing, expected a port from 1 to 65535/);
    expect(ran.stderr).toMatch(
      /good\/config\.yaml:\d+: idle_timout: found a key that is not known, expected "idle_timeout"/,
    );
  });

  it('a key that is there twice, with both lines', async () => {
    const folder = await stateAs(GOOD.name, GOOD.port);
    await appendFile(path.join(folder, 'config.yaml'), 'service_port: 8080\n');
    const ran = await apply(folder);
    expect(ran.code).toBe(1);
    expect(ran.stderr).toMatch(
      /config\.yaml:9: service_port: found the key a second time \(it is on line 3 too\), expected it once/,
    );
  });

  it('a start_cmd that is not a list', async () => {
    const ran = await apply(await stateAs(GOOD.name, GOOD.port, { start_cmd: 'python3 /app.py' }));
    expect(ran.code).toBe(1);
    expect(ran.stderr).toMatch(
      /start_cmd: found "python3 \/app\.py", expected a list with the program and its arguments/,
    );
  });

  it('the host_port of another service, by its name', async () => {
    const ran = await apply(await stateAs('rival', GOOD.port));
    expect(ran.code).toBe(1);
    expect(ran.stderr).toMatch(
      /rival\/config\.yaml:4: host_port: 8231 is the port of the service good\n {2}next: choose another/,
    );
  });

  it('a port that initless itself listens on', async () => {
    const ran = await apply(await stateAs('rival', 7170));
    expect(ran.code).toBe(1);
    expect(ran.stderr).toMatch(/host_port: found 7170, expected a port that initless does not listen on itself/);
  });

  it.each(['../rival', 'a/b', 'Rival', 'ri val', '', 'x'.repeat(64), 'ri..val', 'r\u0007'])(
    'the name %j',
    async (name) => {
      const folder = await copyOf('state', { host_port: 8233, service_name: name }, path.join(CODE_DIR, '../odd'));
      const ran = await apply(folder);
      expect(ran.code).toBe(1);
      expect(ran.stderr).toMatch(/config\.yaml:2: service_name: found .*, expected lower-case letters/);
    },
  );

  it.each(['..', '../services', 'a/b', '', '/etc'])('the folder name %j below code_dir', async (folder) => {
    const ran = await initless('service', 'apply', '--folder', folder);
    expect(ran.code).toBe(1);
    expect(ran.stderr).toMatch(/ is not the name of a folder\n {2}next: give the name of a folder in /);
  });

  it('and the service goes on as it was', async () => {
    expect((await wokenBy(GOOD.name, () => getJson(GOOD.url))).answer).toMatchObject({ requests: 1 });
    expect((await services()).map(({ config }) => config.serviceName)).not.toContain('rival');
  });
});

describe('a host_port that another program listens on', () => {
  it('is told, and taken as soon as that program has ended', async () => {
    const program = http.createServer((_request, response) => response.end('not ours')).listen(8234, '127.0.0.1');
    await once(program, 'listening');
    try {
      const ran = await apply(await stateAs('late', 8234));
      expect(ran.stdout).toMatch(/does not listen for it: .*8234.* is taken by another program/);
      expect((await inspect('late')).listeners?.[0]?.error).toMatch(/8234/);
    } finally {
      program.close();
    }
    await untilListening('late');
    await wokenBy('late', () => getJson('http://localhost:8234/'));
  });
});

describe('two applies of one service at once', () => {
  it('end in one revision that is served', async () => {
    const folder = await stateAs('twice', 8235);
    const both = await Promise.all([apply(folder), apply(folder)]);
    for (const { code, stderr } of both) {
      if (code !== 0) expect(stderr).toMatch(/twice is being taken in at this moment\n {2}next: try again in a moment/);
    }
    expect(both.map(({ code }) => code)).toContain(0);
    const service = await inspect('twice');
    expect(service.state).toBe('SERVICE_STATE_READY');
    expect(service.pending).toBeUndefined();
    const made = (await events('twice')).filter(({ kind }) => kind === 'checkpoint.sealed');
    expect(made).toHaveLength(1);
    await wokenBy('twice', () => getJson('http://localhost:8235/'));
  });
});

describe('Ctrl-C while service apply --wait waits', () => {
  it('ends the command only: it says how to follow the work, which goes on', async () => {
    const folder = await copyOf('mute', { service_name: 'followed', host_port: 8236, start_timeout: 6 });
    const launcher = path.join(ROOT, 'control-plane/cli/initless.mjs');
    const child = spawn(process.execPath, [launcher, 'service', 'apply', folder, '--wait'], { env: projectEnv() });
    let stderr = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    await until('the process to be started', async () => stderr.includes('starting python3'));
    child.kill('SIGINT');
    const [code] = (await once(child, 'exit')) as [number | null];
    expect(code).toBe(130);
    expect(stderr).toContain("'initless service output followed' follows");
    const output = await initless('service', 'output', 'followed');
    expect(output.code).toBe(1);
    expect(output.stderr).toContain("followed did not print 'ready' (msg_checkpoint) within 6 s");
  });
});

describe('a folder below code_dir', () => {
  const folder = path.join(CODE_DIR, 'watched');
  const url = 'http://localhost:8237/';

  it('becomes a service by itself', async () => {
    await copyOf('state', { service_name: 'watched', host_port: 8237 }, folder);
    await until('it to be taken in', async () =>
      (await services()).some(({ config }) => config.serviceName === 'watched'),
    );
    expect((await initless('service', 'output', 'watched')).code).toBe(0);
    await untilListening('watched');
    await wokenBy('watched', () => getJson(url));
  });

  it('keeps what it had when its config.yaml becomes invalid, and the fault is told', async () => {
    await change(folder, { host_port: 'eighty' });
    const fault = /watched\/config\.yaml:\d+: host_port: found "eighty", expected a port/;
    await until('the fault to be told', async () => fault.test((await initless('status')).stderr));
    expect(
      (await events('watched')).some(({ kind, message }) => kind === 'code_dir.refused' && fault.test(message)),
    ).toBe(true);
    await wokenBy('watched', () => getJson(url));
    await change(folder, { host_port: 8237 });
    await until('the fault to be gone', async () => !fault.test((await initless('status')).stderr));
  });

  it('cannot be removed as a service while it is there: it would come back', async () => {
    const ran = await initless('service', 'rm', 'watched');
    expect(ran.code).toBe(1);
    expect(ran.stderr).toMatch(
      /watched comes from .*\/watched, which would bring it back\n {2}next: remove or move the folder/,
    );
    await wokenBy('watched', () => getJson(url));
  });

  it('disables its service when it vanishes, and deletes nothing', async () => {
    const { current } = await inspect('watched');
    await rm(folder, { recursive: true });
    const service = await until('the service to be disabled', async () => {
      const found = await inspect('watched');
      return found.state === 'SERVICE_STATE_DISABLED' && found;
    });
    expect(service.problem?.message).toMatch(/the folder watched below code_dir is gone/);
    await until('the gateway to close its port', async () =>
      request(url).then(
        () => false,
        (error: NodeJS.ErrnoException) => error.code === 'ECONNREFUSED',
      ),
    );
    expect((await initless('checkpoint', 'inspect', 'watched', '--verify')).code).toBe(0);

    await copyOf('state', { service_name: 'watched', host_port: 8237 }, folder);
    await until('the service to be back', async () => (await inspect('watched')).state === 'SERVICE_STATE_READY');
    expect((await inspect('watched')).current?.createdAt).toBe(current?.createdAt);
    await untilListening('watched');
    await wokenBy('watched', () => getJson(url));
  });

  it('can be removed as a service once it is gone, with its checkpoint', async () => {
    await rm(folder, { recursive: true });
    await until(
      'the service to be disabled',
      async () => (await inspect('watched')).state === 'SERVICE_STATE_DISABLED',
    );
    await mustRun('service', 'rm', 'watched');
    await until('its checkpoint to go', async () =>
      (await mustRun('checkpoint', 'ls', '-o', 'json')).includes('"watched"') ? undefined : true,
    );
    expect((await services()).map(({ config }) => config.serviceName)).not.toContain('watched');
  });
});

describe('an instance whose process ends', () => {
  it('during a request gives its caller a clean error, and the next request another instance', async () => {
    const { instance } = await wokenBy(GOOD.name, () => getJson(GOOD.url));
    // Not idempotent: it must not be sent a second time.
    const { status, body } = await request(`${GOOD.url}/exit?code=3`, { method: 'DELETE' });
    expect({ status, body }).toMatchObject({ status: 502 });
    expect(JSON.parse(body)).toMatchObject({ error: { code: 'UPSTREAM_FAILED' } });
    expect((await goneOf(GOOD.name, instance.id)).goneReason).toBe('GONE_REASON_CRASHED');
    await wokenBy(GOOD.name, () => getJson(GOOD.url));
  });
});

describe('with no control plane', () => {
  it.each([['service', 'ls'], ['instance', 'ls'], ['test'], ['events']])(
    'initless %s %s says which command starts it',
    async (...args) => {
      const ran = await initlessWith({ env: projectEnv('initless-none', 9170) }, ...args.filter((each) => each));
      expect(ran.code).toBe(1);
      expect(ran.stdout).toBe('');
      expect(ran.stderr).toMatch(
        /the control plane is not running on localhost:9170\n {2}next: start it with 'initless control-plane'/,
      );
    },
  );
});

it('ends with nothing running that is not listed', async () => {
  for (const { config } of await services()) await sleepService(config.serviceName);
  expect(await instances()).toEqual([]);
});
