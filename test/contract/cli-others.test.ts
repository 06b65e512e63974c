import { afterEach, describe, expect, test } from 'vitest';
import type { AdminServiceImplementation, DeepPartial } from '../../proto/gen/initless/v1/admin.js';
import {
  Checkpoint,
  type Event,
  Instance,
  InstanceState,
  Origin,
  Service,
  ServiceState,
} from '../../proto/gen/initless/v1/types.js';
import { sleep } from '../../proto/rpc/deadline.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { cli, startCli } from './cli-harness.js';
import { type FakeAdmin, startFakeAdmin } from './fake-admin.js';

let admin: FakeAdmin | undefined;
const start = async (script: Partial<AdminServiceImplementation>) => {
  admin = await startFakeAdmin(script);
  return admin.address;
};
afterEach(async () => {
  await admin?.stop();
  admin = undefined;
});

const service = (serviceName: string, state = ServiceState.SERVICE_STATE_READY) =>
  Service.fromPartial({ config: { serviceName, hostPort: 8001 }, state });

describe('initless test', () => {
  const times = { docker_run: [500, 700, 600], restored: [110, 90, 100] };
  const script = (origin = Origin.ORIGIN_RESTORED): Partial<AdminServiceImplementation> => ({
    listServices: async () => ({ services: [service('flask'), service('off', ServiceState.SERVICE_STATE_DISABLED)] }),
    async *testService({ serviceName, rounds }) {
      for (let round = 1; round <= rounds; round += 1) {
        const sample = { service: serviceName, round };
        yield {
          measurement: { ...sample, kind: 'docker_run', ms: times.docker_run[round - 1], origin: Origin.ORIGIN_COLD },
        };
        yield { measurement: { ...sample, kind: 'restored', ms: times.restored[round - 1], origin } };
      }
    },
  });

  test('-o json prints exactly the documented form and nothing else on stdout', async () => {
    const { code, stdout } = await cli(await start(script()), 'test', 'flask', '-n', '3', '-o', 'json');
    expect(code).toBe(0);
    expect(stdout).toBe(
      `${JSON.stringify([
        {
          service: 'flask',
          rounds: 3,
          docker_run_ms: { min: 500, p50: 600, p95: 690, max: 700 },
          restored_ms: { min: 90, p50: 100, p95: 109, max: 110 },
          ratio: 6,
        },
      ])}\n`,
    );
  });

  test('times every enabled service when none is named, and prints a table', async () => {
    const { code, stdout } = await cli(await start(script()), '-t', '-n', '3');
    expect(code).toBe(0);
    const lines = stdout.trimEnd().split('\n');
    expect(lines[1]).toMatch(/^flask +3 +docker run +500\.0 +600\.0 +690\.0 +700\.0 +-$/);
    expect(lines[2]).toMatch(/^flask +3 +restored +90\.0 +100\.0 +109\.0 +110\.0 +6\.0x$/);
    expect(lines).toHaveLength(3);
  });

  test('fails when a start that should have been restored was a cold one', async () => {
    const { code, stdout, stderr } = await cli(
      await start(script(Origin.ORIGIN_COLD)),
      'test',
      '-n',
      '2',
      '-o',
      'json',
    );
    expect(code).toBe(1);
    expect(stdout).toBe('[]\n');
    expect(stderr).toContain('flask: in round 1 the start that should have been restored was cold');
  });

  test('one service that fails does not keep the others from being timed', async () => {
    const good = script();
    const server = await start({
      ...good,
      async *testService(request, context) {
        if (request.serviceName === 'broken') throw new InitlessError('NO_CHECKPOINT', 'broken has no checkpoint');
        yield* good.testService!(request, context) as AsyncIterable<object>;
      },
    });
    const { code, stdout, stderr } = await cli(server, 'test', 'broken', 'flask', '-n', '1', '-o', 'json');
    expect(code).toBe(1);
    expect(stderr).toContain('initless: broken has no checkpoint');
    expect(JSON.parse(stdout).map((row: { service: string }) => row.service)).toEqual(['flask']);
  });

  test('with no service to time it says how to get one', async () => {
    const { code, stderr } = await cli(await start({ listServices: async () => ({ services: [] }) }), 'test');
    expect(code).toBe(1);
    expect(stderr).toContain("'initless service apply DIR --wait'");
  });
});

describe('events', () => {
  const event = (sequence: number): DeepPartial<Event> => ({
    sequence,
    at: new Date(0),
    kind: 'instance.running',
    service: 'flask',
    instance: `flask-${sequence}`,
    origin: Origin.ORIGIN_RESTORED,
    message: 'is healthy',
    stages: [{ stage: 'restore', ms: 45.2 }],
  });

  test('shows the last ones and ends', async () => {
    const server = await start({
      async *watchEvents({ last, endAfterLast, serviceName }) {
        expect({ last, endAfterLast, serviceName }).toEqual({ last: 2, endAfterLast: true, serviceName: 'flask' });
        yield { event: event(1) };
        yield { event: event(2) };
      },
    });
    const { code, stdout } = await cli(server, 'events', '--last', '2', '--service', 'flask');
    expect(code).toBe(0);
    expect(stdout.trimEnd().split('\n')).toHaveLength(2);
    expect(stdout).toMatch(/instance\.running +flask-2 +\(restored\) +is healthy +\[restore 45 ms\]/);
  });

  test('-f -o json gives one object per line until Ctrl-C', async () => {
    const server = await start({
      async *watchEvents(_request, context) {
        yield { event: event(1) };
        yield { event: event(2) };
        await sleep(20_000, context.signal);
      },
    });
    const run = startCli(server, 'events', '-f', '-o', 'json');
    await expect.poll(() => run.stdout().split('\n').length).toBe(3);
    run.interrupt();
    const { code, stdout } = await run.result;
    expect(code).toBe(130);
    expect(
      stdout
        .trimEnd()
        .split('\n')
        .map((line) => JSON.parse(line).instance),
    ).toEqual(['flask-1', 'flask-2']);
  });
});

