import { readFile, rename, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parseDocument } from 'yaml';
import { apply, change, copyOf, deploy } from './deploy.js';
import {
  type EventRow,
  events,
  getJson,
  goneOf,
  HOST,
  type InstanceRow,
  inspect,
  instances,
  mustRun,
  onHost,
  request,
  services,
  sleepService,
  until,
  WORKSPACE,
  wokenBy,
} from './support.js';

/** What the service says of what it has of its host. */
interface Seen {
  seed: string;
  /** How often its process was started and not restored, since its volume was made. */
  starts: number;
  notes: string[];
  host: string;
  greeting: string;
}

/** A service with a named volume, a file of the host, limits and variables. */
const KEPT = { name: 'kept', url: 'http://localhost:8291' };
/** One that asks for paths of the host which it cannot have. */
const GUEST = { name: 'guest', url: 'http://localhost:8292' };
/** Where a host keeps named volumes, by service. */
const VOLUMES = '/var/lib/docker/initless/volumes';
/** A path that a host does not have by itself. */
const NOWHERE = '/srv/nowhere';
const SETTINGS = path.join(WORKSPACE, 'settings.yaml');
const MIB = 2 ** 20;

let folder = '';

beforeAll(async () => {
  // A run that was killed left them to its host, which removes them once the services are forgotten.
  await untilNoVolumes();
  folder = await copyOf('mounts', { service_name: KEPT.name, host_port: 8291, idle_timeout: 1 });
  await deploy(folder);
});

afterAll(async () => {
  const there = (await services()).map(({ config }) => config.serviceName);
  for (const { name } of [KEPT, GUEST]) if (there.includes(name)) await mustRun('service', 'rm', name);
  await untilNoVolumes();
  await onHost(`rm -rf ${NOWHERE} ${NOWHERE}.away`);
});

/** Waits until the host holds no named volume of the service. */
async function untilNoVolumes(): Promise<void> {
  await until(
    `the volumes of ${KEPT.name} to be gone`,
    async () => (await onHost(`test -e ${VOLUMES}/${KEPT.name} && echo there || echo gone`)) === 'gone\n',
  );
}

/** Wakes a restored instance of the current revision; its host is told of a new one a little after it is made. */
async function wokenAtCurrent(): Promise<{ answer: Seen; instance: InstanceRow }> {
  const { current } = await inspect(KEPT.name);
  return until(`an instance of revision ${current?.id} to answer`, async () => {
    const woken = await wokenBy(KEPT.name, () => getJson<Seen>(KEPT.url));
    return woken.instance.revision === current?.id && woken;
  });
}

/** What the kernel lets an instance have: memory in bytes, CPU time in microseconds of each tenth of a second. */
async function limitsOf(instance: string): Promise<{ memory: number; cpu: number }> {
  const text = await onHost(`
    cd /sys/fs/cgroup
    if [ -e cgroup.controllers ]; then
      cat initless/${instance}/memory.max
      cut -d ' ' -f 1 initless/${instance}/cpu.max
    else
      cat memory/initless/${instance}/memory.limit_in_bytes
      cat cpu/initless/${instance}/cpu.cfs_quota_us
    fi
  `);
  const [memory, cpu] = text.trim().split('\n').map(Number);
  return { memory: memory ?? 0, cpu: cpu ?? 0 };
}

/** Number of the last event, of whatever. */
async function lastSequence(): Promise<number> {
  return Number((await events('')).at(-1)?.sequence ?? 0);
}

/** What happened after an event, to one service or to all there is. */
async function eventsSince(sequence: number, service = ''): Promise<EventRow[]> {
  return (await events(service)).filter((event) => Number(event.sequence) > sequence);
}

/** Replaces the settings as an editor does, as a whole, and waits until the control plane has read them. */
async function useSettings(text: string): Promise<void> {
  const before = await lastSequence();
  await writeFile(`${SETTINGS}.new`, text);
  await rename(`${SETTINGS}.new`, SETTINGS);
  await until('the settings to be read again', async () =>
    (await eventsSince(before)).some(({ kind }) => kind === 'settings.loaded'),
  );
}

