import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { parseSettings, SETTINGS_KEYS } from '../../control-plane/config/settings.js';
import { loadSettings } from '../../control-plane/config/settings-source.js';
import { type InitlessError, toInitlessError } from '../../proto/rpc/errors.js';

function faults(text: string): string[] {
  try {
    parseSettings(text, 'settings.yaml');
  } catch (error) {
    return (error as InitlessError).violations.map((one) => one.description);
  }
  return [];
}

describe('settings.yaml', () => {
  it('of the original project is taken as it is, with warnings for what has no effect', () => {
    const { settings, warnings } = parseSettings(
      `
redis_port: #The port of redis
    6380
redis_host: #The ip address of redis
    "0.0.0.0"
runc_watchdog_host:
    "0.0.0.0"
runc_watchdog_port_base: #OFFSET added to the port
    10000
reserved_ports:
  [10000,20000]
code_dir:
    "/home/sample"
checkpoint_dir:
    "/home/checkpoint"
recycle_workers:
    4
pre_start_pool_size:
    2
max_pool_size:
    4
pre_start_timeout: #Must be lower than 24*60.
    15
idle_timeout:
    1
health_check_timeout:
    10
max_concurrency:
    100
`,
      'settings.yaml',
    );
    expect(settings).toMatchObject({
      reservedPorts: [10_000, 20_000],
      codeDir: '/home/sample',
      checkpointDir: '/home/checkpoint',
      recycleWorkers: 4,
      pool: { pre_start_pool_size: 2, max_pool_size: 4, pre_start_timeout: 15, idle_timeout: 1, max_concurrency: 100 },
    });
    expect(warnings.map((warning) => warning.split(' ')[1])).toEqual([
      'runc_watchdog_host:',
      'runc_watchdog_port_base:',
      'checkpoint_dir:',
    ]);
  });

  // Every key wrong in turn, on line 2.
  const WRONG: [key: string, written: string, expected: string][] = [
    ['redis_port', '0', 'a port'],
    ['redis_host', '7', 'a host name'],
    ['runc_watchdog_host', '[]', 'a host name'],
    ['runc_watchdog_port_base', 'x', 'a whole number'],
    ['reserved_ports', '[20000, 10000]', 'two ports'],
    ['code_dir', '{a: 1}', 'a folder'],
    ['checkpoint_dir', '../x', 'an absolute folder'],
    ['recycle_workers', '0', 'a whole number'],
    ['pre_start_pool_size', 'automatic', 'a whole number of instances from 0 to 10000, or "auto"'],
    ['max_pool_size', '0', 'a whole number'],
    ['pre_start_timeout', '1440', 'minutes above 0 and below 1440'],
    ['idle_timeout', '"1"', 'minutes above 0'],
    ['health_check_timeout', '0', 'seconds above 0'],
    ['start_timeout', 'null', 'seconds above 0'],
    ['hang_timeout', '-1', 'seconds from 0'],
    ['max_concurrency', '-3', 'a whole number'],
    ['queue_timeout', 'true', 'seconds above 0'],
    ['queue_limit', '0', 'a whole number'],
    ['spread', '0', 'a whole number of hosts'],
    ['host_timeout', '7', 'seconds from 8'],
    ['keep_revisions', '-1', 'a whole number of revisions'],
    ['copy_rate', '0', 'megabytes per second from 1'],
  ];

  it.each(WRONG)('names file, line, key, what was found and what is expected: %s', (key, written, expected) => {
    const [only, ...more] = faults(`# settings\n${key}: ${written}\n`);
    expect(only).toMatch(new RegExp(`^settings\\.yaml:2: ${key}: found .+, expected ${expected}`));
    expect(more).toEqual([]);
  });

  it('is tested here for every key there is', () => {
    expect(SETTINGS_KEYS.filter((key) => !WRONG.some(([tested]) => tested === key))).toEqual([]);
  });

  it.each([
    ['"20000-20999"', [20_000, 20_999]],
    ['20000 - 20999', [20_000, 20_999]],
    ['[3000, 4000]', [3_000, 4_000]],
  ])('takes reserved_ports as %s', (written, ports) => {
    expect(parseSettings(`reserved_ports: ${written}\n`, 's').settings.reservedPorts).toEqual(ports);
  });

  it.each(['[1, 2, 3]', '[7000, 8000]', '5-5', '[70000, 80000]', '8000'])(
    'does not take reserved_ports as %s',
    (written) => {
      expect(faults(`reserved_ports: ${written}\n`)[0]).toContain('expected two ports');
    },
  );

  it('may be empty, or all comments', () => {
    expect(parseSettings('', 's').settings).toEqual(parseSettings(undefined, 's').settings);
    expect(parseSettings('# idle_timeout: 3\n\n', 's').warnings).toEqual([]);
  });

  it('suggests the key that was meant', () => {
    expect(faults('max_pool: 3\nidle-timeout: 4\n')).toEqual([
      'settings.yaml:1: max_pool: found a key that is not known, expected "max_pool_size", perhaps',
      'settings.yaml:2: idle-timeout: found a key that is not known, expected "idle_timeout", perhaps',
    ]);
    expect(faults('zzz: 1\n')[0]).toContain('expected one of redis_port, redis_host');
  });
});

