import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, rm, utimes, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { packFolder } from '../../control-plane/contexts/folder.js';
import { FailingStore } from '../../control-plane/store/failing.js';
import { MemoryStore } from '../../control-plane/store/memory.js';
import { AdminServiceDefinition, type ApplyServiceRequest } from '../../proto/gen/initless/v1/admin.js';
import { connect, createRpcClient } from '../../proto/rpc/client.js';
import { toInitlessError } from '../../proto/rpc/errors.js';
import { codeOf, config, eventually, Harness } from './control-plane-harness.js';
import { freePort } from './free-port.js';

describe('a control plane', () => {
  let harness: Harness;
  beforeEach(async () => {
    harness = await Harness.start();
  });
  afterEach(() => harness.stop());

  it('has lost nothing it acknowledged when it is killed', { timeout: 30_000 }, async () => {
    await harness.halt();
    const runner = ['node_modules/vite-node/vite-node.mjs', 'test/contract/control-plane-child.ts'];
    const child = spawn(process.execPath, [...runner, harness.stateDir, harness.codeDir], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const acknowledged: string[] = [];
    try {
      const [text] = (await once(child.stdout!, 'data')) as [Buffer];
      const channel = connect(`127.0.0.1:${String(text).trim().split(' ')[1]}`);
      const admin = createRpcClient(AdminServiceDefinition, channel);
      const applying: Promise<unknown>[] = [];
      for (let n = 0; n < 8; n++) {
        const name = `s${n}`;
        const folder = await harness.folder(name, config(name, 9000 + n), {}, harness.root);
        applying.push(admin.applyService(uploadOf(folder)).then(() => acknowledged.push(name)));
      }
      await eventually('some are acknowledged', () => acknowledged.length >= 3 || undefined);
      child.kill('SIGKILL');
      await Promise.all([once(child, 'exit'), Promise.allSettled(applying)]);
      channel.close();
    } finally {
      child.kill('SIGKILL');
    }
    await harness.boot();
    const { services } = await harness.admin.listServices({});
    expect(services.map((service) => service.config?.serviceName)).toEqual(expect.arrayContaining(acknowledged));
  });

  it('refuses a store that was emptied, and says what to do', async () => {
    await harness.upload(await harness.folder('a', config('a', 8001), {}, harness.root));
    await harness.halt();
    await rm(join(harness.stateDir, 'store'), { recursive: true });
    const error = toInitlessError(await harness.boot().catch((thrown: unknown) => thrown));
    expect(error.code).toBe('STORE_DAMAGED');
    expect(error.message).toContain(join(harness.stateDir, 'store'));
    expect(error.nextStep).toContain('backup');
  });

  it('says that another one has the store', async () => {
    const error = toInitlessError(await harness.boot().catch((thrown: unknown) => thrown));
    expect(error.code).toBe('STORE_FAILED');
    expect(error.message).toContain('another control plane');
  });

  it('names a port that is taken', async () => {
    const other = createServer().listen(0, '127.0.0.1');
    await once(other, 'listening');
    const { port } = other.address() as { port: number };
    await harness.halt();
    for (const key of ['listen', 'httpListen'] as const) {
      const error = toInitlessError(
        await harness.boot({ [key]: `127.0.0.1:${port}` }).catch((thrown: unknown) => thrown),
      );
      expect(error.code).toBe('PORT_TAKEN');
      expect(error.message).toContain(String(port));
    }
    other.close();
    await harness.boot();
  });

  it('listens on addresses that appear later', async () => {
    await harness.halt();
    let asked = 0;
    const port = await freePort();
    await harness.boot({
      extraAddresses: async () => {
        asked += 1;
        if (asked === 1) throw new Error('no engine');
        return [`127.0.0.2:${port}`];
      },
    });
    const channel = connect(`127.0.0.2:${port}`);
    const admin = createRpcClient(AdminServiceDefinition, channel);
    await eventually('it answers there', () =>
      admin.getInfo({}).then(
        () => true,
        () => undefined,
      ),
    );
    channel.close();
  });

  it('acknowledges nothing that its store did not take', async () => {
    await harness.halt();
    await harness.boot({ store: new FailingStore() });
    expect(await codeOf(harness.upload(await harness.folder('a', config('a', 8001), {}, harness.root)))).toBe(
      'STORE_FAILED',
    );
    expect((await harness.admin.listServices({})).services).toEqual([]);
  });

  it('takes a service in once at a time', async () => {
    await harness.halt();
    let release = () => {};
    const store = new MemoryStore();
    const put = store.putService.bind(store);
    const gate = new Promise<void>((resolve) => {
      release = resolve;
    });
    store.putService = async (record) => {
      await gate;
      await put(record);
    };
    await harness.boot({ store });
    const folder = await harness.folder('a', config('a', 8001), {}, harness.root);
    const first = harness.upload(folder);
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(await codeOf(harness.upload(folder))).toBe('BUSY');
    release();
    expect((await first).changed).toBe(true);
    expect((await harness.upload(folder)).changed).toBe(false);
  });

  it('reads changed settings, applies them to services, and keeps the old ones when the new are bad', async () => {
    const agent = await harness.agent();
    await harness.upload(await harness.folder('a', config('a', 8001), {}, harness.root));
    await harness.until('a', 'SERVICE_STATE_READY');
    await harness.halt();
    const file = join(harness.root, 'settings.yaml');
    await writeFile(file, 'idle_timeout:\n  1\nrunc_watchdog_host: "0.0.0.0"\n');
    await harness.boot();
    await harness.agent('host1', (fake) => fake.checkpoints.push(...agent.checkpoints));
    expect((await harness.service('a')).config?.idleTimeoutMs).toBe(60_000);
    const info = await harness.admin.getInfo({});
    expect(info.settingsFile).toBe(file);
    expect(info.warnings.join()).toContain('no patched runc');

    await writeFile(file, 'idle_timeout: 2\n');
    await utimes(file, 1, 1);
    await eventually('the new ones hold', async () =>
      (await harness.service('a')).config?.idleTimeoutMs === 120_000 ? true : undefined,
    );
    await writeFile(file, 'idle_timeout: soon\n');
    await harness.controlPlane.reload();
    expect((await harness.admin.getInfo({})).warnings[0]).toMatch(
      /settings.yaml:1: idle_timeout: found "soon", expected minutes/,
    );
    expect((await harness.service('a')).config?.idleTimeoutMs).toBe(120_000);
  });

  it('answers health checks over HTTP', async () => {
    const get = async (path: string) => await fetch(`http://127.0.0.1:${harness.controlPlane.httpPort}${path}`);
    expect((await get('/healthz')).status).toBe(200);
    expect((await get('/readyz')).status).toBe(200);
    expect(await (await get('/metrics')).text()).toContain('initless_hosts 0');
    expect((await get('/other')).status).toBe(404);
  });

  it('removes build contexts that nothing refers to', async () => {
    const contexts = async () => await readdir(join(harness.stateDir, 'contexts'));
    await harness.upload(await harness.folder('a', config('a', 8001), {}, harness.root));
    expect(await contexts()).toHaveLength(1);
    await harness.admin.removeService({ serviceName: 'a' });
    expect(await contexts()).toHaveLength(0);
  });
});

async function* uploadOf(folder: string): AsyncGenerator<ApplyServiceRequest> {
  yield { source: { $case: 'upload', value: { origin: folder } } };
  for await (const chunk of packFolder(folder)) yield { source: { $case: 'chunk', value: chunk } };
}
