import { describe, expect, it } from 'vitest';
import { Flights } from '../../agent/fleet/flights.js';
import { chainsOf, missingLayers } from '../../agent/transfer/image-archive.js';
import { Rate } from '../../agent/transfer/rate.js';
import { Slots } from '../../agent/transfer/slots.js';

const signal = () => new AbortController().signal;

describe('the rate of all copies', () => {
  /** A clock that goes on only while somebody sleeps. */
  const virtual = () => {
    const clock = {
      ms: 0,
      now: () => clock.ms,
      sleep: async (ms: number) => {
        clock.ms += ms;
      },
    };
    return clock;
  };

  it('is kept by several copies together, whatever the size of what they send', async () => {
    const clock = virtual();
    const rate = new Rate(clock);
    rate.use(1_000_000);
    const copies = [100_000, 250_000, 400_000].map(async (piece) => {
      for (let sent = 0; sent < 4_000_000; sent += piece) await rate.take(piece, signal());
    });
    await Promise.all(copies);
    expect(clock.ms).toBeGreaterThan(11_000);
    expect(clock.ms).toBeLessThan(12_500);
  });

  it('lets everything through when there is none', async () => {
    const clock = virtual();
    const rate = new Rate(clock);
    for (let i = 0; i < 100; i++) await rate.take(1e9, signal());
    expect(clock.ms).toBe(0);
  });

  it('holds at once for those that wait already when it is changed', async () => {
    const clock = virtual();
    const rate = new Rate(clock);
    rate.use(1);
    await rate.take(1_000_000_000, signal());
    let asleep = 0;
    clock.sleep = async (ms) => {
      clock.ms += ms;
      if (++asleep === 3) rate.use(0);
    };
    await rate.take(1, signal());
    expect(asleep).toBe(3);
  });

  it('lets go of one that gives up, and of those behind it', async () => {
    const rate = new Rate();
    rate.use(1_000);
    await rate.take(1_000_000, signal());
    const stop = new AbortController();
    const [first, second] = [rate.take(1, stop.signal), rate.take(1, stop.signal)];
    stop.abort(new Error('enough'));
    await expect(first).rejects.toThrow('enough');
    await expect(second).rejects.toThrow('enough');
  });
});

describe('slots', () => {
  it('are given in order, to so many at a time, and refused when too many wait', async () => {
    const slots = new Slots(2, 1, 'copies');
    const [leave] = [await slots.enter(signal()), await slots.enter(signal())];
    const waiting = slots.enter(signal());
    await expect(slots.enter(signal())).rejects.toMatchObject({ code: 'BUSY' });
    leave();
    leave();
    const last = await waiting;
    const stop = new AbortController();
    const given = slots.enter(stop.signal);
    stop.abort(new Error('gone'));
    await expect(given).rejects.toThrow('gone');
    last();
    await slots.enter(signal());
  });
});

describe('the same work asked for twice', () => {
  const gate = () => {
    let open = (_: string) => {};
    const passed = new Promise<string>((resolve) => {
      open = resolve;
    });
    return { open, passed };
  };

  it('is done once', async () => {
    const flights = new Flights<string>();
    const { open, passed } = gate();
    let runs = 0;
    const work = () => {
      runs++;
      return passed;
    };
    const both = [flights.join('web', 'make', signal(), work), flights.join('web', 'make', signal(), work)];
    open('made');
    expect(await Promise.all(both)).toEqual([
      { value: 'made', joined: false },
      { value: 'made', joined: true },
    ]);
    expect(runs).toBe(1);
  });

  it('comes after other work on the same subject, also when that fails', async () => {
    const flights = new Flights<string>();
    const order: string[] = [];
    const first = flights.join('web', 'make', signal(), async () => {
      await new Promise((resolve) => setImmediate(resolve));
      order.push('first');
      throw new Error('failed');
    });
    const second = flights.join('web', 'make anew', signal(), async () => {
      order.push('second');
      return 'made';
    });
    await expect(first).rejects.toThrow('failed');
    expect((await second).value).toBe('made');
    expect(order).toEqual(['first', 'second']);
  });

  it('goes on while one of those who asked still waits, and is stopped with the last', async () => {
    const flights = new Flights<string>();
    const [one, two] = [new AbortController(), new AbortController()];
    let stopped = false;
    const work = (stop: AbortSignal) =>
      new Promise<string>((_, reject) => {
        stop.addEventListener('abort', () => {
          stopped = true;
          reject(stop.reason);
        });
      });
    const first = flights.join('web', 'make', one.signal, work);
    const second = flights.join('web', 'make', two.signal, work);
    one.abort(new Error('first left'));
    await expect(first).rejects.toThrow('first left');
    expect(stopped).toBe(false);
    two.abort(new Error('second left'));
    await expect(second).rejects.toThrow('second left');
    expect(stopped).toBe(true);
    expect((await flights.join('web', 'make', signal(), async () => 'again')).value).toBe('again');
  });
});

describe('the layers that are missing', () => {
  it('are those that are not there over the same ones', () => {
    expect(missingLayers(['a', 'b', 'c'], [['a', 'b']])).toEqual(['c']);
    expect(missingLayers(['a', 'b', 'c'], [['b'], ['c']])).toEqual(['a', 'b', 'c']);
    expect(missingLayers(['a', 'b', 'a'], [['a', 'b']])).toEqual(['a']);
    expect(missingLayers(['a'], [['a', 'b']])).toEqual([]);
  });

  it('are known by chains as the engine computes them', () => {
    expect(chainsOf(['sha256:a', 'sha256:b'])).toEqual([
      'sha256:a',
      // printf 'sha256:a sha256:b' | sha256sum
      `sha256:${CHAIN}`,
    ]);
  });
});

const CHAIN = '970a948bffa8de94d6e22d747ba8c95030e6e546909f98f54e99a13005e173a8';