describe('a named volume', () => {
  it('begins with what the image has there, and has what one instance wrote for the next one', async () => {
    const first = await wokenBy(KEPT.name, () => getJson<Seen>(`${KEPT.url}/note?text=first`));
    expect(first.answer).toMatchObject({ seed: 'from the image', starts: 1, notes: ['first'] });
    await sleepService(KEPT.name);
    const second = await wokenBy(KEPT.name, () => getJson<Seen>(`${KEPT.url}/note?text=second`));
    expect(second.instance.id).not.toBe(first.instance.id);
    expect(second.answer).toMatchObject({ seed: 'from the image', starts: 1, notes: ['first', 'second'] });
  });

  it('stays when a variable is changed, which makes a new revision; spaces and "=" in variables arrive', async () => {
    const { answer: before, instance } = await wokenBy(KEPT.name, () => getJson<Seen>(KEPT.url));
    expect(before.greeting).toBe('hello = world');
    const greeting = ' two  spaces, a=b=, "quotes" and $HOME ';
    await change(folder, { env: { GREETING: greeting } });
    await deploy(folder);
    const after = await wokenAtCurrent();
    expect(after.instance.revision).not.toBe(instance.revision);
    expect(after.answer).toMatchObject({ greeting, seed: 'from the image', starts: 2, notes: ['first', 'second'] });
  });

  it('goes with its service, and begins anew when that is applied again', async () => {
    await mustRun('service', 'rm', KEPT.name);
    await untilNoVolumes();
    await deploy(folder);
    expect((await wokenAtCurrent()).answer).toMatchObject({ seed: 'from the image', starts: 1, notes: [] });
  });
});

describe('a mount', () => {
  it('shows a restored instance what the host has, and takes writes only where it is not read-only', async () => {
    const { answer } = await wokenBy(KEPT.name, () => getJson<Seen>(KEPT.url));
    const version = await onHost('cat /etc/debian_version');
    expect(answer.host).toBe(version.trim());
    expect(await getJson(`${KEPT.url}/write?path=/host/debian_version`)).toEqual({ write: 'EROFS' });
    expect(await onHost('cat /etc/debian_version')).toBe(version);
    expect(await getJson(`${KEPT.url}/write?path=/data/written`)).toEqual({ write: 'written' });
    expect(await onHost(`cat ${VOLUMES}/${KEPT.name}/data/written`)).toBe('x');
  });
});

describe('limits', () => {
  it('hold for a restored instance, and changed ones for the next, without a new revision or checkpoint', async () => {
    const { instance } = await wokenBy(KEPT.name, () => getJson<Seen>(KEPT.url));
    expect(await limitsOf(instance.id)).toEqual({ memory: 128 * MIB, cpu: 50_000 });
    const { current } = await inspect(KEPT.name);
    const before = await lastSequence();

    await change(folder, { memory_limit: '160m', cpus: 1.5 });
    await deploy(folder);
    await until('an instance to have the new limits', async () => {
      const { instance } = await wokenBy(KEPT.name, () => getJson<Seen>(KEPT.url));
      const { memory, cpu } = await limitsOf(instance.id);
      return memory === 160 * MIB && cpu === 150_000;
    });
    expect((await inspect(KEPT.name)).current).toEqual(current);
    const told = await eventsSince(before, KEPT.name);
    expect(told.filter(({ kind }) => kind === 'checkpoint.sealed' || kind === 'revision.preparing')).toEqual([]);
  });

  it('end an instance that takes more memory, which is told, and the next request is answered', async () => {
    const { instance } = await wokenBy(KEPT.name, () => getJson<Seen>(KEPT.url));
    // Sent again, since it is a GET, to two more instances that end in the same way.
    const { status, body } = await request(`${KEPT.url}/eat?mb=400`);
    expect(status).toBe(502);
    expect(JSON.parse(body)).toMatchObject({ error: { code: 'UPSTREAM_FAILED' } });
    expect(await goneOf(KEPT.name, instance.id)).toMatchObject({
      goneReason: 'GONE_REASON_OOM',
      origin: 'ORIGIN_RESTORED',
      problem: { message: expect.stringContaining('ended: the kernel killed it for want of memory') },
    });
    expect(await getJson<Seen>(KEPT.url)).toMatchObject({ seed: 'from the image' });
  });
});

