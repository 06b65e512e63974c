import { beforeAll, describe, expect, it } from 'vitest';
import { apply, copyOf, untilListening } from './deploy.js';
import { events, getJson, initless, inspect, wokenBy } from './support.js';

/** Address that every instance sees as its own, whichever sandbox it is in. */
const OWN_ADDRESS = '10.201.0.2';

/** Services whose processes have something that is easily lost between dump and restore, and what each must say. */
const SERVICES: Record<string, { port: number; keeps: string; says: Record<string, unknown> }> = {
  state: {
    port: 8109,
    keeps: 'what it had in memory and on its disk at the dump',
    says: { token: expect.stringMatching(/^[0-9a-f]{32}$/), pid: 1, requests: 1, notes: [''] },
  },
  user: {
    port: 8101,
    keeps: "the image's USER, its group and its own files",
    says: {
      uid: [4242, 4242, 4242],
      gid: [4242, 4242, 4242],
      groups: [4242],
      owner: 4242,
      may_write_root: false,
    },
  },
  shell: {
    port: 8102,
    keeps: 'a shell as process 1 with the server as its child',
    says: { process_1: 'sh', parent: 1, pid: expect.any(Number) },
  },
  tini: {
    port: 8103,
    keeps: 'the ENTRYPOINT as process 1, with start_cmd in place of CMD',
    says: { process_1: 'tini', parent: 1, arguments: ['from-start-cmd'] },
  },
  volume: {
    port: 8104,
    keeps: "its VOLUME with the image's files and those written before the dump",
    says: { image: 'from the image', started: expect.stringMatching(/^[0-9a-f]{16}$/), requests: 1 },
  },
  lock: { port: 8105, keeps: 'its flock and its fcntl lock', says: { flock: true, fcntl: true } },
  udp: {
    port: 8106,
    keeps: 'both ends of a connected UDP socket',
    says: { own: [OWN_ADDRESS, expect.any(Number)], peer: ['192.0.2.1', 9] },
  },
  ownaddr: {
    port: 8107,
    keeps: "a listener on its container's own address",
    says: { listens_on: OWN_ADDRESS, host_name: 'ownaddr' },
  },
  go: {
    port: 8108,
    keeps: 'the threads and the heap of a Go server',
    says: { heap_bytes: 50 * 1024 * 1024, at_start: expect.any(Number), now: expect.any(Number) },
  },
};

const NAMES = Object.keys(SERVICES);

function url(service: string, path = '/'): string {
  return `http://localhost:${SERVICES[service]?.port}${path}`;
}

beforeAll(async () => {
  // Images are built and processes dumped beside each other meanwhile.
  for (const name of NAMES) {
    const ran = await initless('service', 'apply', await copyOf(name));
    if (ran.code !== 0) throw new Error(ran.stderr);
  }
});

describe('service apply --wait', () => {
  it.each(NAMES)(
    'makes %s ready, with a sealed checkpoint whose digests are right',
    { timeout: 600_000 },
    async (name) => {
      const ran = await apply(await copyOf(name));
      expect(ran.code, ran.stderr).toBe(0);
      const service = await inspect(name);
      expect(service.state).toBe('SERVICE_STATE_READY');
      expect(service.problem).toBeUndefined();
      const verified = await initless('checkpoint', 'inspect', name, '--verify', '-o', 'json');
      expect(verified.code, verified.stderr).toBe(0);
      const checkpoint = JSON.parse(verified.stdout) as { files: { path: string; digest: string }[]; revision: string };
      expect(checkpoint.revision).toBe(service.current?.id);
      expect(checkpoint.files.map(({ path }) => path)).toContain('criu/inventory.img');
      for (const { digest } of checkpoint.files) expect(digest).toMatch(/^sha256:[0-9a-f]{64}$/);
      await untilListening(name);
    },
  );
});

describe('the first request to a sleeping service', () => {
  it.each(NAMES.map((name) => ({ name, ...SERVICES[name] })))(
    'wakes a restored $name, which keeps $keeps',
    async ({ name, says }) => {
      const { answer, instance } = await wokenBy(name, () => getJson(url(name)));
      expect(answer).toEqual(says);
      expect(instance.state).toBe('INSTANCE_STATE_RUNNING');
    },
  );

  it('finds the same state at each restore', async () => {
    const first = await wokenBy('state', () => getJson(url('state', '/?note=mine')));
    expect(first.answer).toMatchObject({ requests: 1, notes: ['mine'] });
    const second = await wokenBy('state', () => getJson(url('state', '/?note=yours')));
    expect(second.answer).toEqual({ ...first.answer, notes: ['yours'] });
    expect(second.instance.id).not.toBe(first.instance.id);
  });

  it('finds the heap of the Go server unchanged', async () => {
    const { answer } = await wokenBy('go', () => getJson(url('go')));
    expect(answer.now).toBe(answer.at_start);
  });

  it("finds the UDP socket's own port unchanged", async () => {
    const first = await wokenBy('udp', () => getJson(url('udp')));
    const second = await wokenBy('udp', () => getJson(url('udp')));
    expect(second.answer).toEqual(first.answer);
  });

  it('is answered by an instance whose volume no other instance shares', async () => {
    const { answer: before } = await wokenBy('volume', () => getJson(url('volume')));
    const both = await Promise.all([1, 2].map(() => getJson(url('volume', '/?ms=1500'))));
    // One request each: that of the instance which is there already is its second one.
    expect(both.map(({ requests }) => requests).sort()).toEqual([1, 2]);
    for (const { started } of both) expect(started).toBe(before.started);
  });
});

it('starts none of them cold', async () => {
  const all = await Promise.all(NAMES.map(events));
  const born = all.flat().filter(({ kind }) => kind === 'instance.running');
  expect(born.length).toBeGreaterThanOrEqual(NAMES.length);
  expect(born.filter(({ origin }) => origin !== 'ORIGIN_RESTORED')).toEqual([]);
});
