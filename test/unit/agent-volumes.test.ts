import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { refusal } from '../../agent/instance/volume-sources.js';
import { Volumes } from '../../agent/instance/volumes.js';
import { toInitlessError } from '../../proto/rpc/errors.js';

describe('which paths of a host an instance may have', () => {
  const own = [{ path: '/data/checkpoints', what: "every service's checkpoints" }];
  const why = (source: string, readOnly = false) => refusal(source, readOnly, own);

  it.each(['/', '/proc', '/proc/1/root', '/sys', '/sys/fs/cgroup', '/dev', '/dev/sda', '/run', '/run/docker.sock'])(
    'is not %s, not even to read',
    (source) => {
      expect(why(source, true)).toBeDefined();
    },
  );

  it.each(['/var/lib/docker', '/var/lib/docker/overlay2/x', '/var/lib', '/var', '/data/checkpoints/web', '/data'])(
    "is not %s: the engine's data and checkpoints are there",
    (source) => {
      expect(why(source, true)).toContain(source.startsWith('/data') ? '/data/checkpoints' : '/var/lib/docker');
    },
  );

  it.each(['/etc', '/usr/bin', '/opt/initless/dist', '/opt', '/root'])('is %s only to read', (source) => {
    expect(why(source, false)).toContain('read-only');
    expect(why(source, true)).toBeUndefined();
  });

  it.each(['/srv', '/srv/models', '/home/app', '/var/lib/app', '/var/lib/dockers', '/data2', '/runs', '/opt/app'])(
    'is %s',
    (source) => {
      expect(why(source)).toBeUndefined();
    },
  );

  it('is said with what is there', () => {
    expect(why('/run/docker.sock')).toBe('/run is the sockets of the host, that of its Docker engine among them');
    expect(why('/var')).toMatch(/^\/var\/lib\/docker, which is in it, is the data/);
  });
});

