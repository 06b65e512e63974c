import { spawn } from 'node:child_process';
import { appendFileSync, existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { partStatuses, stopSupervisor } from '../../control-plane/cli/supervisor/control.js';
import { type Plan, RunFiles } from '../../control-plane/cli/supervisor/files.js';
import {
  identityOf,
  isAlive,
  type ProcessIdentity,
  parseStat,
  signalProcess,
} from '../../control-plane/cli/supervisor/process-identity.js';
import { rotateLog } from '../../control-plane/cli/supervisor/rotate-log.js';
import { supervise } from '../../control-plane/cli/supervisor/supervise.js';

const NEVER = new AbortController().signal;
let folder: string;
let files: RunFiles;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'initless-run-'));
  files = new RunFiles(folder);
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const own = () => identityOf(process.pid) as ProcessIdentity;

describe('a process is known by more than its number', () => {
  test('the start time is read past a name with blanks and parentheses', () => {
    const rest = `S ${Array.from({ length: 18 }, (_, n) => n).join(' ')} 4711 0 0`;
    expect(parseStat(`42 (a) b (c) ${rest}`)).toEqual({ state: 'S', start: '4711' });
    expect(parseStat('garbage')).toBeUndefined();
  });

  test('one that runs is alive; the same number with another start or boot is not', () => {
    expect(isAlive(own())).toBe(true);
    expect(isAlive({ ...own(), start: '1' })).toBe(false);
    expect(isAlive({ ...own(), boot: 'another' })).toBe(false);
  });

  test('a process that is not there any more is not, and gets no signal', () => {
    const gone = { ...own(), start: '1' };
    expect(signalProcess(gone, 'SIGKILL')).toBe(false);
    expect(identityOf(2 ** 22 + 1)).toBeUndefined();
  });
});

describe('the pid file', () => {
  test('can be claimed once', () => {
    expect(files.claim()).toBe(true);
    expect(files.claim()).toBe(false);
    expect(files.supervisor()).toEqual(own());
    files.release();
    expect(files.supervisor()).toBeUndefined();
  });

  test.each([
    ['of a process that has ended', () => JSON.stringify({ ...own(), pid: 2 ** 22 + 1 })],
    ['whose number another process has now', () => JSON.stringify({ ...own(), start: '1' })],
    ['that was cut off', () => '{"pid": 4'],
  ])('%s does not count, and is taken over', (_, content) => {
    writeFileSync(join(folder, 'supervisor.pid'), content());
    expect(files.supervisor()).toBeUndefined();
    expect(files.claim()).toBe(true);
  });
});

test('a log that has grown is copied and emptied; its writer goes on at the start', () => {
  const log = join(folder, 'x.log');
  for (const text of ['first', 'second', 'third', 'fourth', 'fifth']) {
    appendFileSync(log, text);
    expect(rotateLog(log, 5)).toBe(true);
  }
  expect(statSync(log).size).toBe(0);
  expect([1, 2, 3].map((n) => readFileSync(`${log}.${n}`, 'utf8'))).toEqual(['fifth', 'fourth', 'third']);
  expect(existsSync(`${log}.4`)).toBe(false);
  appendFileSync(log, 'abc');
  expect(rotateLog(log, 5)).toBe(false);
});

describe('supervision', () => {
  const part = (name: string, script: string) => ({
    name,
    args: ['-e', script],
    readyUrl: 'http://127.0.0.1:1/readyz',
  });
  const plan = (...parts: Plan['parts']): Plan => ({ parts, build: '', settings: undefined, codeDir: undefined });
  const IDLE = 'setInterval(() => {}, 1000)';

  test('a part that ends is started again, and how it ended is kept', async () => {
    const controller = new AbortController();
    const running = supervise(plan(part('a', 'process.exit(3)')), files, controller.signal, () => {});
    await expect.poll(() => files.readStates()[0]?.restarts, { timeout: 10_000 }).toBeGreaterThanOrEqual(2);
    expect(files.readStates()[0]?.lastEnd).toBe('ended with code 3');
    controller.abort();
    await running;
    expect(files.readStates()[0]?.process).toBeUndefined();
  });

  test('parts are stopped in the opposite order of their starts', async () => {
    const said: string[] = [];
    const controller = new AbortController();
    const running = supervise(plan(part('a', IDLE), part('b', IDLE)), files, controller.signal, (line) =>
      said.push(line),
    );
    await expect.poll(() => files.readStates().filter(({ process }) => process).length).toBe(2);
    const processes = files.readStates().map(({ process }) => process as ProcessIdentity);
    controller.abort();
    await running;
    expect(said.filter((line) => line.includes('was ended')).map((line) => line[0])).toEqual(['b', 'a']);
    expect(processes.some(isAlive)).toBe(false);
  });

  test('parts that a killed supervisor left behind are seen and ended', async () => {
    const child = spawn(process.execPath, ['-e', IDLE], { stdio: 'ignore' });
    const left = identityOf(child.pid as number);
    files.writePlan(plan(part('a', IDLE)));
    files.writeStates([{ name: 'a', process: left, since: '', restarts: 0, lastEnd: '' }]);
    expect((await partStatuses(files))[0]).toMatchObject({ name: 'a', process: left, ready: false });
    expect(await stopSupervisor(files, NEVER)).toBe(true);
    expect((await partStatuses(files))[0]).toMatchObject({ process: undefined });
    expect(await stopSupervisor(files, NEVER)).toBe(false);
  });
});
