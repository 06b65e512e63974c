import { readFileSync } from 'node:fs';
import { mkdir, readdir, symlink } from 'node:fs/promises';
import path from 'node:path';
import type { CheckpointClocks } from '../../proto/gen/initless/v1/types.js';
import { run } from './exec.js';

let known: Promise<boolean> | undefined;

/**
 * Whether restores here can be given clocks that go on from those at the dump: CRIU makes them a time namespace with
 * offsets, for which the kernel must have these, and this host CAP_SYS_TIME. Tried once.
 */
export function setsClocks(): Promise<boolean> {
  known ??= run('unshare', ['--time', '--monotonic', '1', '--boottime', '1', '--fork', 'true'], {
    timeoutMs: 10_000,
  }).then(
    () => true,
    () => false,
  );
  return known;
}

/** What the clocks of this machine show. */
export function clocksHere(): CheckpointClocks {
  const uptime = Number(readFileSync('/proc/uptime', 'utf8').split(' ')[0]);
  return {
    monotonicMs: Math.floor(Number(process.hrtime.bigint() / 1_000_000n)),
    boottimeMs: Math.floor(uptime * 1000),
  };
}

/** Whether an image of CRIU's is the one that holds clocks. */
export function isClocksImage(name: string): boolean {
  return /^timens-\d+\.img$/.test(name);
}

/**
 * CRIU's images as this host can restore them: where it cannot set clocks, a folder of links to all but those, below `work`.
 * CRIU leaves the clocks alone then, where it would fail otherwise.
 */
export async function restorable(images: string, work: string): Promise<string> {
  if (await setsClocks()) return images;
  const dir = path.join(work, 'images');
  await mkdir(dir, { recursive: true });
  const names = (await readdir(images)).filter((name) => !isClocksImage(name));
  await Promise.all(names.map((name) => symlink(path.join(images, name), path.join(dir, name))));
  return dir;
}
