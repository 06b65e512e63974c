import { rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { InitlessError } from '../../proto/rpc/errors.js';
import { codeOf, config, eventually, failure, Harness } from './control-plane-harness.js';

describe('a service', () => {
  let harness: Harness;
  beforeEach(async () => {
    harness = await Harness.start();
  });
  afterEach(() => harness.stop());

  it('that is uploaded is built on the host that is there, then served by it', async () => {
    const agent = await harness.agent();
    const folder = await harness.folder('flask', config('flask', 8001), { 'app.py': 'print(1)' }, harness.root);
    const { changed, service } = await harness.upload(folder);
    expect(changed).toBe(true);
    expect(service?.pending?.id).toMatch(/^[0-9a-f]{12}$/);

    const ready = await harness.until('flask', 'SERVICE_STATE_READY');
    expect(ready.current?.id).toBe(service?.pending?.id);
    expect(ready.pending).toBeUndefined();
    expect(ready.host).toBe('host1');
    const [prepare] = agent.received('prepare');
    expect(prepare).toMatchObject({ revision: ready.current?.id, force: false });
    expect(agent.assignments.get('flask')?.imageId).toBe(ready.current?.imageId);
    const context = await agent.fetchContext(prepare!.contextDigest);
    expect(context.includes('print(1)')).toBe(true);
  });

  it('is the same whether it is streamed or read from code_dir', async () => {
    await harness.agent();
    const folder = await harness.folder('flask', config('flask', 8001), { 'sub/app.py': 'x' });
    await harness.apply('flask');
    const ready = await harness.until('flask', 'SERVICE_STATE_READY');
    const again = await harness.upload(folder);
    expect(again.changed).toBe(false);
    expect(again.service?.current).toEqual(ready.current);
    expect(again.service?.folder).toBe('flask');
  });

  it('waits for a host and says how to start one', async () => {
    await harness.folder('flask', config('flask', 8001));
    await harness.apply('flask');
    const pending = await harness.until('flask', 'SERVICE_STATE_PENDING');
    expect(pending.problem).toMatchObject({ code: 'NO_HOST' });
    expect(pending.problem?.nextStep).toContain('initless host up');
    expect(await codeOf(harness.admin.wakeService({ serviceName: 'flask' }))).toBe('NO_HOST');
    await harness.agent();
    await harness.until('flask', 'SERVICE_STATE_READY');
  });

  it('whose build fails shows why and is not built again until it is applied again', async () => {
    let builds = 0;
    const agent = await harness.agent('host1', (fake) => {
      fake.script = async (action) => {
        if (action.$case !== 'prepare') return undefined;
        builds += 1;
        throw new InitlessError('BUILD_FAILED', 'step 2 failed', { outputTail: ['no such file'] });
      };
    });
    await harness.folder('flask', config('flask', 8001));
    await harness.apply('flask');
    const failed = await harness.until('flask', 'SERVICE_STATE_FAILED');
    expect(failed.problem).toMatchObject({ code: 'BUILD_FAILED', outputTail: ['no such file'] });
    await new Promise((resolve) => setTimeout(resolve, 1_500));
    expect(builds).toBe(1);
    agent.script = async () => undefined;
    expect((await harness.apply('flask')).changed).toBe(true);
    await harness.until('flask', 'SERVICE_STATE_READY');
  });

  it('keeps serving its revision when a newer one cannot be made', async () => {
    const agent = await harness.agent();
    const folder = await harness.folder('flask', config('flask', 8001));
    await harness.apply('flask');
    const before = await harness.until('flask', 'SERVICE_STATE_READY');
    agent.script = async (action) => {
      if (action.$case === 'prepare') throw new InitlessError('EXITED_EARLY', 'exit code 1');
      return undefined;
    };
    await writeFile(join(folder, 'app.py'), 'changed');
    const after = await eventually('the new revision failed', async () => {
      const service = await harness.service('flask');
      return service.pending?.problem ? service : undefined;
    });
    expect(after.state).toBe(before.state);
    expect(after.current?.id).toBe(before.current?.id);
    expect(after.pending?.problem?.code).toBe('EXITED_EARLY');
    expect(agent.assignments.get('flask')?.revision).toBe(before.current?.id);
  });

  it('takes a new idle_timeout without a build', async () => {
    const agent = await harness.agent();
    const folder = await harness.folder('flask', config('flask', 8001));
    await harness.apply('flask');
    const before = await harness.until('flask', 'SERVICE_STATE_READY');
    await writeFile(join(folder, 'config.yaml'), config('flask', 8005, 'idle_timeout: 0.5\n'));
    await eventually(
      'the host knows',
      () => agent.assignments.get('flask')?.config?.idleTimeoutMs === 30_000 || undefined,
    );
    const after = await harness.service('flask');
    expect(after.current?.id).toBe(before.current?.id);
    expect(after.config?.hostPort).toBe(8005);
    expect(agent.received('prepare')).toHaveLength(1);
  });

  it('is there after a restart, and is not built again', async () => {
    const agent = await harness.agent();
    const folder = await harness.folder('flask', config('flask', 8001), {}, harness.root);
    await harness.upload(folder);
    const before = await harness.until('flask', 'SERVICE_STATE_READY');
    await harness.halt();
    await harness.boot();
    const restarted = await harness.agent('host1', (fake) => fake.checkpoints.push(...agent.checkpoints));
    const after = await harness.until('flask', 'SERVICE_STATE_READY');
    expect(after.current?.id).toBe(before.current?.id);
    expect(restarted.received('prepare')).toHaveLength(0);
  });

  it('is removed from its host, and forgotten', async () => {
    const agent = await harness.agent();
    await harness.upload(await harness.folder('flask', config('flask', 8001), {}, harness.root));
    await harness.until('flask', 'SERVICE_STATE_READY');
    await harness.admin.removeService({ serviceName: 'flask' });
    expect(await codeOf(harness.admin.getService({ serviceName: 'flask' }))).toBe('NOT_FOUND');
    await eventually('its checkpoint is deleted', () => agent.checkpoints.length === 0 || undefined);
    expect(agent.assignments.size).toBe(0);
    expect(await codeOf(harness.admin.removeService({ serviceName: 'flask' }))).toBe('NOT_FOUND');
  });

  it('of code_dir is not removed while its folder is there, and is disabled when it is not', async () => {
    const agent = await harness.agent();
    const folder = await harness.folder('flask', config('flask', 8001));
    await harness.until('flask', 'SERVICE_STATE_READY');
    const refusal = await failure(harness.admin.removeService({ serviceName: 'flask' }));
    expect(refusal.code).toBe('NOT_ALLOWED');
    expect(refusal.nextStep).toContain(folder);

    await rename(folder, join(harness.root, 'away'));
    const disabled = await harness.until('flask', 'SERVICE_STATE_DISABLED');
    expect(disabled.problem?.message).toContain('code_dir');
    await eventually('it is withdrawn', () => agent.assignments.size === 0 || undefined);
    expect(agent.checkpoints).toHaveLength(1);

    await rename(join(harness.root, 'away'), folder);
    await harness.until('flask', 'SERVICE_STATE_READY');
    expect(agent.received('prepare')).toHaveLength(1);
  });

  it('of code_dir keeps what it had when its file becomes invalid', async () => {
    await harness.agent();
    const folder = await harness.folder('flask', config('flask', 8001));
    const before = await harness.until('flask', 'SERVICE_STATE_READY');
    await writeFile(join(folder, 'config.yaml'), config('flask', 8001, 'hots_port: 3\n'));
    const { warnings } = await eventually('the fault is told', async () => {
      const info = await harness.admin.getInfo({});
      return info.warnings.length > 0 ? info : undefined;
    });
    expect(warnings[0]).toMatch(/flask\/config.yaml:4: hots_port: found a key that is not known, expected "host_port"/);
    expect(await harness.service('flask')).toEqual({ ...before, updatedAt: expect.anything() });
    expect((await harness.apply('flask').catch((error: unknown) => error)) instanceof Error).toBe(true);
  });

  it('cannot have the port of another one, or of the control plane itself', async () => {
    await harness.folder('a', config('a', 8001));
    await harness.apply('a');
    const b = await harness.folder('b', config('b', 8001), {}, harness.root);
    const taken = await failure(harness.upload(b));
    expect(taken.code).toBe('PORT_TAKEN');
    expect(taken.message).toContain('config.yaml:3');
    const own = await harness.folder('c', config('c', harness.controlPlane.grpcPort), {}, harness.root);
    const refused = await failure(harness.upload(own));
    expect(refused.code).toBe('BAD_CONFIG');
    expect(refused.violations[0]?.field).toBe('host_port');
  });

  it('is refused with every fault of its file', async () => {
    const folder = await harness.folder('x', 'service_name: ../etc\nstart_cmd: python app.py\n', {}, harness.root);
    const refused = await failure(harness.upload(folder));
    expect(refused.code).toBe('BAD_CONFIG');
    expect(refused.violations.map((one) => one.field).sort()).toEqual([
      'host_port',
      'service_name',
      'service_port',
      'start_cmd',
    ]);
  });

  it('is applied by the name of a folder only', async () => {
    for (const name of ['../x', 'a/b', '', '.', '..', 'a\0b']) {
      expect(await codeOf(harness.apply(name))).toBe('BAD_NAME');
    }
    expect(await codeOf(harness.apply('missing'))).toBe('NOT_FOUND');
  });
});
