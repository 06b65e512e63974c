import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { extract } from 'tar-stream';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import type { AdminServiceImplementation } from '../../proto/gen/initless/v1/admin.js';
import { Service, ServiceState } from '../../proto/gen/initless/v1/types.js';
import { sleep } from '../../proto/rpc/deadline.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { cli, startCli } from './cli-harness.js';
import { type FakeAdmin, receiveApply, startFakeAdmin } from './fake-admin.js';

const FLASK = Service.fromPartial({
  config: { serviceName: 'flask', hostPort: 8001, servicePort: 8080 },
  state: ServiceState.SERVICE_STATE_READY,
  current: { id: '0123456789ab' },
  instances: { running: 1, parked: 2 },
  host: 'host1',
  hosts: [{ host: 'host1', serves: true }],
});
const BUILDING = Service.fromPartial({ ...FLASK, state: ServiceState.SERVICE_STATE_BUILDING });
const PROBLEM = {
  code: 'BUILD_FAILED',
  message: 'the Dockerfile of flask fails at its step 3',
  nextStep: 'correct the Dockerfile, then apply again',
  outputTail: ['E: Unable to locate package no-such-thing'],
};

let folder: string;
let admin: FakeAdmin;
const start = async (script: Partial<AdminServiceImplementation>) => {
  admin = await startFakeAdmin(script);
  return admin.address;
};

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'initless-cli-'));
  await writeFile(join(folder, 'Dockerfile'), 'FROM debian:trixie-slim\n');
  await writeFile(join(folder, 'config.yaml'), 'service_name: flask\nservice_port: 8080\nhost_port: 8001\n');
  await writeFile(join(folder, 'big.bin'), Buffer.alloc(700_000, 7));
});

afterEach(async () => {
  await rm(folder, { recursive: true, force: true });
  await admin?.stop();
});

/** A control plane that takes a service in, prints two lines and ends with `ended`. */
function building(ended: Service): Partial<AdminServiceImplementation> {
  return {
    async applyService(requests) {
      await receiveApply(requests);
      return { service: BUILDING, changed: true };
    },
    async *streamBuildOutput() {
      yield { piece: { $case: 'output', value: { stage: 'image', line: 'Step 1/2 : FROM debian' } } };
      yield { piece: { $case: 'output', value: { stage: 'dump', line: 'dumped 12 MiB' } } };
      yield { piece: { $case: 'ended', value: ended } };
    },
  };
}

