import { describe, expect, it } from 'vitest';
import { settle } from '../../agent/checkpoint/settle.js';

/** A process whose use of the CPU in each tenth of a second is given, in milliseconds; the last goes on for ever. */
async function settled(uses: readonly number[]) {
  let time = 0;
  let used = 0;
  let window = 0;
  const quiet = await settle(
    async () => used,
    AbortSignal.timeout(5_000),
    async (ms) => {
      time += ms;
      used += uses[Math.min(window++, uses.length - 1)] ?? 0;
    },
    () => time,
  );
  return { quiet, time };
}

describe('a process that is about to be dumped', () => {
  it('is dumped at once where it has nothing to do', async () => {
    expect(await settled([0])).toEqual({ quiet: true, time: 300 });
  });

  it('may do a little: timers and housekeeping', async () => {
    expect(await settled([9])).toEqual({ quiet: true, time: 300 });
  });

  it('is waited for while it works, and must be quiet for a while', async () => {
    expect(await settled([100, 200, 0, 0, 50, 0, 0, 0])).toEqual({ quiet: true, time: 800 });
  });

  it('is not waited for without end', async () => {
    expect(await settled([100])).toEqual({ quiet: false, time: 5_000 });
  });

  it('is not waited for when nobody wants it any more', async () => {
    const reason = new Error('enough');
    await expect(settle(async () => 0, AbortSignal.abort(reason))).rejects.toBe(reason);
  });
});
