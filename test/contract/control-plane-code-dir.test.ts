import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ServiceState } from '../../proto/gen/initless/v1/types.js';
import { config, eventually, Harness, write } from './control-plane-harness.js';

describe('code_dir', () => {
  let harness: Harness;
  beforeEach(async () => {
    harness = await Harness.start();
  });
  afterEach(() => harness.stop());

  const names = async () => (await harness.admin.listServices({})).services.map((one) => one.config?.serviceName);
  const isState = async (name: string, state: ServiceState) =>
    (await harness.service(name).catch(() => undefined))?.state === state || undefined;

  it('is read at the start: each folder with a config.yaml is a service', async () => {
    await harness.halt();
    await harness.folder('a', config('a', 8001));
    await harness.folder('folder-of-b', config('b', 8002));
    await write(join(harness.codeDir, 'no-service'), { 'README.md': '' });
    await harness.boot();
    expect(await names()).toEqual(['a', 'b']);
    expect((await harness.service('b')).folder).toBe('folder-of-b');
  });

  it('may appear later, and go and come as a whole', async () => {
    await harness.halt();
    await rm(harness.codeDir, { recursive: true });
    await harness.boot();
    await mkdir(harness.codeDir);
    await harness.folder('a', config('a', 8001));
    await eventually('the service is there', async () => (await names()).includes('a') || undefined);
    await rename(harness.codeDir, `${harness.codeDir}-away`);
    await eventually('it is disabled', () => isState('a', ServiceState.SERVICE_STATE_DISABLED));
    await rename(`${harness.codeDir}-away`, harness.codeDir);
    await eventually('it is back', () => isState('a', ServiceState.SERVICE_STATE_PENDING));
  });

  it('gives a service up when its folder takes another name for it', async () => {
    const folder = await harness.folder('x', config('a', 8001));
    await eventually('a is there', async () => (await names()).includes('a') || undefined);
    await writeFile(join(folder, 'config.yaml'), config('b', 8001));
    await eventually('b has taken its place', async () => (await names()).includes('b') || undefined);
    await eventually('a is disabled', () => isState('a', ServiceState.SERVICE_STATE_DISABLED));
    await harness.admin.removeService({ serviceName: 'a' });
    expect(await names()).toEqual(['b']);
  });

  it('does not take two folders for one service', async () => {
    await harness.folder('one', config('a', 8001));
    await eventually('a is there', async () => (await names()).includes('a') || undefined);
    await harness.folder('two', config('a', 8002));
    const warning = await eventually(
      'the second is refused',
      async () => (await harness.admin.getInfo({})).warnings[0],
    );
    expect(warning).toContain('two/config.yaml:1: service_name: found a');
    expect((await harness.service('a')).folder).toBe('one');
  });

  it('that is not set any more disables its services and loses none', async () => {
    await harness.folder('a', config('a', 8001));
    await eventually('a is there', async () => (await names()).includes('a') || undefined);
    await harness.halt();
    await harness.boot({ codeDir: '' });
    expect((await harness.service('a')).state).toBe(ServiceState.SERVICE_STATE_DISABLED);
    await harness.halt();
    await harness.boot();
    expect((await harness.service('a')).state).toBe(ServiceState.SERVICE_STATE_PENDING);
  });

  it('does not build again what failed, merely because it is read again', async () => {
    const agent = await harness.agent('host1', (fake) => {
      fake.script = async (action) => {
        if (action.$case === 'prepare') throw new Error('no');
        return undefined;
      };
    });
    const folder = await harness.folder('a', config('a', 8001));
    await harness.until('a', 'SERVICE_STATE_FAILED');
    await writeFile(join(folder, 'config.yaml'), config('a', 8001, '# a comment\n'));
    await harness.controlPlane.reload();
    await new Promise((resolve) => setTimeout(resolve, 600));
    expect(agent.received('prepare')).toHaveLength(1);
  });
});