describe('the volumes of a host', () => {
  let dir: string;
  let rootfs: string;
  let volumes: Volumes;
  const at = (...parts: string[]) => path.join(dir, ...parts);
  const named = (source: string, target = '/data') => ({ source, target, readOnly: false });
  const open = () =>
    new Volumes({ root: at('volumes'), host: 'host1', own: () => [{ path: at('checkpoints'), what: 'checkpoints' }] });
  const failure = (work: Promise<unknown>) => work.then(() => expect.fail('it did not fail'), toInitlessError);

  beforeEach(async () => {
    dir = await mkdtemp(path.join(tmpdir(), 'initless-volumes-'));
    rootfs = at('rootfs');
    await mkdir(path.join(rootfs, 'data'), { recursive: true });
    await writeFile(path.join(rootfs, 'data', 'seed'), 'from the image');
    await chmod(path.join(rootfs, 'data'), 0o750);
    volumes = open();
    await volumes.load();
  });
  afterEach(() => rm(dir, { recursive: true, force: true }));

  it('begin with what the image has at their place, its mode too', async () => {
    const [mount] = await volumes.mounts('web', [named('state')], rootfs);
    expect(mount).toEqual({ source: at('volumes', 'web', 'state'), target: '/data', readOnly: false });
    expect(await readFile(at('volumes', 'web', 'state', 'seed'), 'utf8')).toBe('from the image');
    expect((await stat(at('volumes', 'web', 'state'))).mode & 0o777).toBe(0o750);
  });

  it('begin empty where the image has nothing', async () => {
    await volumes.mounts('web', [named('cache', '/var/cache/none')], rootfs);
    expect(await readdir(at('volumes', 'web', 'cache'))).toEqual([]);
    expect((await stat(at('volumes', 'web', 'cache'))).mode & 0o777).toBe(0o755);
  });

  it('stay as they were left, also empty, whatever the image has', async () => {
    await volumes.mounts('web', [named('state')], rootfs);
    await rm(at('volumes', 'web', 'state', 'seed'));
    const again = open();
    await again.load();
    await again.mounts('web', [named('state')], rootfs);
    expect(await readdir(at('volumes', 'web', 'state'))).toEqual([]);
  });

  it('are made once, also when many instances start together', async () => {
    const starts = Array.from({ length: 8 }, () => volumes.mounts('web', [named('state')], rootfs));
    expect(new Set((await Promise.all(starts)).map(([mount]) => mount?.source)).size).toBe(1);
    expect(await readdir(at('volumes', 'web'))).toEqual(['state']);
    expect(await readdir(at('volumes', 'web', 'state'))).toEqual(['seed']);
  });

  it("are each service's own", async () => {
    await volumes.mounts('a', [named('state')], rootfs);
    await volumes.mounts('b', [named('state')], rootfs);
    expect(volumes.services()).toEqual(['a', 'b']);
    await volumes.remove('a');
    expect(volumes.services()).toEqual(['b']);
    expect(await readdir(at('volumes'))).toEqual(['b']);
    await volumes.remove('a');
  });

  it('are folders: a name at the place of a file is refused, and leaves nothing', async () => {
    const error = await failure(volumes.mounts('web', [named('state', '/data/seed')], rootfs));
    expect(error.code).toBe('BAD_CONFIG');
    expect(error.message).toContain('/data/seed');
    expect(await readdir(at('volumes', 'web'))).toEqual([]);
  });

  it('that nobody has made are missing for who cannot make them', async () => {
    const error = await failure(volumes.mounts('web', [named('state')], undefined));
    expect(error.code).toBe('VOLUME_MISSING');
    expect(error.message).toContain('state of web');
  });

  it('that an earlier run was making or removing are gone after a restart', async () => {
    await volumes.mounts('web', [named('state')], rootfs);
    await mkdir(at('volumes', 'web', '.making-x'));
    await mkdir(at('volumes', 'REMOVED-y', 'volumes', 'old'), { recursive: true });
    const again = open();
    await again.load();
    expect(again.services()).toEqual(['web']);
    expect(await readdir(at('volumes'))).toEqual(['web']);
    expect(await readdir(at('volumes', 'web'))).toEqual(['state']);
  });

  it('may be paths of the host, which are mounted with links resolved', async () => {
    await mkdir(at('srv'));
    await symlink(at('srv'), at('link'));
    const mount = { source: at('link'), target: '/m', readOnly: true };
    expect(await volumes.mounts('web', [mount], rootfs)).toEqual([{ ...mount, source: at('srv') }]);
    expect(volumes.services()).toEqual([]);
  });

  it('that are paths must be there: the error names host and path, and how a host gets one', async () => {
    const error = await failure(volumes.mounts('web', [named(at('nowhere'))], rootfs));
    expect(error.code).toBe('VOLUME_MISSING');
    expect(error.message).toContain(`${at('nowhere')}, and the host host1 has no such path`);
    expect(error.nextStep).toContain(`initless host up host1 --volume /path/on/the/machine:${at('nowhere')}`);
  });

  it('that lead to what is refused, by links too, are refused with the reason', async () => {
    await symlink('/proc/self', at('innocent'));
    const error = await failure(volumes.mounts('web', [named(at('innocent'))], rootfs));
    expect(error.code).toBe('VOLUME_REFUSED');
    expect(error.message).toMatch(/innocent \(\/proc\/\d+\) of the host host1: \/proc is the processes of the host/);
  });

  it('cannot be the checkpoints, also where these are known by a link', async () => {
    await mkdir(at('real', 'checkpoints'), { recursive: true });
    await symlink(at('real', 'checkpoints'), at('checkpoints'));
    for (const source of [at('checkpoints'), at('real', 'checkpoints'), at('real')]) {
      expect((await failure(volumes.mounts('web', [named(source)], rootfs))).code).toBe('VOLUME_REFUSED');
    }
  });

  it('are folders or files, nothing else', async () => {
    await writeFile(at('file'), '');
    await volumes.mounts('web', [named(at('file'), '/f')], rootfs);
    const socket = at('socket');
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(socket, resolve));
    try {
      expect((await failure(volumes.mounts('web', [named(socket, '/s')], rootfs))).message).toContain(
        'no folder or file',
      );
    } finally {
      server.close();
    }
  });
});
