import { sleep } from '../../proto/rpc/deadline.js';

/** How long a process is looked at, at a time, milliseconds. */
const WINDOW_MS = 100;
/** Windows in a row in which it must be quiet. */
const QUIET_WINDOWS = 3;
/** Share of one CPU below which it counts as quiet: timers and housekeeping go on in most. */
const QUIET = 0.1;
/** Bound on the wait, milliseconds; what is never quiet is dumped as it is. */
const MOST_MS = 5_000;

/**
 * Waits until a process has little to do. What it was doing when it is dumped (a JIT compiler's queue, above all), every
 * instance goes on with when it is restored, at the same moment as its first request. Gives whether it became quiet.
 * Errors: the signal's reason.
 *
 * @param cpuTime CPU time that it has used until now, milliseconds.
 */
export async function settle(
  cpuTime: () => Promise<number>,
  signal: AbortSignal,
  pause: (ms: number, signal: AbortSignal) => Promise<void> = sleep,
  now: () => number = () => performance.now(),
): Promise<boolean> {
  const end = now() + MOST_MS;
  let quiet = 0;
  let [at, used] = [now(), await cpuTime()];
  while (quiet < QUIET_WINDOWS) {
    if (now() >= end) return false;
    await pause(WINDOW_MS, signal);
    const [later, more] = [now(), await cpuTime()];
    quiet = more - used < (later - at) * QUIET ? quiet + 1 : 0;
    [at, used] = [later, more];
  }
  return true;
}
