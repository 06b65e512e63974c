import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { config, eventually, Harness } from './control-plane-harness.js';

/** Where the set-up of the tests puts it; in no Debian release. */
const GRPCURL = ['/var/cache/initless/bin/grpcurl', '/usr/local/bin/grpcurl'].find(existsSync);

describe.skipIf(GRPCURL === undefined)('grpcurl alone, with no proto file,', () => {
  let harness: Harness;
  beforeEach(async () => {
    harness = await Harness.start();
    await harness.agent('host1');
    await harness.agent('host2');
    await harness.folder('web', config('web', 8001));
    await eventually('both hosts serve', async () => {
      const { hosts } = await harness.service('web').catch(() => ({ hosts: [] }));
      return (hosts.length === 2 && hosts.every(({ serves }) => serves)) || undefined;
    });
  });
  afterEach(() => harness.stop());

  /** What one call answers, a JSON object after the other. */
  const call = (method: string, request: object = {}) =>
    new Promise<string>((resolve, reject) => {
      const args = ['-plaintext', '-d', JSON.stringify(request), harness.address, `initless.v1.AdminService/${method}`];
      execFile(GRPCURL!, args, { timeout: 20_000 }, (error, stdout, stderr) =>
        error ? reject(new Error(stderr)) : resolve(stdout),
      );
    });

  it('lists hosts, and cordons and uncordons one', async () => {
    const listed = JSON.parse(await call('ListHosts')) as { hosts: { name: string; phase: string }[] };
    expect(listed.hosts.map(({ name, phase }) => [name, phase])).toEqual([
      ['host1', 'HOST_PHASE_READY'],
      ['host2', 'HOST_PHASE_READY'],
    ]);
    expect(JSON.parse(await call('CordonHost', { host: 'host1' }))).toMatchObject({ host: { cordoned: true } });
    expect(JSON.parse(await call('UncordonHost', { host: 'host1' }))).not.toHaveProperty('host.cordoned');
  });

  it('drains a host, and explains why a service is not there any more', async () => {
    expect(await call('DrainHost', { host: 'host1' })).toContain('"done": true');
    const answer = JSON.parse(await call('ExplainService', { serviceName: 'web' })) as {
      hosts: { host: string; placed?: boolean; reasons: string[] }[];
    };
    expect(answer.hosts.find(({ host }) => host === 'host1')?.placed).toBeUndefined();
    expect(answer.hosts.find(({ host }) => host === 'host1')?.reasons).toContain('it is being drained');
    expect(await call('WatchEvents', { last: 20, endAfterLast: true })).toContain('host.drained');
  });
});
