import { pino } from 'pino';
import { beforeEach, describe, expect, it } from 'vitest';
import { Commands } from '../../agent/fleet/commands.js';
import type { Tenant } from '../../agent/instance/place.js';
import { Starter } from '../../agent/instance/starter.js';
import { ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import { ServiceConfig } from '../../proto/gen/initless/v1/types.js';
import { InitlessError } from '../../proto/rpc/errors.js';

const volumes = [{ source: '/srv/models', target: '/models', readOnly: true }];
const assignment = ServiceAssignment.fromPartial({
  config: ServiceConfig.fromPartial({ serviceName: 'web', servicePort: 80, volumes, memoryLimit: 64, cpus: 0.5 }),
  revision: 'r1',
});

describe('a start on a host that lacks what it needs', () => {
  let tenants: Tenant[];
  let judged: unknown[];
  let failure: Error;
  let hasCheckpoint: boolean;
  let starter: Starter;

  beforeEach(() => {
    tenants = [];
    judged = [];
    hasCheckpoint = true;
    const record = { spec: {}, layers: [], hostname: 'web', problem: undefined };
    const parts = {
      places: {
        make: async (tenant: Tenant) => {
          tenants.push(tenant);
          throw failure;
        },
        clear: async () => {},
      },
      checkpoints: {
        has: () => hasCheckpoint,
        use: async () => ({ dir: '/c', manifest: { hostname: 'web', memory: {} }, spec: {}, source: {}, layers: [] }),
        restored: (_service: string, _revision: string, why: unknown) => judged.push(why),
      },
      restorer: { enter: () => ({ abandon: async () => {} }) },
      revisions: { get: () => (hasCheckpoint ? record : { ...record, problem: { message: 'none' } }) },
      log: pino({ level: 'silent' }),
      onState: () => {},
    };
    starter = new Starter(parts as unknown as ConstructorParameters<typeof Starter>[0]);
  });

  it.each(['VOLUME_MISSING', 'VOLUME_REFUSED', 'DISK_FULL', 'PORTS_EXHAUSTED'] as const)(
    'ends with %s at once: no second try, no cold start, and the checkpoint is not blamed',
    async (code) => {
      failure = new InitlessError(code, 'no');
      await expect(starter.start(assignment, false)).rejects.toBe(failure);
      expect(tenants).toHaveLength(1);
      expect(judged).toEqual([]);
    },
  );

  it('asks for the volumes and limits of the service, for a restore and for a cold start', async () => {
    failure = new InitlessError('RESTORE_FAILED', 'no');
    await expect(starter.start(assignment, false)).rejects.toBe(failure);
    const wanted = { service: 'web', volumes, limits: { memory: 64, cpus: 0.5 } };
    expect(tenants).toEqual([
      expect.objectContaining(wanted),
      expect.objectContaining(wanted),
      expect.objectContaining(wanted),
    ]);
    expect(judged).toEqual([failure]);
  });
});

describe('removing what a host holds of a service', () => {
  const removed: string[] = [];
  const parts = {
    checkpoints: { remove: () => {}, sweep: async () => {} },
    revisions: { remove: async () => [] },
    instances: { list: () => [] },
    logs: { remove: async (service: string) => void removed.push(`logs of ${service}`) },
    volumes: { remove: async (service: string) => void removed.push(`volumes of ${service}`) },
  };
  const commands = new Commands(parts as unknown as ConstructorParameters<typeof Commands>[0]);

  async function removes(keep: string[], isRemoved: boolean): Promise<string[]> {
    removed.length = 0;
    const action = { $case: 'deleteRevisions', value: { service: 'web', keep, removed: isRemoved } } as const;
    await commands.execute({ id: '1', timeoutMs: 1_000, action }, () => {}, new AbortController().signal);
    return [...removed];
  }

  it('takes its volumes only when the service itself was removed', async () => {
    expect(await removes(['r1'], false)).toEqual([]);
    expect(await removes([], false)).toEqual(['logs of web']);
    expect(await removes([], true)).toEqual(['logs of web', 'volumes of web']);
  });
});
