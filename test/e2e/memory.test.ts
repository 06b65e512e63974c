import { writeFile } from 'node:fs/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { checkpointOf, type Deployed, deployHeap, onWire, type Part, twoInstances } from './heaps.js';
import { expectNothingWrong, expectOperationsRight, expectRightAllAlong, expectWholeHeap } from './memory.js';
import { getJson, initless, inspect, instances, mustRun, onHost, sleepService, until, wokenBy } from './support.js';

/** The memory file of the first process, below a checkpoint's folder. */
const FILE = 'memory/.initless/mem-1';

let areas: Deployed;
let copied: Deployed;
let forking: Deployed;
let lazy: Deployed;

beforeAll(async () => {
  [areas, copied, forking, lazy] = await Promise.all([
    deployHeap('areas', 'mapped', 8301, { max_concurrency: 1 }),
    deployHeap('areas', 'copied', 8302),
    deployHeap('forking', 'mapped', 8303),
    deployHeap('python', 'lazy', 8304),
  ]);
});

describe('mapped memory', () => {
  it('is what the checkpoint and its instances say they have', async () => {
    const { memory, files } = await checkpointOf(areas.name);
    expect(memory).toMatchObject({ mode: onWire('mapped'), guarded: true });
    expect(files.map(({ path }) => path)).toContain(FILE);
    const { instance } = await wokenBy(areas.name, () => expectWholeHeap(areas.url, areas.kind));
    expect(instance.memory).toBe(onWire('mapped'));
  });

  it('is right after everything that a process can do to it', async () => {
    await wokenBy(areas.name, () => expectOperationsRight(areas.url, 'mapped'));
    await expectRightAllAlong(areas.url, areas.kind);
  });

  it('is right in processes that were forked before the dump, and in one that is forked after the restore', async () => {
    await wokenBy(forking.name, () => expectRightAllAlong(forking.url, forking.kind));
    await getJson(`${forking.url}/more`);
    await expectRightAllAlong(forking.url, { heapMb: [...forking.kind.heapMb, 16, 8] });
  });

  it("is each instance's own: none sees what another one writes", async () => {
    const [one, other] = (await twoInstances(areas)).map(({ address }) => `http://${address}`) as [string, string];
    const read = async (url: string) => (await getJson<Part[]>(`${url}/read`))[0]?.value;
    await getJson(`${one}/write?value=of-one`);
    expect([await read(one), await read(other)]).toEqual(['of-one', 'as dumped']);
    await getJson(`${other}/write?value=of-other`);
    expect([await read(one), await read(other)]).toEqual(['of-one', 'of-other']);
    await expectOperationsRight(one, 'mapped');
    await expectNothingWrong(other);
    const { answer } = await wokenBy(areas.name, () => getJson<Part[]>(`${areas.url}/read`));
    expect(answer).toEqual([{ value: 'as dumped' }]);
    await expectNothingWrong(areas.url);
  });

  it('has no file that can be found inside an instance', async () => {
    const { instance } = await wokenBy(areas.name, () => getJson(`${areas.url}/sum`));
    const seen = await onHost(`
      grep -c '/\\.initless/mem-1' /proc/${instance.pid}/maps
      ls -A /proc/${instance.pid}/root | grep -x '\\.initless' || echo nothing
    `);
    const [mappings, found] = seen.trim().split('\n');
    expect(Number(mappings)).toBeGreaterThan(0);
    expect(found).toBe('nothing');
  });

  it('comes from the disk where the page cache was emptied, before a restore and under a parked instance', async () => {
    await sleepService(forking.name);
    await writeFile('/proc/sys/vm/drop_caches', '3');
    const { instance } = await wokenBy(forking.name, () => expectWholeHeap(forking.url, forking.kind));
    await until('it to be parked', async () => (await initless('instance', 'park', instance.id)).code === 0);
    await writeFile('/proc/sys/vm/drop_caches', '3');
    await expectNothingWrong(forking.url);
    expect((await instances(forking.name)).map(({ id }) => id)).toEqual([instance.id]);
  });
});

