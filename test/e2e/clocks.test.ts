import { setTimeout as delay } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { killAgent, untilUp } from '../fault/system.js';
import { copyOf, deploy } from './deploy.js';
import { asJson, CONTAINER, getJson, run, sleepService, wokenBy } from './support.js';

/** What the service says; seconds. */
interface Clocks {
  started: number;
  monotonic: number;
  boottime: number;
  realtime: number;
  ticks: number;
  backwards: number;
}

const SERVICE = 'clock';
const URL = 'http://localhost:8115/';
/** By so much the clocks of the machine that a checkpoint is said to come from were ahead of this one's, seconds. */
const AHEAD = 1_000_000;

/**
 * Makes a checkpoint one that was dumped on a machine that has been up for much longer: the clocks in CRIU's image of them are
 * put forward, and the checkpoint is sealed anew.
 */
const PUT_FORWARD = `
import { readFileSync, writeFileSync } from 'node:fs';
const { MANIFEST, readManifest, writeManifest } = await import('/opt/initless/dist/agent/checkpoint/manifest.js');
const { readTree } = await import('/opt/initless/dist/agent/checkpoint/tree.js');
const [dir, ahead] = [process.argv[2], BigInt(process.argv[3])];
const file = dir + '/criu/timens-0.img';
const image = readFileSync(file);
const varint = (bytes, at) => {
  let [value, shift] = [0n, 0n];
  for (;;) {
    const byte = bytes[at++];
    value |= BigInt(byte & 127) << shift;
    if (byte < 128) return { value, at };
    shift += 7n;
  }
};
const encode = (value) => {
  const bytes = [];
  for (; value > 127n; value >>= 7n) bytes.push(Number(value & 127n) | 128);
  return [...bytes, Number(value)];
};
// Two magic numbers, the length, then { 1: monotonic, 2: boottime }, each { 1: seconds, 2: nanoseconds }.
const out = [];
for (let at = 12; at < image.length; ) {
  const tag = image[at];
  const length = image[at + 1];
  const inner = [];
  for (let inside = at + 2; inside < at + 2 + length; ) {
    const key = image[inside];
    const read = varint(image, inside + 1);
    inside = read.at;
    inner.push(key, ...encode(key === 8 ? read.value + ahead : read.value));
  }
  out.push(tag, inner.length, ...inner);
  at += 2 + length;
}
const head = Buffer.from(image.subarray(0, 12));
head.writeUInt32LE(out.length, 8);
writeFileSync(file, Buffer.concat([head, Buffer.from(out)]));
const manifest = readManifest(readFileSync(dir + '/' + MANIFEST, 'utf8'), MANIFEST);
manifest.entries = (await readTree(dir)).filter((entry) => entry.path !== MANIFEST);
writeFileSync(dir + '/' + MANIFEST, writeManifest(manifest));
`;

beforeAll(async () => {
  await deploy(await copyOf(SERVICE, { idle_timeout: 3 }));
});

/** Asks twice, about a second apart. */
async function watched(): Promise<[Clocks, Clocks]> {
  const first = await getJson<Clocks>(URL);
  await delay(1_000);
  return [first, await getJson<Clocks>(URL)];
}

function expectGoingOn([first, second]: [Clocks, Clocks]): void {
  const passed = second.monotonic - first.monotonic;
  expect(passed).toBeGreaterThan(0.9);
  expect(second.boottime - first.boottime).toBeCloseTo(passed, 1);
  expect(Math.abs(second.realtime - Date.now() / 1_000)).toBeLessThan(5);
  // A thread that was asleep at the dump has gone on, and did not make up for the time in between.
  expect(second.ticks).toBeGreaterThan(first.ticks);
  expect(second.ticks - first.ticks).toBeLessThan(20 * passed);
  expect(second.backwards).toBe(0);
}

describe('the clocks of a restored service', () => {
  let before: [Clocks, Clocks];

  it('go on from the dump', async () => {
    ({ answer: before } = await wokenBy(SERVICE, watched));
    expect(before[0].monotonic).toBeGreaterThan(before[0].started);
    expectGoingOn(before);
  });

  it('are not behind it either where the machine has been up for a shorter time than the one of the dump', async () => {
    await sleepService(SERVICE);
    const checkpoints = await asJson<{ path: string }[]>('checkpoint', 'ls', '--service', SERVICE);
    const args = ['exec', '-i', CONTAINER, 'node', '--input-type=module', '-', checkpoints[0]!.path, String(AHEAD)];
    const ran = await run('docker', args, { input: PUT_FORWARD });
    expect(ran.code, ran.stderr).toBe(0);
    await killAgent();
    await untilUp();
    const { answer } = await wokenBy(SERVICE, watched);
    // As its machine would have it, ten days and more ahead of this one's.
    expect(answer[0].monotonic).toBeGreaterThan(before[0].started + AHEAD);
    expect(answer[0].monotonic).toBeLessThan(before[0].monotonic + AHEAD + 600);
    expect(answer[0].boottime).toBeGreaterThan(AHEAD);
    expectGoingOn(answer);
  });
});
