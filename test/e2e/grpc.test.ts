import { existsSync } from 'node:fs';
import path from 'node:path';
import { HealthDefinition } from 'nice-grpc-server-health';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type AdminServiceClient, AdminServiceDefinition } from '../../proto/gen/initless/v1/admin.js';
import { AgentServiceDefinition } from '../../proto/gen/initless/v1/agent.js';
import { ServiceState } from '../../proto/gen/initless/v1/types.js';
import { connect, createRpcClient } from '../../proto/rpc/client.js';
import { fromGrpcError } from '../../proto/rpc/errors.js';
import { copyOf, untilListening } from './deploy.js';
import { asJson, CODE_DIR, getJson, HOST, inspect, run, SERVER, until, wokenBy } from './support.js';

/** Where the tests' set-up puts grpcurl when the machine has none; undefined: there is none at all. */
const GRPCURL = ['/var/cache/initless/bin', ...(process.env.PATH ?? '').split(':')]
  .map((folder) => path.join(folder, 'grpcurl'))
  .find((file) => existsSync(file));
if (GRPCURL === undefined)
  console.warn('grpcurl is not here: its tests are skipped, those with a client of our own are not');

let agent = '';

beforeAll(async () => {
  const hosts = await asJson<{ name: string; host: { leaseAddress: string } }[]>('host', 'ls');
  agent = hosts.find(({ name }) => name === HOST)?.host.leaseAddress ?? '';
  await copyOf('user', { service_name: 'by-grpc', host_port: 8211 }, path.join(CODE_DIR, 'by-grpc'));
});

describe.skipIf(GRPCURL === undefined)('grpcurl, which knows no proto file,', () => {
  const grpcurl = async (address: string, ...args: string[]) => {
    const flags = args[0] === '-d' ? args.splice(0, 2) : [];
    return run(GRPCURL ?? '', ['-plaintext', '-format-error', ...flags, address, ...args]);
  };
  const ok = async (...args: [string, ...string[]]) => {
    const ran = await grpcurl(...args);
    expect(ran.code, ran.stderr).toBe(0);
    return ran.stdout;
  };

  it('lists what the control plane and the agent serve', async () => {
    expect((await ok(SERVER, 'list')).trim().split('\n').sort()).toEqual(
      expect.arrayContaining(['grpc.health.v1.Health', 'initless.v1.AdminService']),
    );
    expect((await ok(agent, 'list')).trim().split('\n').sort()).toEqual(
      expect.arrayContaining(['grpc.health.v1.Health', 'initless.v1.AgentService']),
    );
  });

  it('describes services and messages', async () => {
    const service = await ok(SERVER, 'describe', 'initless.v1.AdminService');
    for (const method of Object.values(AdminServiceDefinition.methods))
      expect(service).toContain(`rpc ${method.name} (`);
    expect(await ok(SERVER, 'describe', 'initless.v1.ServiceConfig')).toContain('string service_name = 1;');
    expect(await ok(agent, 'describe', 'initless.v1.AgentService')).toContain('rpc GetHost (');
  });

  it('lists hosts', async () => {
    const { hosts } = JSON.parse(await ok(SERVER, 'initless.v1.AdminService/ListHosts')) as { hosts: unknown[] };
    expect(hosts).toEqual([expect.objectContaining({ name: HOST, connected: true, leaseAddress: agent })]);
  });

  it('deploys a folder below code_dir, follows its making and calls it', { timeout: 300_000 }, async () => {
    const applied = JSON.parse(
      await ok(SERVER, '-d', '{"folder": "by-grpc"}', 'initless.v1.AdminService/ApplyService'),
    );
    expect(applied).toMatchObject({
      service: { folder: 'by-grpc', config: { serviceName: 'by-grpc', hostPort: 8211 } },
    });
    const name = '{"service_name": "by-grpc"}';
    expect(await ok(SERVER, '-d', name, 'initless.v1.AdminService/StreamBuildOutput')).toContain('"ended"');
    const { service } = JSON.parse(await ok(SERVER, '-d', name, 'initless.v1.AdminService/GetService'));
    expect(service).toMatchObject({ state: 'SERVICE_STATE_READY', host: HOST });
    await untilListening('by-grpc');
    const { answer } = await wokenBy('by-grpc', () => getJson('http://localhost:8211/'));
    expect(answer).toMatchObject({ uid: [4242, 4242, 4242] });
  });

  it('sees what is on a host by asking its agent', async () => {
    const { host, engine } = JSON.parse(await ok(agent, 'initless.v1.AgentService/GetHost'));
    expect({ host, ready: engine.ready }).toEqual({ host: HOST, ready: true });
  });

  it('is told of an error by status, message, next step and details', async () => {
    const ran = await grpcurl(SERVER, '-d', '{"folder": "../by-grpc"}', 'initless.v1.AdminService/ApplyService');
    expect(ran.code).toBe(64 + 3);
    const error = JSON.parse(ran.stderr) as { code: number; message: string; details: Record<string, unknown>[] };
    expect(error).toMatchObject({
      code: 3,
      message: expect.stringMatching(/^"\.\.\/by-grpc" is not the name of a folder\ngive the name of a folder in /),
    });
    expect(error.details).toContainEqual(
      expect.objectContaining({
        '@type': expect.stringContaining('google.rpc.ErrorInfo'),
        reason: 'BAD_NAME',
        domain: 'initless',
      }),
    );
  });

  it('checks health, of the server and of a service', async () => {
    for (const [address, service] of [
      [SERVER, 'initless.v1.AdminService'],
      [agent, 'initless.v1.AgentService'],
    ] as const) {
      for (const name of ['', service]) {
        const answer = await ok(address, '-d', JSON.stringify({ service: name }), 'grpc.health.v1.Health/Check');
        expect(JSON.parse(answer)).toEqual({ status: 'SERVING' });
      }
    }
  });
});