describe('copied memory', () => {
  it('is right after everything that a process can do to it, and nothing is refused', async () => {
    expect((await checkpointOf(copied.name)).memory).toMatchObject({ mode: onWire('copied') });
    const { instance } = await wokenBy(copied.name, () => expectWholeHeap(copied.url, copied.kind));
    expect(instance.memory).toBe(onWire('copied'));
    await expectOperationsRight(copied.url, 'copied');
    await expectRightAllAlong(copied.url, copied.kind);
  });
});

describe('lazy memory', () => {
  it('is right from the first request on, while it is still being filled and afterwards', async () => {
    expect((await checkpointOf(lazy.name)).memory).toMatchObject({ mode: onWire('lazy') });
    const { instance } = await wokenBy(lazy.name, () => expectRightAllAlong(lazy.url, lazy.kind));
    expect(instance.memory).toBe(onWire('lazy'));
    await wokenBy(lazy.name, () => getJson(`${lazy.url}/write?value=written-early`));
    await until('its daemon to end', async () => (await onHost('pidof criu || true')).trim() === '');
    expect(await getJson<Part[]>(`${lazy.url}/read`)).toEqual([{ value: 'written-early' }]);
    await expectWholeHeap(lazy.url, lazy.kind);
  });
});

describe('a memory file that was', () => {
  /** Where the file holds data, and where it does not: what is written there does not change its size. */
  const write = (what: 'SEEK_DATA' | 'SEEK_HOLE', file: string) => `
    perl -e '
      use strict;
      open(my $file, "+<", $ARGV[0]) or die "$!";
      my $at = sysseek($file, sysseek($file, 0, 3), $ARGV[1]) + 8192;
      sysseek($file, $at, 0);
      syswrite($file, "changed") or die "$!";
    ' ${file} ${{ SEEK_DATA: 3, SEEK_HOLE: 4 }[what]}
  `;

  it.each([
    { what: 'cut short', harm: (file: string) => `truncate -s -4096 ${file}`, says: /had \d+ bytes and has \d+/ },
    { what: 'deleted', harm: (file: string) => `rm ${file}`, says: /no such file|is missing/i },
    { what: 'made unreadable', harm: (file: string) => `chmod 0 ${file}`, says: /has another mode/ },
    { what: 'replaced by a folder', harm: (file: string) => `rm ${file}; mkdir ${file}`, says: /mem-1/ },
    { what: 'changed', harm: (file: string) => write('SEEK_DATA', file), says: /altered since it was sealed/ },
    {
      what: 'written to where it was empty',
      harm: (file: string) => write('SEEK_HOLE', file),
      says: /it was empty at/,
    },
  ])(
    '$what is refused by its name, a cold start serves, and a new checkpoint makes it right',
    { timeout: 120_000 },
    async ({ harm, says }) => {
      await sleepService(areas.name);
      await onHost(harm(`${(await checkpointOf(areas.name)).path}/${FILE}`));

      await expectWholeHeap(areas.url, areas.kind);
      const instance = await until('the instance to be reported', async () => (await instances(areas.name))[0]);
      expect(instance).toMatchObject({ origin: 'ORIGIN_COLD', problem: { code: 'CHECKPOINT_DAMAGED' } });
      expect(instance.problem?.message).toContain('mem-1 ');
      expect(instance.problem?.message).toMatch(says);
      const verified = await initless('checkpoint', 'inspect', areas.name, '--verify');
      expect(verified.code).toBe(1);
      expect(verified.stdout + verified.stderr).toContain('mem-1');
      const service = await until('the service to be degraded', async () => {
        const found = await inspect(areas.name);
        return found.state === 'SERVICE_STATE_DEGRADED' && found;
      });
      expect(service.problem?.code).toBe('CHECKPOINT_DAMAGED');

      await mustRun('checkpoint', 'create', areas.name, '--wait');
      await wokenBy(areas.name, () => expectWholeHeap(areas.url, areas.kind));
      expect((await inspect(areas.name)).state).toBe('SERVICE_STATE_READY');
    },
  );
});
