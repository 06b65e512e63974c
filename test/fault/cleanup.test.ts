import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { copyOf, deploy, untilListening } from '../e2e/deploy.js';
import {
  asJson,
  CONTAINER,
  getJson,
  HOST,
  initlessWith,
  inspect,
  mustRun,
  PORT_BASE,
  PROJECT,
  projectEnv,
  run,
  STATE_DIR,
  until,
  wokenBy,
} from '../e2e/support.js';

/** A service whose instance runs while all of it is taken down. */
const LAST = { name: 'last', url: 'http://localhost:8279' };
/** Another project on this machine, and things that are nobody's of ours. */
const OTHER = 'initless-other';
const STRANGER = 'initless-stranger';

interface Owned {
  kind: string;
  name: string;
}

beforeAll(async () => {
  await removeStranger();
  await deploy(await copyOf('state', { service_name: LAST.name, host_port: 8279, idle_timeout: 3 }));
  expect((await run('docker', ['volume', 'create', STRANGER])).code).toBe(0);
  // It runs, so that `down` does not stop an engine that was started for the tests: what is left must be seen.
  const created = await run('docker', [
    'run',
    '--detach',
    '--name',
    STRANGER,
    '--volume',
    `${STRANGER}:/data`,
    'debian:trixie-slim',
    'sleep',
    '3600',
  ]);
  expect(created.code, created.stderr).toBe(0);
});

afterAll(removeStranger);

async function removeStranger(): Promise<void> {
  await run('docker', ['rm', '--force', STRANGER]);
  await run('docker', ['volume', 'rm', '--force', STRANGER]);
}

async function strangerIsThere(): Promise<boolean> {
  const found = [await run('docker', ['inspect', STRANGER]), await run('docker', ['volume', 'inspect', STRANGER])];
  return found.every(({ code }) => code === 0);
}

/** Whatever the engine has of a kind that carries a project's label. */
async function labelled(kind: 'container' | 'network' | 'volume', project: string): Promise<string[]> {
  const all = kind === 'container' ? ['--all'] : [];
  const { stdout } = await run('docker', [
    kind,
    'ls',
    ...all,
    '--quiet',
    '--filter',
    `label=initless.project=${project}`,
  ]);
  return stdout.split('\n').filter((line) => line !== '');
}

/** Cgroups of a project, in every hierarchy of the machine. */
function cgroupsOf(project: string): string[] {
  const root = '/sys/fs/cgroup';
  return ['', ...readdirSync(root)].map((name) => `${root}/${name}/${project}`).filter((path) => existsSync(path));
}

/** Processes of the machine that lie in a project's cgroups, or are told its name or its folder. */
function processesOf(project: string): string[] {
  const found: string[] = [];
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)) {
    try {
      const cgroups = readFileSync(`/proc/${pid}/cgroup`, 'utf8');
      const command = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
      const named = command.includes(`--project ${project} `) || command.includes(`/var/lib/initless/${project}/`);
      if (named || cgroups.includes(`:/${project}/`)) found.push(`${pid} ${command}`);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'ENOENT' && code !== 'ESRCH') throw error;
    }
  }
  return found;
}

/** Network interfaces of the machine by name. */
async function interfaces(): Promise<string[]> {
  const links = JSON.parse((await run('ip', ['-json', 'link', 'show'])).stdout) as { ifname: string }[];
  return links.map(({ ifname }) => ifname).sort();
}

/** Mounts of the machine that have to do with a project. */
function mountsOf(project: string): string[] {
  return readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .filter((line) => line.includes(`/${project}/`) || line.includes(`/${project}-`));
}

