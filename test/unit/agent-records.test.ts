import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Instance } from '../../agent/instance/instance.js';
import type { Place } from '../../agent/instance/place.js';
import { Records } from '../../agent/instance/records.js';
import { identify } from '../../agent/runtime/process.js';
import { ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import { Origin, ServiceConfig } from '../../proto/gen/initless/v1/types.js';

describe('what a restarted agent finds', () => {
  let dir: string;
  const fail = (error: unknown) => {
    throw error;
  };
  const running = (id: string) => {
    const config = ServiceConfig.fromPartial({ serviceName: 'web', idleTimeoutMs: 7 });
    const instance = new Instance(
      id,
      ServiceAssignment.fromPartial({ config, revision: 'r1' }),
      Origin.ORIGIN_RESTORED,
    );
    instance.place = {
      id,
      sandbox: { index: 3, port: 20_003, servicePort: 80, address: 'h:20003', netns: '/n' },
    } as Place;
    instance.process = identify(process.pid);
    instance.apply({ type: 'start' });
    instance.apply({ type: 'healthy' });
    return instance;
  };
  const settled = async (names: string[]) => {
    await expect.poll(async () => (await readdir(dir)).sort()).toEqual(names);
  };

  beforeEach(async () => {
    dir = await mkdtemp(path.join(tmpdir(), 'initless-records-'));
  });
  afterEach(() => rm(dir, { recursive: true, force: true }));

  it('is every running and parked instance whose process lives, as it was', async () => {
    const records = new Records(dir);
    const parked = running('web-2');
    parked.apply({ type: 'park' });
    for (const instance of [running('web-1'), parked]) records.note(instance, fail);
    await settled(['web-1.json', 'web-2.json']);
    const found = await new Records(dir).load(fail);
    expect(found.map((instance) => `${instance.id} ${instance.state} ${instance.address}`).sort()).toEqual([
      'web-1 running h:20003',
      'web-2 parked h:20003',
    ]);
    expect(found[0]?.assignment.config?.idleTimeoutMs).toBe(7);
    expect(found[0]?.origin).toBe(Origin.ORIGIN_RESTORED);
  });

  it('is nothing of an instance that went, or whose process ended or is another one now', async () => {
    const records = new Records(dir);
    const gone = running('web-1');
    records.note(gone, fail);
    gone.apply({ type: 'end', reason: 'idle' });
    records.note(gone, fail);
    const other = running('web-2');
    other.process = { pid: process.pid, startedAt: '1' };
    records.note(other, fail);
    await settled(['web-2.json']);
    expect(await new Records(dir).load(fail)).toEqual([]);
    await settled([]);
  });

  it('says what still filled its memory, until all of it was there', async () => {
    const records = new Records(dir);
    const instance = running('web-1');
    const filler = { daemon: { pid: 7, startedAt: '8' }, timeoutMs: 9 };
    instance.filler = filler;
    records.note(instance, fail);
    await settled(['web-1.json']);
    expect((await new Records(dir).load(fail))[0]?.filler).toEqual(filler);
    instance.filler = undefined;
    records.note(instance, fail);
    await expect.poll(async () => (await new Records(dir).load(fail))[0]?.filling).toBe(false);
  });

  it('says who held what on each of them', async () => {
    const records = new Records(dir);
    const instance = running('web-1');
    instance.leases.set('web-1/a', { id: 'web-1/a', gateway: 'g', slots: 40 });
    instance.leases.set('web-1/b', { id: 'web-1/b', gateway: 'h', slots: 60 });
    records.note(instance, fail);
    await settled(['web-1.json']);
    const [found] = await new Records(dir).load(fail);
    expect([...(found?.leases.values() ?? [])]).toEqual([...instance.leases.values()]);
    expect(found?.slotsHeld).toBe(100);
  });

  it('is what was noted last, however often it changed, and one write at a time', async () => {
    const records = new Records(dir);
    const instance = running('web-1');
    for (let count = 1; count <= 500; count += 1) {
      instance.leases.clear();
      instance.leases.set('web-1/a', { id: 'web-1/a', gateway: 'g', slots: count });
      records.note(instance, fail);
      if (count % 100 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    await expect
      .poll(async () => (await readdir(dir)).length > 0 && (await new Records(dir).load(fail))[0]?.slotsHeld)
      .toBe(500);
  });

  it('can be read although an earlier agent noted no leases', async () => {
    const records = new Records(dir);
    records.note(running('web-1'), fail);
    await settled(['web-1.json']);
    const file = path.join(dir, 'web-1.json');
    const { leases, ...rest } = JSON.parse(await readFile(file, 'utf8'));
    expect(leases).toEqual([]);
    await writeFile(file, JSON.stringify(rest));
    const [found] = await new Records(dir).load(fail);
    expect(found?.leases.size).toBe(0);
  });

  it('does not stumble over a record that was cut short', async () => {
    await writeFile(path.join(dir, 'web-1.json'), '{"id":"web-1","pro');
    const damaged: string[] = [];
    expect(await new Records(dir).load((file) => damaged.push(path.basename(file)))).toEqual([]);
    expect(damaged).toEqual(['web-1.json']);
    await settled([]);
  });
});
