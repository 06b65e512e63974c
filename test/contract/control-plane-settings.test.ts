import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { POOL_KEYS } from '../../control-plane/config/settings.js';
import type { ServiceConfig } from '../../proto/gen/initless/v1/types.js';
import { config, eventually, Harness } from './control-plane-harness.js';
import type { FakeFleetAgent } from './fake-fleet-agent.js';

/** Every pool key: where an agent or a gateway finds it, two values for the files, and what becomes of the second. */
const KEYS: Record<keyof typeof POOL_KEYS, [field: keyof ServiceConfig, first: number, second: number, told: number]> =
  {
    pre_start_pool_size: ['preStartPoolSize', 1, 2, 2],
    max_pool_size: ['maxPoolSize', 11, 12, 12],
    pre_start_timeout: ['preStartTimeoutMs', 1, 2, 120_000],
    idle_timeout: ['idleTimeoutMs', 3, 4, 240_000],
    health_check_timeout: ['healthCheckTimeoutMs', 5, 6, 6_000],
    hang_timeout: ['hangTimeoutMs', 17, 18, 18_000],
    start_timeout: ['startTimeoutMs', 7, 8, 8_000],
    max_concurrency: ['maxConcurrency', 9, 10, 10],
    queue_timeout: ['queueTimeoutMs', 13, 14, 14_000],
    queue_limit: ['queueLimit', 15, 16, 16],
    spread: ['spread', 19, 20, 20],
  };
const keys = Object.keys(KEYS) as (keyof typeof POOL_KEYS)[];
const yaml = (pick: 1 | 2) => keys.map((key) => `${key}: ${KEYS[key][pick]}\n`).join('');
const told = Object.fromEntries(keys.map((key) => [KEYS[key][0], KEYS[key][3]]));

describe('settings', () => {
  let harness: Harness;
  let settings: string;
  let agent: FakeFleetAgent;

  beforeEach(async () => {
    harness = await Harness.start();
    await harness.halt();
    settings = join(harness.root, 'settings.yaml');
    await writeFile(settings, yaml(1));
    await harness.boot({ settingsPath: settings });
    agent = await harness.agent();
  });
  afterEach(() => harness.stop());

  const serve = async (name: string, port: number, more = '') => {
    await harness.upload(await harness.folder(name, config(name, port, more), {}, harness.root));
    await harness.until(name, 'SERVICE_STATE_READY');
    await eventually(`${name} is served`, () => agent.assignments.get(name));
  };
  const reload = async (text: string) => {
    await writeFile(settings, text);
    await harness.controlPlane.reload();
  };
  const served = (name: string) => agent.assignments.get(name)?.config;
  const isTold = (name: string) => keys.every((key) => served(name)?.[KEYS[key][0]] === KEYS[key][3]);

  it('may have every pool key, and a change of each reaches a service that is served, without a new revision', async () => {
    await serve('web', 8001);
    const { revision } = agent.assignments.get('web')!;
    expect(isTold('web')).toBe(false);
    await reload(yaml(2));
    await eventually('the new values arrive', () => isTold('web') || undefined);
    expect(agent.assignments.get('web')?.revision).toBe(revision);
    expect(agent.received('prepare')).toHaveLength(1);
    expect((await harness.service('web')).config).toMatchObject(told);
  });

  it('give way to what a service says itself, and a change of that needs no new revision either', async () => {
    await serve('own', 8002, yaml(2));
    expect(served('own')).toMatchObject(told);
    await reload('idle_timeout: 9\nmax_pool_size: 99\nqueue_limit: 999\n');
    await serve('other', 8003);
    expect(served('other')).toMatchObject({ idleTimeoutMs: 540_000, maxPoolSize: 99, queueLimit: 999 });
    expect(served('own')).toMatchObject(told);
    await harness.upload(await harness.folder('own', config('own', 8002, 'max_pool_size: 3\n'), {}, harness.root));
    await eventually('the new values arrive', () => served('own')?.maxPoolSize === 3 || undefined);
    expect(served('own')?.idleTimeoutMs).toBe(540_000);
    expect(agent.received('prepare')).toHaveLength(2);
  });

  it('change the limits of a service without a new revision, and its volumes with one', async () => {
    await serve('web', 8001, 'volumes: [data:/data]\n');
    const { revision } = agent.assignments.get('web')!;
    await serve('web', 8001, 'volumes: [data:/data]\nmemory_limit: 64m\ncpus: 0.5\n');
    await eventually('the limits arrive', () => served('web')?.cpus === 0.5 || undefined);
    expect(agent.assignments.get('web')?.revision).toBe(revision);
    expect(agent.received('prepare')).toHaveLength(1);
    await serve('web', 8001, 'volumes: [data:/data:ro]\nmemory_limit: 64m\ncpus: 0.5\n');
    await eventually('a new revision', () => agent.assignments.get('web')?.revision !== revision || undefined);
    expect(agent.received('prepare').at(-1)?.config?.volumes).toEqual([
      { source: 'data', target: '/data', readOnly: true },
    ]);
  });

  it('of the host reach its agent at once, while it stays connected', async () => {
    const since = agent.settings;
    expect(since).toMatchObject({ reservedPortFirst: 20_000, recycleWorkers: 4 });
    await reload('reserved_ports: 30000-30099\ncheckpoint_dir: /data/cp\nrecycle_workers: 7\n');
    await eventually('the settings arrive', () => agent.settings?.recycleWorkers === 7 || undefined);
    expect(agent.settings).toEqual({
      ...since,
      reservedPortFirst: 30_000,
      reservedPortLast: 30_099,
      checkpointDir: '/data/cp',
      recycleWorkers: 7,
    });
    expect(agent.ended).toBeUndefined();
  });

  it('of the host are told once, and those that were refused not at all', async () => {
    await serve('web', 8001);
    agent.settings = undefined;
    await reload(`${yaml(1)}recycle_workers: 0\n`);
    await reload(yaml(2));
    await eventually('the pool keys arrive', () => isTold('web') || undefined);
    expect(agent.settings).toBeUndefined();
  });

  it('let a host keep named volumes until their service is removed', async () => {
    await serve('web', 8001, 'volumes: [data:/data]\n');
    agent.volumeServices.add('web');
    agent.report();
    await serve('web', 8001, 'volumes: [data:/data]\nenv: {A: 1}\n');
    expect(agent.volumeServices).toContain('web');
    await harness.admin.removeService({ serviceName: 'web' });
    await eventually('the volumes go', () => !agent.volumeServices.has('web') || undefined);
    expect(agent.received('deleteRevisions').at(-1)).toEqual({ service: 'web', keep: [], removed: true });
  });
});
