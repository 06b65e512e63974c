import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { clocksAhead, mendedTimer, mendTimers, readClocks } from '../../agent/checkpoint/clocks.js';
import { writeImage } from '../../agent/memory/image-file.js';
import { readFiles } from '../../agent/memory/images.js';
import { Clocks } from '../../proto/gen/criu/clocks.js';
import { FileEntry } from '../../proto/gen/criu/files.js';

const TIMER = { clockid: 1, ticks: 0n, settimeFlags: 0, vsec: 3n, vnsec: 5n, isec: 0n, insec: 0n };

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(path.join(tmpdir(), 'clocks-'));
});
afterEach(() => rm(dir, { recursive: true }));

describe('a timer of a dump', () => {
  it('that was set for a duration stays as it is', () => {
    expect(mendedTimer(TIMER)).toBeUndefined();
    expect(mendedTimer({ ...TIMER, isec: 1n, ticks: 2n })).toBeUndefined();
  });

  it('that was set to a time is set for what was left of it', () => {
    expect(mendedTimer({ ...TIMER, settimeFlags: 1 })).toEqual(TIMER);
    expect(mendedTimer({ ...TIMER, settimeFlags: 3, isec: 1n })).toEqual({ ...TIMER, isec: 1n });
  });

  it('that was set to a time and has expired does not expire again', () => {
    const expired = { ...TIMER, vsec: 0n, vnsec: 0n, ticks: 1n };
    expect(mendedTimer({ ...expired, settimeFlags: 1 })).toEqual(expired);
  });

  it('that repeats and had expired unread goes on repeating', () => {
    const unread = { ...TIMER, vsec: 0n, vnsec: 0n, ticks: 1n, isec: 2n, insec: 7n };
    expect(mendedTimer(unread)).toEqual({ ...unread, vsec: 2n, vnsec: 7n });
  });

  it('that repeats and was stopped stays stopped', () => {
    expect(mendedTimer({ ...TIMER, vsec: 0n, vnsec: 0n, isec: 2n })).toBeUndefined();
  });
});

describe('the images of a dump', () => {
  it('have their timers mended, and all else byte for byte as it was', async () => {
    const unknown = { _unknownFields: { 8002: [Buffer.from([2, 104, 105])] } };
    const other = FileEntry.encode({ type: 6, id: 3, ...unknown }).finish();
    const timer = FileEntry.encode({ type: 17, id: 4, tfd: { ...TIMER, settimeFlags: 1, ...unknown } }).finish();
    await writeFile(path.join(dir, 'files.img'), writeImage('files', [other, timer]));
    await mendTimers(dir);
    const [first, second] = await readFiles(dir);
    expect(Buffer.from(first?.entry.bytes ?? [])).toEqual(Buffer.from(other));
    expect(second?.message).toMatchObject({ type: 17, id: 4, tfd: TIMER });
    expect(second?.message.tfd?._unknownFields).toEqual(unknown._unknownFields);
  });

  it('say what the clocks showed, rounded up', async () => {
    expect(await readClocks(dir)).toBeUndefined();
    const clocks = { monotonic: { seconds: 5n, nanoseconds: 1n }, boottime: { seconds: 7n, nanoseconds: 2_000_000n } };
    await writeFile(path.join(dir, 'timens-0.img'), writeImage('clocks', [Clocks.encode(clocks).finish()]));
    expect(await readClocks(dir)).toEqual({ monotonicMs: 5001, boottimeMs: 7002 });
  });
});

describe('a checkpoint whose clocks are ahead of the machine', () => {
  const dumped = { monotonicMs: 10_000, boottimeMs: 12_000 };
  const behind = { monotonicMs: 8_000, boottimeMs: 20_000 };

  it('fits where clocks can be set', () => {
    expect(clocksAhead(dumped, behind, true)).toBeUndefined();
  });

  it('does not fit where they cannot, whichever clock it is', () => {
    expect(clocksAhead(dumped, behind, false)).toMatch(/^its clocks are 2 s ahead of this host's/);
    expect(clocksAhead(dumped, { monotonicMs: 20_000, boottimeMs: 11_000 }, false)).toMatch(/1 s ahead/);
  });

  it('fits again once the machine has caught up', () => {
    expect(clocksAhead(dumped, dumped, false)).toBeUndefined();
  });
});