describe('the settings in force', () => {
  let cwd: string;
  beforeEach(async () => {
    cwd = await mkdtemp(join(tmpdir(), 'initless-settings-'));
  });
  afterEach(() => rm(cwd, { recursive: true }));

  it('come from flags, then the environment, then the file, then the defaults', async () => {
    await mkdir(join(cwd, 'etc'));
    const settingsPath = join(cwd, 'etc', 'mine.yaml');
    await writeFile(settingsPath, 'code_dir: services\nidle_timeout: 1\nmax_pool_size: 5\n');
    const file = await loadSettings({ settingsPath, env: {}, cwd });
    expect(file.settings).toMatchObject({ codeDir: join(cwd, 'etc', 'services'), pool: { idle_timeout: 1 } });
    expect(file.file).toBe(settingsPath);
    const env = { INITLESS_CODE_DIR: 'from-env', INITLESS_IDLE_TIMEOUT: '2.5', INITLESS_RESERVED_PORTS: '3000-4000' };
    const environment = await loadSettings({ settingsPath, env, cwd });
    expect(environment.settings).toMatchObject({
      codeDir: join(cwd, 'from-env'),
      reservedPorts: [3_000, 4_000],
      pool: { idle_timeout: 2.5, max_pool_size: 5 },
    });
    expect((await loadSettings({ settingsPath, codeDir: 'flag', env, cwd })).settings.codeDir).toBe(join(cwd, 'flag'));
  });

  it('are looked for in the working folder, and named when a named file is missing', async () => {
    expect((await loadSettings({ env: {}, cwd })).settings.pool.idle_timeout).toBe(5);
    await writeFile(join(cwd, 'settings.yaml'), 'idle_timeout: 9\n');
    expect((await loadSettings({ env: {}, cwd })).settings.pool.idle_timeout).toBe(9);
    const error = toInitlessError(
      await loadSettings({ settingsPath: 'no.yaml', env: {}, cwd }).catch((thrown) => thrown),
    );
    expect(error.code).toBe('NOT_FOUND');
    expect(error.message).toContain(join(cwd, 'no.yaml'));
  });

  it('name the environment variable that is wrong', async () => {
    const error = toInitlessError(
      await loadSettings({ env: { INITLESS_MAX_POOL_SIZE: 'many' }, cwd }).catch((thrown: unknown) => thrown),
    );
    expect(error.code).toBe('BAD_CONFIG');
    expect(error.message).toContain('INITLESS_MAX_POOL_SIZE');
  });
});
