import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { connectAdmin } from '../../control-plane/cli/admin.js';
import type { CliContext } from '../../control-plane/cli/context.js';
import { showServices } from '../../control-plane/cli/demo/show.js';
import { projectOf } from '../../control-plane/cli/project.js';
import type { AdminServiceImplementation } from '../../proto/gen/initless/v1/admin.js';
import { InstanceState, Origin, Service, ServiceState } from '../../proto/gen/initless/v1/types.js';
import { type FakeAdmin, receiveApply, startFakeAdmin } from './fake-admin.js';

let codeDir: string;
let http: Server;
let port: number;
let admin: FakeAdmin;

beforeEach(async () => {
  codeDir = mkdtempSync(join(tmpdir(), 'initless-demo-'));
  mkdirSync(join(codeDir, 'flask'));
  mkdirSync(join(codeDir, 'no-service'));
  writeFileSync(join(codeDir, 'flask', 'config.yaml'), 'service_name: flask\n');
  http = createServer((_request, response) => response.end('{"value": 1}\n'));
  await new Promise<void>((listening) => http.listen(0, '127.0.0.1', listening));
  port = (http.address() as AddressInfo).port;
});
afterEach(async () => {
  rmSync(codeDir, { recursive: true, force: true });
  http.close();
  await admin.stop();
});

const flask = (state = ServiceState.SERVICE_STATE_READY) =>
  Service.fromPartial({
    config: { serviceName: 'flask', hostPort: port, healthCheck: { path: '/?key=1' } },
    state,
    folder: 'flask',
    listeners: [{ gateway: 'g', listening: true }],
  });

/** A control plane with flask: ready, one instance running from before, and restores that take a fifth of a start. */
function script(origin = Origin.ORIGIN_RESTORED): Partial<AdminServiceImplementation> {
  return {
    listServices: async () => ({ services: [flask()] }),
    getService: async () => ({ service: flask() }),
    listInstances: async () => ({
      instances: [{ id: 'flask-1', service: 'flask', state: InstanceState.INSTANCE_STATE_RUNNING, origin }],
    }),
    removeInstance: async () => ({ instance: { id: 'flask-1' } }),
    async *testService() {
      yield { measurement: { service: 'flask', kind: 'docker_run', ms: 500, round: 1 } };
      yield { measurement: { service: 'flask', kind: 'restored', ms: 100, round: 1, origin } };
    },
  };
}

async function show(fake: Partial<AdminServiceImplementation>) {
  admin = await startFakeAdmin(fake);
  const lines: string[] = [];
  const out = new Writable({ write: (chunk, _encoding, done) => done(void lines.push(String(chunk))) });
  const { signal } = new AbortController();
  const client = connectAdmin(admin.address, signal);
  const context: CliContext = {
    stdout: out,
    stderr: out,
    env: {},
    cwd: '/',
    signal,
    project: projectOf({}, {}),
    server: admin.address,
    timeoutMs: (standard) => standard,
    withAdmin: (work) => work(client),
    say: (line) => lines.push(`${line}\n`),
  };
  try {
    return { code: await showServices(context, client, codeDir, 1), text: lines.join('') };
  } finally {
    client.close();
  }
}

test('each service is called while it sleeps and timed, and the way to go on is shown', async () => {
  const { code, text } = await show(script());
  expect(admin.calls).toContain('removeInstance');
  expect(text).toMatch(/localhost:\d+\/\?key=1 -> 200 in .*, restored: \{"value": 1\}/);
  expect(text).toMatch(/^flask +1 +restored .* 5\.0x$/m);
  expect(text).toContain(`curl 'http://localhost:${port}/?key=1'`);
  expect(text).toContain('npm run down');
  expect(code).toBe(0);
});

test('what an earlier demo could not make is tried again, and its steps are told', async () => {
  let applied = '';
  const { code, text } = await show({
    ...script(),
    listServices: async () => ({ services: [flask(ServiceState.SERVICE_STATE_FAILED)] }),
    async applyService(requests) {
      applied = (await receiveApply(requests)).folder;
      return { service: flask(ServiceState.SERVICE_STATE_BUILDING), changed: true };
    },
    async *streamBuildOutput() {
      yield { piece: { $case: 'output', value: { stage: 'image', line: 'Step 1/1 : FROM debian' } } };
      yield { piece: { $case: 'ended', value: flask() } };
    },
  });
  expect(applied).toBe('flask');
  expect(text).toMatch(/flask +image +Step 1\/1 : FROM debian/);
  expect(code).toBe(0);
});

test('a service that cannot be made is said with its reason, and the demo ends with 1', async () => {
  const failed = Service.fromPartial({
    ...flask(ServiceState.SERVICE_STATE_FAILED),
    pending: { id: 'f', problem: { code: 'BUILD_FAILED', message: 'step 3 failed', nextStep: 'correct it' } },
  });
  const { code, text } = await show({
    ...script(),
    listServices: async () => ({ services: [failed] }),
    applyService: async () => ({ service: failed, changed: true }),
    async *streamBuildOutput() {
      yield { piece: { $case: 'ended', value: failed } };
    },
  });
  expect(text).toContain('step 3 failed');
  expect(text).toContain('next: correct it');
  expect(code).toBe(1);
});

test('a service with a checkpoint that was started cold is a failure', async () => {
  const { code, text } = await show(script(Origin.ORIGIN_COLD));
  expect(text).toContain('flask has a checkpoint, and was started cold all the same');
  expect(code).toBe(1);
});