test('instance ls shows state and origin of each, park and thaw what became of it', async () => {
  const instance = Instance.fromPartial({
    id: 'flask-1',
    service: 'flask',
    state: InstanceState.INSTANCE_STATE_PARKED,
    origin: Origin.ORIGIN_COLD,
  });
  const server = await start({
    listInstances: async () => ({ instances: [instance] }),
    parkInstance: async () => ({ instance }),
  });
  expect((await cli(server, 'instance', 'ls')).stdout).toMatch(/^flask-1 +flask +parked +cold /m);
  expect((await cli(server, 'instance', 'park', 'flask-1')).stdout).toBe('flask-1 is parked\n');
});

test('checkpoint inspect --verify of a damaged checkpoint ends with 1 and says why', async () => {
  const checkpoint = Checkpoint.fromPartial({
    service: 'flask',
    revision: 'abc',
    size: 3 * 1024 * 1024,
    files: [{ path: 'criu/pages-1.img', size: 1024, digest: 'sha256:00' }],
    quarantined: { code: 'CHECKPOINT_DAMAGED', message: 'criu/pages-1.img was altered', nextStep: 'make a new one' },
  });
  const server = await start({
    async getCheckpoint({ verify }) {
      expect(verify).toBe(true);
      return { checkpoint };
    },
  });
  const { code, stdout } = await cli(server, 'checkpoint', 'inspect', 'flask', '--verify');
  expect(code).toBe(1);
  expect(stdout).toMatch(/^state: +quarantined$/m);
  expect(stdout).toContain('criu/pages-1.img was altered');
  expect(stdout).toMatch(/^criu\/pages-1\.img +1\.0 KiB +sha256:00$/m);
});

test('checkpoint create --wait follows the work', async () => {
  const server = await start({
    createCheckpoint: async () => ({ service: service('flask') }),
    async *streamBuildOutput() {
      yield { piece: { $case: 'ended', value: service('flask') } };
    },
  });
  const { code, stdout } = await cli(server, 'checkpoint', 'create', 'flask', '--wait');
  expect({ code, stdout }).toEqual({ code: 0, stdout: 'flask is ready: http://localhost:8001/\n' });
});

describe('the control plane is away', () => {
  test('says where it was looked for and which command starts it', async () => {
    const { code, stdout, stderr } = await cli('127.0.0.1:1', 'service', 'ls');
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toContain('initless: the control plane is not running on 127.0.0.1:1');
    expect(stderr).toContain("start it with 'initless control-plane'");
  });

  test('a call that is not answered ends by --timeout', async () => {
    const server = await start({ listServices: (_request, context) => sleep(20_000, context.signal).then(() => ({})) });
    const startedAt = Date.now();
    const { code, stderr } = await cli(server, 'service', 'ls', '--timeout', '0.2');
    expect(code).toBe(1);
    expect(stderr).toContain('pending was: ListServices');
    expect(Date.now() - startedAt).toBeLessThan(5_000);
  });

  test('a stream that breaks off is an error, not an end', async () => {
    const server = await start({
      async *watchEvents(_request, context) {
        yield { event: { kind: 'service.applied', service: 'flask' } };
        await sleep(20_000, context.signal);
      },
    });
    const run = startCli(server, 'events', '-f');
    await expect.poll(run.stdout).toContain('service.applied');
    await admin?.stop();
    const { code, stderr } = await run.result;
    expect(code).toBe(1);
    expect(stderr).toContain(server);
  });
});

describe('the command line', () => {
  test('--help names every command and ends with 0', async () => {
    const { code, stdout } = await cli('127.0.0.1:1', '--help');
    expect(code).toBe(0);
    for (const name of [
      'service',
      'instance',
      'checkpoint',
      'host',
      'events',
      'test',
      'up',
      'down',
      'clean',
      'doctor',
    ]) {
      expect(stdout).toMatch(new RegExp(`^  ${name} `, 'm'));
    }
  });

  test('a command, option or value that does not exist ends with 2 and says what could be given', async () => {
    const wrong = [
      ['servce', 'ls'],
      ['service', 'ls', '--nope'],
      ['service', 'ls', '-o', 'xml'],
      ['test', '-n', '0'],
    ];
    for (const args of wrong) {
      const { code, stdout, stderr } = await cli('127.0.0.1:1', ...args);
      expect({ args, code, stdout }).toEqual({ args, code: 2, stdout: '' });
      expect(stderr).toMatch(/error: /);
    }
  });

  test('--version prints the version of package.json', async () => {
    const { code, stdout } = await cli('127.0.0.1:1', '--version');
    expect({ code, stdout }).toEqual({ code: 0, stdout: expect.stringMatching(/^\d+\.\d+\.\d+\n$/) });
  });

  test('a project that cannot be a name is refused', async () => {
    const { code, stderr } = await cli('127.0.0.1:1', '--project', '../etc', 'service', 'ls');
    expect(code).toBe(1);
    expect(stderr).toContain('cannot be the name of a project');
  });
});