describe('a client of our own', () => {
  const channels: ReturnType<typeof connect>[] = [];
  const channelTo = (address: string) => {
    const channel = connect(address);
    channels.push(channel);
    return channel;
  };
  afterAll(() => {
    for (const channel of channels) channel.close();
  });
  const admin = (): AdminServiceClient => createRpcClient(AdminServiceDefinition, channelTo(SERVER));

  /** Asks for the list of services by reflection; the messages of both versions are the same bytes. */
  async function listed(address: string, version: string): Promise<string> {
    const bytes = { serialize: (value: Buffer) => value, deserialize: (value: Buffer) => value };
    const reflection = createRpcClient(
      {
        list: {
          path: `/grpc.reflection.${version}.ServerReflection/ServerReflectionInfo`,
          requestStream: true,
          responseStream: true,
          requestSerialize: bytes.serialize,
          requestDeserialize: bytes.deserialize,
          responseSerialize: bytes.serialize,
          responseDeserialize: bytes.deserialize,
        },
      },
      channelTo(address),
    ) as unknown as { list(requests: AsyncIterable<Buffer>, options: { signal: AbortSignal }): AsyncIterable<Buffer> };
    async function* requests() {
      // ServerReflectionRequest.list_services, field 7, "*".
      yield Buffer.from([0x3a, 0x01, 0x2a]);
    }
    for await (const answer of reflection.list(requests(), { signal: AbortSignal.timeout(10_000) })) {
      return answer.toString('latin1');
    }
    return '';
  }

  it.each(['v1', 'v1alpha'])('finds the services by reflection %s', async (version) => {
    expect(await listed(SERVER, version)).toContain('initless.v1.AdminService');
    expect(await listed(agent, version)).toContain('initless.v1.AgentService');
  });

  it('finds both servers healthy', async () => {
    for (const address of [SERVER, agent]) {
      const health = createRpcClient(HealthDefinition, channelTo(address));
      expect((await health.check({ service: '' })).status).toBe(1);
    }
  });

  it('deploys a folder below code_dir, and sees it on its host', { timeout: 300_000 }, async () => {
    const client = admin();
    async function* folder() {
      yield { source: { $case: 'folder' as const, value: 'by-grpc' } };
    }
    expect((await client.applyService(folder())).service?.config?.hostPort).toBe(8211);
    await until('by-grpc to be ready', async () => (await inspect('by-grpc')).state === 'SERVICE_STATE_READY', 240_000);
    const { service } = await client.getService({ serviceName: 'by-grpc' });
    expect(service).toMatchObject({ state: ServiceState.SERVICE_STATE_READY, host: HOST });
    const onAgent = await createRpcClient(AgentServiceDefinition, channelTo(agent)).getHost({});
    expect(onAgent.checkpoints.map((checkpoint) => checkpoint.service)).toContain('by-grpc');
    expect((await client.listHosts({})).hosts).toMatchObject([{ name: HOST, connected: true }]);
  });

  it.each([
    {
      call: 'an unknown service',
      code: 'NOT_FOUND',
      work: (client: AdminServiceClient) => client.getService({ serviceName: '../x' }),
    },
    {
      call: 'an unknown instance',
      code: 'NOT_FOUND',
      work: (client: AdminServiceClient) => client.parkInstance({ instance: 'x' }),
    },
    {
      call: 'a service of code_dir that is to be removed',
      code: 'NOT_ALLOWED',
      work: (client: AdminServiceClient) => client.removeService({ serviceName: 'by-grpc' }),
    },
  ])('is told of $call by the code $code with a next step', async ({ code, work }) => {
    const thrown = await work(admin()).then(
      () => undefined,
      (error: unknown) => error,
    );
    const error = fromGrpcError(thrown, 'the control plane');
    expect(error.code).toBe(code);
    expect(error.nextStep).not.toBe('');
  });
});