describe('service apply', () => {
  test('streams the whole folder as a tar archive in messages below the limit', async () => {
    let received: Awaited<ReturnType<typeof receiveApply>> | undefined;
    const server = await start({
      async applyService(requests) {
        received = await receiveApply(requests);
        return { service: BUILDING, changed: true };
      },
    });
    const { code, stderr } = await cli(server, 'service', 'apply', folder);
    expect(code).toBe(0);
    expect(stderr).toContain("'initless service output flask' follows the work");
    const files = new Map<string, number>();
    for await (const entry of Readable.from([received?.archive ?? Buffer.alloc(0)]).pipe(extract())) {
      files.set(entry.header.name, entry.header.size ?? 0);
      entry.resume();
    }
    expect(received?.origin).toBe(folder);
    expect([...files.keys()].sort()).toEqual(['Dockerfile', 'big.bin', 'config.yaml']);
    expect(files.get('big.bin')).toBe(700_000);
  });

  test('with --folder sends only the name', async () => {
    let received: Awaited<ReturnType<typeof receiveApply>> | undefined;
    const server = await start({
      async applyService(requests) {
        received = await receiveApply(requests);
        return { service: FLASK, changed: false };
      },
    });
    const { code, stdout } = await cli(server, 'service', 'apply', '--folder', 'flask', '--wait');
    expect(received).toEqual({ folder: 'flask', origin: '', archive: Buffer.alloc(0) });
    expect(code).toBe(0);
    expect(stdout).toContain('flask is ready: http://localhost:8001/');
    expect(admin.calls).toEqual(['applyService']);
  });

  test('--wait shows stage and line, and ends with 0 when the service is ready', async () => {
    const { code, stdout, stderr } = await cli(await start(building(FLASK)), 'service', 'apply', folder, '--wait');
    expect(stderr).toContain('image    | Step 1/2 : FROM debian');
    expect(stderr).toContain('dump     | dumped 12 MiB');
    expect(stdout).toBe('flask is ready: http://localhost:8001/\n');
    expect(code).toBe(0);
  });

  test('--wait ends with 3 and the problem when the service cannot be checkpointed', async () => {
    const ended = Service.fromPartial({ ...FLASK, state: ServiceState.SERVICE_STATE_DEGRADED, problem: PROBLEM });
    const { code, stdout, stderr } = await cli(await start(building(ended)), 'service', 'apply', folder, '--wait');
    expect(code).toBe(3);
    expect(stderr).toContain('every start is a cold one');
    expect(stderr).toContain(PROBLEM.message);
    expect(stdout).toBe('');
  });

  test('--wait ends with 1, message, next step and last lines when it failed', async () => {
    const ended = Service.fromPartial({
      ...FLASK,
      state: ServiceState.SERVICE_STATE_FAILED,
      current: undefined,
      pending: { id: 'ffff', problem: PROBLEM },
    });
    const { code, stderr } = await cli(await start(building(ended)), 'service', 'apply', folder, '--wait');
    expect(code).toBe(1);
    expect(stderr).toContain(PROBLEM.message);
    expect(stderr).toContain('  | E: Unable to locate package no-such-thing');
    expect(stderr).toContain('next: correct the Dockerfile, then apply again');
  });

  test('a new revision that fails is a failure also while the earlier one serves', async () => {
    const ended = Service.fromPartial({ ...FLASK, pending: { id: 'ffff', problem: PROBLEM } });
    const { code, stderr } = await cli(await start(building(ended)), 'service', 'apply', folder, '--wait');
    expect(code).toBe(1);
    expect(stderr).toContain('revision 0123456789ab goes on serving');
  });

  test('Ctrl-C while waiting says that the work goes on and how to follow it, and ends with 130', async () => {
    const server = await start({
      ...building(FLASK),
      async *streamBuildOutput(_request, context) {
        yield { piece: { $case: 'output', value: { stage: 'image', line: 'a slow step' } } };
        await sleep(20_000, context.signal);
      },
    });
    const run = startCli(server, 'service', 'apply', folder, '--wait');
    await expect.poll(run.stderr).toContain('a slow step');
    run.interrupt();
    const { code, stderr } = await run.result;
    expect(code).toBe(130);
    expect(stderr).toContain("the work on flask goes on; 'initless service output flask' follows it");
  });

  test('a refusal of the control plane is shown with its faults and its next step', async () => {
    const server = await start({
      async applyService() {
        throw new InitlessError('BAD_CONFIG', 'config.yaml is not valid', {
          nextStep: 'correct it, then apply again',
          violations: [{ field: 'config.yaml:3: host_port', description: 'found "x", expected a port' }],
        });
      },
    });
    const { code, stderr } = await cli(server, 'service', 'apply', folder);
    expect(code).toBe(1);
    expect(stderr).toContain('initless: config.yaml is not valid');
    expect(stderr).toContain('  config.yaml:3: host_port: found "x", expected a port');
    expect(stderr).toContain('  next: correct it, then apply again');
  });

  test('a folder that is not there is said so before anything is sent', async () => {
    const { code, stderr } = await cli(await start({}), 'service', 'apply', join(folder, 'nope'));
    expect(code).toBe(1);
    expect(stderr).toContain(`there is no folder ${join(folder, 'nope')}`);
    expect(admin.calls).toEqual([]);
  });

  test('neither or both of folder and --folder is refused', async () => {
    const server = await start({});
    expect((await cli(server, 'service', 'apply')).code).toBe(1);
    expect((await cli(server, 'service', 'apply', folder, '--folder', 'flask')).code).toBe(1);
    expect(admin.calls).toEqual([]);
  });

  test('--wait gives up after --timeout and names what was pending', async () => {
    const server = await start({
      ...building(FLASK),
      async *streamBuildOutput(_request, context) {
        yield { piece: { $case: 'output', value: { stage: 'image', line: 'a step' } } };
        await sleep(20_000, context.signal);
      },
    });
    const { code, stderr } = await cli(server, '--timeout', '0.3', 'service', 'apply', folder, '--wait');
    expect(code).toBe(1);
    expect(stderr).toContain('pending was: the making of flask');
  });
});

