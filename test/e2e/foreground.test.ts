import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { withDeadline } from '../../proto/rpc/deadline.js';
import { initlessWith, PORT_BASE, projectEnv, ROOT, request, run, until, WORKSPACE } from './support.js';

/** A project of its own without any host: control plane and gateway as one would run them in two terminals. */
const FIRST_PORT = PORT_BASE + 200;
const FOLDER = path.join(WORKSPACE, 'foreground');
const ENV = projectEnv('initless-foreground', FIRST_PORT);

/** A command in the foreground, with what it has printed. */
class Foreground {
  readonly child: ChildProcess;
  readonly ended: Promise<unknown[]>;
  output = '';

  constructor(...args: string[]) {
    const launcher = path.join(ROOT, 'control-plane/cli/initless.mjs');
    this.child = spawn(process.execPath, [launcher, ...args], { env: ENV, cwd: FOLDER });
    this.ended = once(this.child, 'exit');
    for (const stream of [this.child.stdout, this.child.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => {
        this.output += text;
      });
    }
  }
}

const running: Foreground[] = [];

beforeAll(async () => {
  await mkdir(FOLDER, { recursive: true });
  running.push(new Foreground('control-plane', '--state-dir', path.join(FOLDER, 'state')), new Foreground('gateway'));
});

afterAll(async () => {
  for (const { child, ended } of running) {
    child.kill('SIGKILL');
    await ended;
  }
});

it('control plane and gateway run in the foreground and get ready', async () => {
  for (const port of [FIRST_PORT + 1, FIRST_PORT + 4]) {
    for (const page of ['healthz', 'readyz']) {
      await until(`http://localhost:${port}/${page} to answer 200`, async () => {
        return (await request(`http://127.0.0.1:${port}/${page}`)).status === 200;
      });
    }
  }
  for (const { output } of running) expect(output).not.toBe('');
  const listed = await initlessWith({ env: ENV }, 'service', 'ls', '-o', 'json');
  expect(JSON.parse(listed.stdout)).toEqual([]);
});

it('a second control plane on the same ports is refused, with what to do', async () => {
  const ran = await initlessWith({ env: ENV, cwd: FOLDER }, 'control-plane', '--state-dir', path.join(FOLDER, 'other'));
  expect(ran.code).toBe(1);
  expect(ran.stdout + ran.stderr).toMatch(new RegExp(`cannot listen on .*:${FIRST_PORT}`));
  expect(ran.stdout + ran.stderr).toContain('ss -ltnp');
});

it('a service is taken in without a host, and says what it waits for', async () => {
  const folder = path.join(ROOT, 'test/e2e/services/state');
  const applied = await initlessWith({ env: ENV }, 'service', 'apply', folder);
  expect(applied.code, applied.stderr).toBe(0);
  const inspected = await initlessWith({ env: ENV }, 'service', 'inspect', 'state');
  expect(inspected.stdout).toMatch(/no host is connected/);
  expect(inspected.stdout).toContain('initless host up');
});

it('Ctrl-C ends both within seconds, with nothing left of them', async () => {
  for (const { child } of [...running].reverse()) child.kill('SIGINT');
  for (const { ended } of running) {
    const [code] = await withDeadline(15_000, 'a command to end after Ctrl-C', undefined, () => ended);
    expect([0, 130]).toContain(code);
  }
  const { stdout } = await run('ss', ['-ltnH', `( sport >= :${FIRST_PORT} and sport <= :${FIRST_PORT + 4} )`]);
  expect(stdout).toBe('');
});

it('what needs root says so to whoever is not', async () => {
  const launcher = path.join(ROOT, 'control-plane/cli/initless.mjs');
  const args = ['--reuid=65534', '--regid=65534', '--clear-groups', process.execPath, launcher];
  for (const command of [['host', 'up', 'mine'], ['up'], ['down']]) {
    const ran = await run('setpriv', [...args, ...command], { env: ENV, cwd: '/' });
    expect(ran.code).toBe(1);
    expect(ran.stderr).toMatch(/needs root/);
  }
});
