import { readdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { Clocks, type ClockTime } from '../../proto/gen/criu/clocks.js';
import { FileEntry, type TimerFile } from '../../proto/gen/criu/files.js';
import type { CheckpointClocks } from '../../proto/gen/initless/v1/types.js';
import { decodeEntry, writeImage } from '../memory/image-file.js';
import { imageNames, readFiles, readImage } from '../memory/images.js';
import { isClocksImage } from '../runtime/clocks.js';

/** TFD_TIMER_ABSTIME and TFD_TIMER_CANCEL_ON_SET. */
const TO_A_TIME = 1 | 2;

/**
 * What the clocks showed at a dump; undefined where CRIU has not noted it.
 * Errors: CHECKPOINT_DAMAGED where the image cannot be read.
 */
export async function readClocks(images: string): Promise<CheckpointClocks | undefined> {
  const name = (await readdir(images)).find(isClocksImage);
  if (name === undefined) return undefined;
  const [first] = await readImage(images, name, 'clocks');
  if (first === undefined) return undefined;
  const { monotonic, boottime } = decodeEntry(Clocks, first, path.join(images, name));
  return { monotonicMs: milliseconds(monotonic), boottimeMs: milliseconds(boottime) };
}

/** Rounded up: what a restore is held against must not be below what a process has seen. */
function milliseconds(time: ClockTime | undefined): number {
  const { seconds = 0n, nanoseconds = 0n } = time ?? {};
  return Number(seconds) * 1000 + Math.ceil(Number(nanoseconds) / 1e6);
}

/**
 * Mends what CRIU would restore wrongly of a dump's timers: see {@link mendedTimer}. Before images are rewritten otherwise.
 * Errors: CHECKPOINT_DAMAGED where files.img cannot be read, and those of the disk; the dump is of no use then.
 */
export async function mendTimers(images: string): Promise<void> {
  const files = await readFiles(images);
  let mended = false;
  const entries = files.map(({ entry, message }) => {
    const timer = message.tfd && mendedTimer(message.tfd);
    if (timer === undefined) return entry.bytes;
    mended = true;
    return FileEntry.encode({ ...message, tfd: timer }).finish();
  });
  if (mended) await writeFile(path.join(images, imageNames.files), writeImage('files', entries));
}

/**
 * A timer as it has to stand in the images to go on after a restore; undefined where it is right as it is. Pure.
 *
 * - One that was set to a time is dumped with the duration that was left, and CRIU sets it to the present whole second and
 *   that: up to a second early, and a repeating one in a burst; one that has expired would expire again. Set for the
 *   duration it is right, since the clock goes on from where it was.
 * - A repeating one that had expired and was not read yet is dumped without a duration, and would never expire again.
 */
export function mendedTimer(timer: TimerFile): TimerFile | undefined {
  const { ticks = 0n, settimeFlags = 0, vsec = 0n, vnsec = 0n, isec = 0n, insec = 0n } = timer;
  const stopped = vsec === 0n && vnsec === 0n && ticks > 0n && (isec > 0n || insec > 0n);
  if ((settimeFlags & TO_A_TIME) === 0 && !stopped) return undefined;
  return { ...timer, settimeFlags: settimeFlags & ~TO_A_TIME, ...(stopped && { vsec: isec, vnsec: insec }) };
}

/**
 * Why a service's clocks would go back on a machine that cannot set them; undefined where they would not. Pure.
 * @param here what the clocks of that machine show.
 */
export function clocksAhead(
  dumped: CheckpointClocks | undefined,
  here: CheckpointClocks,
  setsClocks: boolean,
): string | undefined {
  if (setsClocks || dumped === undefined) return undefined;
  const ahead = Math.max(dumped.monotonicMs - here.monotonicMs, dumped.boottimeMs - here.boottimeMs);
  if (ahead <= 0) return undefined;
  return `its clocks are ${Math.ceil(ahead / 1000)} s ahead of this host's, which cannot set them for what it restores (CAP_SYS_TIME is missing, or time namespaces)`;
}