describe('initless clean', () => {
  it('--dry-run lists what is of the project, and removes nothing', async () => {
    const owned = JSON.parse(await mustRun('clean', '--dry-run', '-o', 'json')) as Owned[];
    const names = (kind: string) => owned.filter((each) => each.kind === kind).map(({ name }) => name);
    expect(names('container')).toEqual([CONTAINER]);
    expect(names('network')).toEqual([PROJECT]);
    expect(names('volume')).toEqual([`${CONTAINER}-docker`]);
    expect(names('process').sort()).toEqual(['control-plane', 'gateway', 'supervisor']);
    expect(names('folder')).toEqual([STATE_DIR]);
    expect(names('cgroup').sort()).toEqual(cgroupsOf(PROJECT).sort());
    expect(owned.filter(({ name }) => name.includes(STRANGER))).toEqual([]);
    expect(await labelled('container', PROJECT)).toHaveLength(1);
    await wokenBy(LAST.name, () => getJson(LAST.url));
  });

  it('removes exactly what is of its project: not a stranger, not another project', async () => {
    const env = projectEnv(OTHER, PORT_BASE + 100);
    const up = await initlessWith({ env, cwd: '/' }, 'up');
    expect(up.code, up.stderr).toBe(0);
    expect(await labelled('network', OTHER)).toHaveLength(1);
    const cleaned = await initlessWith({ env }, '-clean', '-o', 'json');
    expect(cleaned.code, cleaned.stderr).toBe(0);
    const kinds = (JSON.parse(cleaned.stdout) as Owned[]).map(({ kind }) => kind);
    expect(kinds.filter((kind) => kind !== 'image').sort()).toEqual([
      'folder',
      'network',
      'process',
      'process',
      'process',
    ]);

    expect(await labelled('network', OTHER)).toEqual([]);
    expect(existsSync(`/var/lib/initless/${OTHER}`)).toBe(false);
    expect(processesOf(OTHER)).toEqual([]);
    expect(await strangerIsThere()).toBe(true);
    await wokenBy(LAST.name, () => getJson(LAST.url));
  });
});

describe('initless down, while an instance runs,', () => {
  let checkpoint = '';

  it('leaves nothing but images, volumes and the state folder', async () => {
    checkpoint = await checkpointTime();
    await wokenBy(LAST.name, () => getJson(LAST.url));
    const id = (await run('docker', ['network', 'inspect', '--format', '{{slice .Id 0 12}}', PROJECT])).stdout.trim();
    expect(await interfaces()).toContain(`br-${id}`);
    await mustRun('down');
    expect(await labelled('container', PROJECT)).toEqual([]);
    expect(await labelled('network', PROJECT)).toEqual([]);
    expect(await interfaces()).not.toContain(`br-${id}`);
    expect(processesOf(PROJECT)).toEqual([]);
    expect(cgroupsOf(PROJECT)).toEqual([]);
    expect(mountsOf(PROJECT)).toEqual([]);
    expect((await run('ip', ['netns', 'list'])).stdout.split('\n').filter((line) => /^il\d+/.test(line))).toEqual([]);
    await expect(getJson(LAST.url)).rejects.toThrow(/ECONNREFUSED/);

    expect(await labelled('volume', PROJECT)).toHaveLength(1);
    expect(existsSync(STATE_DIR)).toBe(true);
    expect(await strangerIsThere()).toBe(true);
  });

  it('a second time finds nothing to do', async () => {
    expect(await mustRun('down')).toMatch(/is down/);
  });

  it('is made up for by host up and up: the services are back, with the checkpoints they had', {
    timeout: 180_000,
  }, async () => {
    await mustRun('host', 'up', HOST);
    await mustRun('up');
    await until(`${LAST.name} to be ready`, async () => (await inspect(LAST.name)).state === 'SERVICE_STATE_READY');
    await untilListening(LAST.name);
    await wokenBy(LAST.name, () => getJson(LAST.url));
    expect(await checkpointTime()).toBe(checkpoint);
  });
});

async function checkpointTime(): Promise<string> {
  const [found] = await asJson<{ createdAt: string }[]>('checkpoint', 'ls', '--service', LAST.name);
  return found?.createdAt ?? '';
}
