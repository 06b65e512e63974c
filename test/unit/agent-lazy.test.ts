import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { fillerCgroup, LazyPages } from '../../agent/runtime/lazy.js';
import { isAlive, type ProcessId } from '../../agent/runtime/process.js';
import { type InstanceFolder, instanceFolder } from '../../agent/runtime/rootfs.js';
import type { InitlessError } from '../../proto/rpc/errors.js';

/** Stands in for CRIU: does what `lazy-pages --daemon` does with its arguments; the daemon ends when the test says so. */
const PROGRAM = `#!/bin/sh
printf '%s\\n' "$@" > "$FOLDER/arguments"
while [ $# -gt 0 ]; do
  case $1 in --pidfile) pid=$2;; --work-dir) work=$2;; esac
  shift
done
case $(cat "$FOLDER/mode") in
  fails) echo '(00.1) Error (criu/uffd.c:1): UFFD is not there' > "$work/lazy-pages.log"; exit 1;;
  gone) sh -c 'exit 0' & wait $!; echo $! > "$pid"; exit 0;;
  hangs) exec sleep 600;;
esac
sleep 600 > /dev/null 2>&1 &
echo $! > "$pid"
`;

describe('the daemon that fills an instance', () => {
  let dir: string;
  let folder: InstanceFolder;
  let lazy: LazyPages;
  const groups: string[] = [];
  /** How daemons ended, by process id, as the host's reaper would note it. */
  const statuses = new Map<number, string>();
  const started: ProcessId[] = [];

  beforeEach(async () => {
    dir = await mkdtemp(path.join(tmpdir(), 'initless-lazy-'));
    folder = instanceFolder(dir, 'web-1');
    await mkdir(folder.work, { recursive: true });
    const program = path.join(dir, 'criu');
    await writeFile(program, PROGRAM.replaceAll('$FOLDER', dir));
    await chmod(program, 0o755);
    await writeFile(path.join(dir, 'mode'), 'works');
    groups.length = 0;
    statuses.clear();
    lazy = new LazyPages({
      program,
      log: pino({ level: 'silent' }),
      exits: {
        watch: (_id, process, onEnd) => {
          const timer = setInterval(() => {
            if (isAlive(process)) return;
            clearInterval(timer);
            onEnd();
          }, 5);
          return () => clearInterval(timer);
        },
        statusOf: async ({ pid }) => statuses.get(pid),
      },
      cgroups: {
        make: async (name) => {
          groups.push(`make ${name}`);
          return path.join(dir, 'procs');
        },
        remove: async (name) => void groups.push(`remove ${name}`),
      },
    });
  });
  afterEach(async () => {
    for (const daemon of started.splice(0)) if (isAlive(daemon)) process.kill(daemon.pid, 'SIGKILL');
    await rm(dir, { recursive: true, force: true });
  });

  const start = async () => {
    const daemon = await lazy.start('web-1', '/images', folder);
    started.push(daemon);
    return daemon;
  };
  const end = (daemon: ProcessId, status?: string) => {
    if (status) statuses.set(daemon.pid, status);
    process.kill(daemon.pid, 'SIGKILL');
  };

  it('is started for its images and its working folder, in a cgroup of its own', async () => {
    const daemon = await start();
    expect(isAlive(daemon)).toBe(true);
    expect(groups).toEqual([`make ${fillerCgroup('web-1')}`]);
    expect(await readFile(path.join(dir, 'procs'), 'utf8')).toMatch(/^\d+\n$/);
    expect((await readFile(path.join(dir, 'arguments'), 'utf8')).trim().split('\n')).toEqual([
      'lazy-pages',
      '--daemon',
      '--pidfile',
      path.join(folder.work, 'lazy-pages.pid'),
      '--log-file',
      'lazy-pages.log',
      '--images-dir',
      '/images',
      '--work-dir',
      folder.work,
    ]);
  });

  it('that cannot be started says why in its own words', async () => {
    await writeFile(path.join(dir, 'mode'), 'fails');
    await expect(start()).rejects.toMatchObject({
      code: 'RESTORE_FAILED',
      subject: 'web-1',
      message: expect.stringMatching(/fills the memory of web-1 could not be started: .*: .*UFFD is not there/),
    });
    await writeFile(path.join(dir, 'mode'), 'gone');
    await expect(start()).rejects.toThrow(/ended at once/);
  });

  it('that does not come up is given up with whoever waits for it', async () => {
    await writeFile(path.join(dir, 'mode'), 'hangs');
    const stop = AbortSignal.timeout(50);
    await expect(lazy.start('web-1', '/images', folder, stop)).rejects.toMatchObject({ name: 'TimeoutError' });
  });

  it('has filled the memory when it ends with 0, and its cgroup goes', async () => {
    const daemon = await start();
    const filled = lazy.filled('web-1', folder, { daemon, timeoutMs: 10_000 });
    end(daemon, 'exit code 0');
    await filled;
    await expect.poll(() => groups).toEqual(['make web-1.lazy', 'remove web-1.lazy']);
  });

  it.each([
    ['killed by SIGKILL', /ended before it had filled it \(killed by SIGKILL\)/],
    ['exit code 1', /ended before it had filled it \(exit code 1\): .*no page/],
    [undefined, /ended before it had filled it \(nobody knows how\)/],
  ])('has not filled it when its end is: %s', async (status, message) => {
    const daemon = await start();
    if (status === 'exit code 1') {
      await writeFile(path.join(folder.work, 'lazy-pages.log'), '(00.2) Error (criu/uffd.c:2): no page\n');
    }
    const filled = lazy.filled('web-1', folder, { daemon, timeoutMs: 10_000 });
    end(daemon, status);
    await expect(filled).rejects.toMatchObject({ code: 'RESTORE_FAILED', message: expect.stringMatching(message) });
  });

  it('is found to have ended also by whoever watches it only then', async () => {
    const daemon = await start();
    end(daemon, 'exit code 0');
    await expect.poll(() => isAlive(daemon)).toBe(false);
    await lazy.filled('web-1', folder, { daemon, timeoutMs: 10_000 });
  });

  it('may take only so long', async () => {
    const daemon = await start();
    await expect(lazy.filled('web-1', folder, { daemon, timeoutMs: 30 })).rejects.toThrow(
      /has not filled it within 30 ms/,
    );
    expect(isAlive(daemon)).toBe(true);
  });

  it('goes on when nobody watches it any more, and tells nobody', async () => {
    const daemon = await start();
    const ends: (InitlessError | undefined)[] = [];
    const stop = lazy.watch('web-1', folder, { daemon, timeoutMs: 10_000 }, (failure) => ends.push(failure));
    const over = new AbortController();
    const filled = lazy.filled('web-1', folder, { daemon, timeoutMs: 10_000 }, over.signal);
    stop();
    over.abort(new Error('enough'));
    await expect(filled).rejects.toThrow('enough');
    expect(isAlive(daemon)).toBe(true);
    end(daemon, 'exit code 0');
    await expect.poll(() => isAlive(daemon)).toBe(false);
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect(ends).toEqual([]);
  });
});