describe('service ls and inspect', () => {
  const list = { listServices: async () => ({ services: [FLASK] }), getService: async () => ({ service: FLASK }) };

  test('ls prints one line per service, fit for grep', async () => {
    const { stdout } = await cli(await start(list), 'service', 'ls');
    const [head, row, ...rest] = stdout.trimEnd().split('\n');
    expect(head).toMatch(/^SERVICE +STATE +PORT /);
    expect(row?.split(/ {2,}/).slice(0, 7)).toEqual(['flask', 'ready', '8001', '0123456789ab', '1', '2', 'host1']);
    expect(rest).toEqual([]);
  });

  test('-o json is the JSON that grpcurl prints, as an array', async () => {
    const { stdout } = await cli(await start(list), 'service', 'ls', '-o', 'json');
    expect(JSON.parse(stdout)).toEqual([Service.toJSON(FLASK)]);
    expect(JSON.parse(stdout)[0].config.serviceName).toBe('flask');
  });

  test('-o yaml holds the same', async () => {
    const { stdout } = await cli(await start(list), 'service', 'ls', '-o', 'yaml');
    expect(parse(stdout)).toEqual([Service.toJSON(FLASK)]);
  });

  test('inspect shows state, revision and what a gateway says of the port', async () => {
    const taken = Service.fromPartial({
      ...FLASK,
      listeners: [{ gateway: 'g1', address: '127.0.0.1:8001', listening: false, error: 'taken by another program' }],
    });
    const { stdout } = await cli(
      await start({ getService: async () => ({ service: taken }) }),
      'service',
      'inspect',
      'flask',
    );
    expect(stdout).toMatch(/^state: +ready$/m);
    expect(stdout).toMatch(/does not listen on 127.0.0.1:8001: taken by another program/);
  });

  test.each([
    [{ parked: 2, auto: true, reason: 'its pauses last 30 to 31 min' }, 'auto: 2 parked; its pauses last 30 to 31 min'],
    [{ parked: 3, auto: false, reason: '' }, '3 parked'],
  ])('inspect shows what is to be parked, and why: %j', async (pool, text) => {
    const getService = async () => ({ service: Service.fromPartial({ ...FLASK, pool }) });
    const { stdout } = await cli(await start({ getService }), 'service', 'inspect', 'flask');
    expect(stdout).toMatch(new RegExp(`^pool: +${text}$`, 'm'));
  });

  test('a name nobody knows ends with 1 and what to do', async () => {
    const server = await start({
      async getService() {
        throw new InitlessError('NOT_FOUND', 'there is no service nope', {
          nextStep: "'initless service ls' lists them",
        });
      },
    });
    const { code, stdout, stderr } = await cli(server, 'service', 'inspect', 'nope', '-o', 'json');
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toBe("initless: there is no service nope\n  next: 'initless service ls' lists them\n");
  });
});

describe('service logs', () => {
  test('keeps stdout and stderr apart and says which instance speaks', async () => {
    const server = await start({
      async *readLogs({ tail, follow }) {
        expect({ tail, follow }).toEqual({ tail: 5, follow: false });
        yield { instance: 'flask-1', stream: 1, data: Buffer.from('hello\n') };
        yield { instance: 'flask-1', stream: 2, data: Buffer.from('oops\n') };
      },
    });
    const { code, stdout, stderr } = await cli(server, 'service', 'logs', 'flask', '--tail', '5');
    expect({ code, stdout, stderr }).toEqual({ code: 0, stdout: 'hello\n', stderr: '==> flask-1 <==\noops\n' });
  });

  test('-f goes on until Ctrl-C', async () => {
    const server = await start({
      async *readLogs(_request, context) {
        yield { instance: 'flask-1', stream: 1, data: Buffer.from('first\n') };
        await sleep(20_000, context.signal);
      },
    });
    const run = startCli(server, 'service', 'logs', '-f', 'flask');
    await expect.poll(run.stdout).toBe('first\n');
    run.interrupt();
    expect((await run.result).code).toBe(130);
  });
});

test('service rm and service wake say what they did', async () => {
  const server = await start({
    removeService: async () => ({}),
    wakeService: async () => ({ instance: { id: 'flask-1', origin: 1, address: '10.0.0.2:20000' } }),
  });
  expect((await cli(server, 'service', 'rm', 'flask')).stdout).toBe('flask is removed\n');
  expect((await cli(server, 'service', 'wake', 'flask')).stdout).toMatch(/^origin: +restored$/m);
});
