import { execFileSync, spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';

const LAUNCHER = 'control-plane/cli/initless.mjs';
let root: string;

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'initless-launcher-'));
  mkdirSync(join(root, 'control-plane/cli'), { recursive: true });
  copyFileSync(LAUNCHER, join(root, LAUNCHER));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

const run = (...args: string[]) =>
  spawnSync(process.execPath, [join(root, LAUNCHER), ...args], { encoding: 'utf8', timeout: 20_000 });

/** Pretends that packages are installed and the program, which prints its arguments, is compiled. */
function compile(): void {
  mkdirSync(join(root, 'node_modules/commander'), { recursive: true });
  mkdirSync(join(root, 'dist/control-plane/cli'), { recursive: true });
  writeFileSync(join(root, 'package.json'), '{"type": "module"}');
  writeFileSync(join(root, 'dist/control-plane/cli/main.js'), 'console.log(process.argv.slice(2).join(" "))');
}

test('is executable, as a package command must be', () => {
  expect(() => execFileSync('test', ['-x', LAUNCHER])).not.toThrow();
});

test('without packages or compiled code it says which command makes them', () => {
  const bare = run('--help');
  expect(bare.status).toBe(1);
  expect(bare.stderr).toContain('npm packages are not installed');
  mkdirSync(join(root, 'node_modules/commander'), { recursive: true });
  const uncompiled = run('--help');
  expect(uncompiled.status).toBe(1);
  expect(uncompiled.stderr).toContain("run 'npm run setup'");
});

test('starts the program with all arguments, and says nothing else on stdout', () => {
  compile();
  const { status, stdout, stderr } = run('test', '-o', 'json');
  expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: 'test -o json\n', stderr: '' });
});

test('says when the sources are newer than what is compiled, and goes on', () => {
  compile();
  const source = join(root, 'control-plane/cli/main.ts');
  writeFileSync(source, '');
  utimesSync(source, new Date(), new Date(Date.now() + 60_000));
  const { status, stdout, stderr } = run('ls');
  expect({ status, stdout }).toEqual({ status: 0, stdout: 'ls\n' });
  expect(stderr).toContain("'npm run build'");
});
