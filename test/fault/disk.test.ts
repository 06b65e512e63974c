import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { apply, copyOf, untilListening } from '../e2e/deploy.js';
import { getJson, initless, inspect, onHost, sleepService, until, wokenBy } from '../e2e/support.js';
import { untilOnlyWhatIsListed } from './system.js';

/** 50 MB in memory. */
const FULL = { name: 'full', url: 'http://localhost:8295/' };
/** Where its checkpoints lie, and no other service's: those go on with theirs. */
const CHECKPOINTS = `/var/lib/docker/initless/checkpoints/${FULL.name}`;

let folder: string;

beforeAll(async () => {
  folder = await copyOf('go', { service_name: FULL.name, host_port: 8295 });
});

afterAll(async () => {
  await onHost(`while mountpoint -q ${CHECKPOINTS}; do umount ${CHECKPOINTS}; done`);
  await initless('service', 'rm', FULL.name);
});

/** Runs `work` while the service's checkpoints go to a small disk, and gives what is on that disk afterwards. */
async function onSmallDisk(megabytes: number, work: () => Promise<void>): Promise<string[]> {
  await onHost(`mkdir -p ${CHECKPOINTS}`);
  await onHost(`mount -t tmpfs -o size=${megabytes}m,mode=700 initless-test ${CHECKPOINTS}`);
  try {
    await work();
    return (await onHost(`find ${CHECKPOINTS} -mindepth 1`)).split('\n').filter((line) => line !== '');
  } finally {
    await until('the small disk to be free', async () => {
      await onHost(`umount ${CHECKPOINTS}`);
      return true;
    });
  }
}

describe('a checkpoint for which the disk has no room', () => {
  it('leaves nothing half-made, and says what is full', async () => {
    const left = await onSmallDisk(20, async () => {
      const { code, stderr } = await apply(folder);
      expect(code, stderr).toBe(1);
      expect(stderr).toContain('no space left on the disk');
    });
    expect(left).toEqual([]);
    expect(await inspect(FULL.name)).toMatchObject({ problem: { code: 'DISK_FULL' } });
    await untilOnlyWhatIsListed();
  });

  it('has its memory copied where there is room for the dump but not for a memory file', async () => {
    const left = await onSmallDisk(70, async () => {
      const { code, stderr } = await apply(folder);
      expect(code, stderr).toBe(0);
      const memory = (await initless('checkpoint', 'inspect', FULL.name)).stdout;
      expect(memory).toMatch(/memory: +copied: none of its memory can be mapped/);
      await sleepService(FULL.name);
    });
    expect(left.filter((file) => /mem-\d|rewritten|\.making/.test(file))).toEqual([]);
    await initless('service', 'rm', FULL.name);
  });

  it('is made once there is room', async () => {
    const { code, stderr } = await apply(folder);
    expect(code, stderr).toBe(0);
    await untilListening(FULL.name);
    const { answer } = await wokenBy(FULL.name, () => getJson(FULL.url));
    expect(answer).toBeDefined();
  });
});