describe('a path of the host', () => {
  let guest = '';
  const wanting = (volume: string) => [volume, '/etc/debian_version:/host/debian_version:ro'];

  it('that would give the host away is refused, with why', async () => {
    guest = await copyOf('mounts', {
      service_name: GUEST.name,
      host_port: 8292,
      idle_timeout: 1,
      volumes: wanting('/run/docker.sock:/docker.sock'),
    });
    const ran = await apply(guest);
    expect(ran.code).toBe(1);
    expect(ran.stderr).toContain(
      `${GUEST.name} must not have /run/docker.sock of the host ${HOST}: /run is the sockets of the host`,
    );
    expect(await inspect(GUEST.name)).toMatchObject({
      state: 'SERVICE_STATE_FAILED',
      problem: { code: 'VOLUME_REFUSED' },
    });
  });

  it('that is not there is told with host and path, and the service is made when it is there and applied again', async () => {
    await onHost(`rm -rf ${NOWHERE} ${NOWHERE}.away`);
    await change(guest, { volumes: wanting(`${NOWHERE}:/extra`) });
    const ran = await apply(guest);
    expect(ran.code).toBe(1);
    expect(ran.stderr).toContain(`${GUEST.name} wants ${NOWHERE}, and the host ${HOST} has no such path`);
    expect(ran.stderr).toContain(`initless host up ${HOST} --volume /path/on/the/machine:${NOWHERE}`);
    expect(await inspect(GUEST.name)).toMatchObject({
      state: 'SERVICE_STATE_FAILED',
      problem: { code: 'VOLUME_MISSING' },
    });

    await onHost(`mkdir -p ${NOWHERE}`);
    await deploy(guest);
    const { answer } = await wokenBy(GUEST.name, () => getJson(`${GUEST.url}/write?path=/extra/file`));
    expect(answer).toEqual({ write: 'written' });
    expect(await onHost(`cat ${NOWHERE}/file`)).toBe('x');
  });

  it('that is away for a time is told to who asks meanwhile; once it is back, instances are restored as before', async () => {
    await sleepService(GUEST.name);
    await onHost(`mv ${NOWHERE} ${NOWHERE}.away`);
    const { status, body } = await request(GUEST.url);
    expect(status).toBe(503);
    expect(JSON.parse(body)).toMatchObject({
      error: {
        code: 'VOLUME_MISSING',
        message: `${GUEST.name} wants ${NOWHERE}, and the host ${HOST} has no such path`,
      },
    });
    await onHost(`mv ${NOWHERE}.away ${NOWHERE}`);
    await wokenBy(GUEST.name, () => getJson<Seen>(GUEST.url));
  });
});

describe('reserved_ports in the settings file', () => {
  it('hold for the next instance when they are changed, while what runs keeps its port and nothing is restarted', async () => {
    const text = await readFile(SETTINGS, 'utf8');
    const changed = parseDocument(text);
    const [first, last] = [22_000, 22_009];
    changed.set('reserved_ports', [first, last]);
    const isNew = ({ address }: InstanceRow) => {
      const port = Number(address.split(':').at(-1));
      return port >= first && port <= last;
    };
    const { instance } = await wokenBy(KEPT.name, () => getJson<Seen>(KEPT.url));
    expect(isNew(instance)).toBe(false);
    const before = await lastSequence();
    try {
      await useSettings(changed.toString());
      expect(await getJson<Seen>(KEPT.url)).toMatchObject({ seed: 'from the image' });
      expect(await instances(KEPT.name)).toMatchObject([{ id: instance.id, address: instance.address }]);
      await until('an instance to have one of the new ports', async () =>
        isNew((await wokenBy(KEPT.name, () => getJson<Seen>(KEPT.url))).instance),
      );
      const links = (await eventsSince(before)).filter(({ kind }) => ['host.lost', 'host.connected'].includes(kind));
      expect(links).toEqual([]);
    } finally {
      await useSettings(text);
    }
  });
});
