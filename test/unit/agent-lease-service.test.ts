import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { LEASE_GRACE_MS } from '../../agent/instance/leases.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { LeaseWorld, settle } from './agent-lease-world.js';

let world: LeaseWorld;
beforeEach(() => {
  vi.useFakeTimers();
  world = new LeaseWorld();
  world.serve();
});
afterEach(() => vi.useRealTimers());

describe('a lease stream', () => {
  it('is answered with which of the named leases stand before anything else', async () => {
    const gateway = world.connect('g');
    gateway.acquire();
    await settle();
    expect(gateway.told).toEqual(['resumed', 'granted web-1 2']);
    expect(world.held).toEqual([`${gateway.granted[0]?.leaseId} g 2`]);
  });

  it('that does not begin with a hello, or not with one that says who it is, or has two of them, is refused', async () => {
    const [silent, nameless, twice] = [world.open(), world.connect(''), world.connect('g')];
    silent.acquire();
    twice.say({ $case: 'hello', value: { gateway: 'h', leases: [], takesReserved: false } });
    for (const end of [silent, nameless, twice]) {
      await end.over;
      expect(end.error).toMatchObject({ code: 'BAD_REQUEST' });
    }
  });

  it('that breaks leaves the leases standing, and the gateway takes them over with its next one', async () => {
    const before = world.connect('g');
    before.acquire();
    await settle();
    const { leaseId = '', instance = '' } = before.granted[0] ?? {};
    before.cut();
    await before.over;
    await vi.advanceTimersByTimeAsync(LEASE_GRACE_MS - 1);
    expect(world.held).toEqual([`${leaseId} g 2`]);
    await expect(world.instances.park(instance)).rejects.toMatchObject({ code: 'LEASE_HELD' });
    const after = world.connect('g', [{ leaseId, instance, slots: 2 }]);
    await settle();
    expect(after.told).toEqual([`resumed ${leaseId}`]);
    await vi.advanceTimersByTimeAsync(LEASE_GRACE_MS * 2);
    expect(world.held).toEqual([`${leaseId} g 2`]);
    after.release(leaseId);
    await settle();
    expect(world.held).toEqual([]);
  });

  it('that breaks and does not come back has its leases given back after the grace period', async () => {
    const gateway = world.connect('g');
    gateway.acquire();
    await settle();
    gateway.cut();
    await gateway.over;
    world.happened.length = 0;
    await vi.advanceTimersByTimeAsync(LEASE_GRACE_MS);
    expect(world.held).toEqual([]);
    expect(world.happened).toEqual(['noted web-1']);
  });

  it('that the gateway ends itself gives everything back at once', async () => {
    const gateway = world.connect('g');
    gateway.acquire();
    await settle();
    gateway.finish();
    await gateway.over;
    expect(gateway.error).toBeUndefined();
    expect(world.held).toEqual([]);
  });

  it('of a gateway that was restarted, and holds nothing, frees what it held before', async () => {
    const before = world.connect('g');
    const other = world.connect('other');
    before.acquire();
    await settle();
    other.acquire();
    await settle();
    before.cut();
    await before.over;
    const after = world.connect('g');
    after.acquire();
    await settle();
    expect(world.held).toEqual([`${after.granted[0]?.leaseId} g 2`, `${other.granted[0]?.leaseId} other 2`]);
    expect(after.told).toEqual(['resumed', 'granted web-1 2']);
  });

  it('takes the place of an earlier one of the same gateway, whose end then changes nothing', async () => {
    const before = world.connect('g');
    before.acquire();
    await settle();
    const { leaseId = '', instance = '' } = before.granted[0] ?? {};
    const after = world.connect('g', [{ leaseId, instance, slots: 2 }]);
    await before.over;
    expect(before.error).toMatchObject({ code: 'ALREADY_CONNECTED' });
    before.release(leaseId);
    before.cut();
    await vi.advanceTimersByTimeAsync(LEASE_GRACE_MS * 2);
    expect(after.told).toEqual([`resumed ${leaseId}`]);
    expect(world.held).toEqual([`${leaseId} g 2`]);
  });

  it('that breaks while a start is under way leaves it to the next acquire: nothing is started twice', async () => {
    let open = () => {};
    world.startGate = new Promise((resolve) => {
      open = resolve;
    });
    const before = world.connect('g');
    before.acquire();
    await settle();
    before.cut();
    await before.over;
    const after = world.connect('g');
    after.acquire();
    await settle();
    open();
    await settle();
    expect(after.told).toEqual(['resumed', 'granted web-1 2']);
    expect(world.happened.filter((what) => what.startsWith('start'))).toEqual(['start web-1']);
    expect(world.held).toEqual([`${after.granted[0]?.leaseId} g 2`]);
  });
});

describe('an acquire', () => {
  it('is answered before the parked instance is thawed and before anything is written down', async () => {
    const { id } = await world.instances.wake('web');
    await world.instances.park(id);
    world.happened.length = 0;
    const gateway = world.connect('g');
    gateway.acquire();
    await settle();
    expect(gateway.told).toEqual(['resumed', 'granted web-1 2']);
    await vi.waitFor(() => expect(world.happened).toHaveLength(2));
    expect(world.happened).toEqual(['noted web-1', 'thaw web-1']);
  });

  it('waits for a freeze that is under way, rather than be frozen again after its thaw', async () => {
    let frozen = () => {};
    const { id } = await world.instances.wake('web');
    world.freezeGate = new Promise((resolve) => {
      frozen = resolve;
    });
    const parked = world.instances.park(id);
    const gateway = world.connect('g');
    gateway.acquire();
    await settle();
    expect(gateway.told).toEqual(['resumed']);
    frozen();
    await parked;
    await settle();
    expect(world.happened).toEqual(['start web-1', 'freeze web-1', 'thaw web-1', 'noted web-1']);
    expect(gateway.told).toEqual(['resumed', 'granted web-1 2']);
    expect(world.instances.get(id).state).toBe('running');
  });

  it('that is cancelled leaves its start to the next one, and gets no answer', async () => {
    let open = () => {};
    world.startGate = new Promise((resolve) => {
      open = resolve;
    });
    const gateway = world.connect('g');
    gateway.say({ $case: 'cancel', value: { requestId: gateway.acquire() } });
    await settle();
    gateway.acquire();
    await settle();
    open();
    await settle();
    expect(gateway.granted.map(({ requestId }) => requestId)).toEqual([2]);
    expect(world.happened.filter((what) => what.startsWith('start'))).toEqual(['start web-1']);
  });

  it('is denied at its bound, and what was being started stays for the next', async () => {
    let open = () => {};
    world.startGate = new Promise((resolve) => {
      open = resolve;
    });
    const gateway = world.connect('g');
    gateway.acquire(100);
    await vi.advanceTimersByTimeAsync(100);
    expect(gateway.told).toEqual(['resumed', 'denied DEADLINE']);
    open();
    await settle();
    expect(world.held).toEqual([]);
    gateway.acquire();
    await settle();
    expect(gateway.told.at(-1)).toBe('granted web-1 2');
  });

  it('that finds every slot held makes the agent ask the other gateways, and only them, for what they do not use', async () => {
    const [one, two] = [world.connect('one'), world.connect('two')];
    one.acquire();
    await settle();
    one.acquire();
    await settle();
    two.acquire();
    await settle();
    const [first, second] = one.granted.map(({ leaseId }) => leaseId);
    expect(two.told).toEqual(['resumed', 'denied EXHAUSTED']);
    expect(one.told.at(-1)).toBe(`recall ${first},${second}`);
    one.say({ $case: 'shrink', value: { leaseId: first ?? '', slots: 1 } });
    two.acquire();
    await settle();
    expect(two.told.at(-1)).toBe('granted web-1 1');
    expect(world.held).toEqual([`${first} one 1`, `${two.granted[0]?.leaseId} two 1`, `${second} one 2`]);
  });

  it('gets no slot of an instance while more are held than a lowered max_concurrency allows', async () => {
    const [one, two] = [world.connect('one'), world.connect('two')];
    world.serve({ maxConcurrency: 10, maxPoolSize: 1 });
    one.acquire();
    await settle();
    const leaseId = one.granted[0]?.leaseId ?? '';
    world.serve({ maxConcurrency: 4, maxPoolSize: 1 });
    two.acquire();
    await settle();
    expect(two.told.at(-1)).toBe('denied EXHAUSTED');
    one.say({ $case: 'shrink', value: { leaseId, slots: 3 } });
    two.acquire();
    await settle();
    expect(two.told.at(-1)).toBe('granted web-1 1');
  });

  it('gets the slots that a raised max_concurrency adds to an instance that runs', async () => {
    const gateway = world.connect('g');
    gateway.acquire();
    await settle();
    world.serve({ maxConcurrency: 5 });
    gateway.acquire();
    await settle();
    expect(gateway.told).toEqual(['resumed', 'granted web-1 2', 'granted web-1 3']);
  });
});

describe('a lease', () => {
  it('cannot be released or shrunk by a gateway that does not hold it', async () => {
    const [one, two] = [world.connect('one'), world.connect('two')];
    one.acquire();
    await settle();
    const leaseId = one.granted[0]?.leaseId ?? '';
    two.release(leaseId);
    two.say({ $case: 'shrink', value: { leaseId, slots: 1 } });
    await settle();
    expect(world.held).toEqual([`${leaseId} one 2`]);
  });

  it('says with its release how long its instance has been idle', async () => {
    const gateway = world.connect('g');
    gateway.acquire();
    await settle();
    await vi.advanceTimersByTimeAsync(5_000);
    gateway.release(gateway.granted[0]?.leaseId ?? '', 3_000);
    await settle();
    expect(performance.now() - world.instances.get('web-1').idleSince).toBe(3_000);
  });

  it('does not make an instance idle for longer than another gateway has left it alone', async () => {
    const [one, two] = [world.connect('one'), world.connect('two')];
    one.acquire();
    await settle();
    one.say({ $case: 'shrink', value: { leaseId: one.granted[0]?.leaseId ?? '', slots: 1 } });
    two.acquire();
    await settle();
    await vi.advanceTimersByTimeAsync(5_000);
    one.release(one.granted[0]?.leaseId ?? '', 0);
    await vi.advanceTimersByTimeAsync(1_000);
    two.release(two.granted[0]?.leaseId ?? '', 6_000);
    await settle();
    expect(performance.now() - world.instances.get('web-1').idleSince).toBe(1_000);
  });

  it('on a revision that is replaced is called back, and its instance goes when it comes', async () => {
    const gateway = world.connect('g');
    gateway.acquire();
    await settle();
    const leaseId = gateway.granted[0]?.leaseId ?? '';
    world.serve({}, 'r2');
    await settle();
    expect(gateway.told.at(-1)).toBe(`revoked ${leaseId}`);
    expect(world.held).toEqual([`${leaseId} g 2`]);
    gateway.release(leaseId);
    await settle();
    expect(world.happened).toContain('gone web-1 superseded');
  });

  it('on a revision that was replaced while its gateway was away stands, and is called back at once', async () => {
    const before = world.connect('g');
    before.acquire();
    await settle();
    const { leaseId = '', instance = '' } = before.granted[0] ?? {};
    before.cut();
    await before.over;
    world.serve({}, 'r2');
    const after = world.connect('g', [{ leaseId, instance, slots: 2 }]);
    await settle();
    expect(after.told).toEqual([`resumed ${leaseId}`, `revoked ${leaseId}`]);
    after.release(leaseId);
    await settle();
    expect(world.happened).toContain('gone web-1 superseded');
  });

  it('on an instance that goes is revoked, and may still be released', async () => {
    const gateway = world.connect('g');
    gateway.acquire();
    await settle();
    const leaseId = gateway.granted[0]?.leaseId ?? '';
    await world.instances.remove('web-1', 'operator');
    gateway.release(leaseId);
    await settle();
    expect(gateway.told.at(-1)).toBe(`revoked ${leaseId}`);
    expect(gateway.error).toBeUndefined();
  });
});

describe('a parked instance', () => {
  const taking = (gateway: string, ...named: { leaseId: string; instance: string; slots: number; asleep: boolean }[]) =>
    world.connect(gateway, named, true);
  const nameOf = ({ leaseId = '', instance = '', slots = 0 } = {}) => ({ leaseId, instance, slots });

  it('is reserved for a gateway that is connected when it parks, and for one that connects later', async () => {
    world.serve({ maxPoolSize: 3 });
    const first = taking('first');
    await world.park();
    await settle();
    expect(first.told).toEqual(['resumed', 'reserved web-1 2']);
    expect(first.reserved[0]).toMatchObject({ service: 'web', address: 'host:web-1' });
    await world.park();
    const second = taking('second');
    await world.park();
    await settle();
    expect(first.told).toEqual(['resumed', 'reserved web-1 2', 'reserved web-2 2']);
    expect(second.told).toEqual(['resumed', 'reserved web-3 2']);
    expect(world.happened.filter((what) => what.startsWith('thaw'))).toEqual([]);
    expect(world.granted).toEqual([]);
  });

  it('is not reserved beyond what max_pool_size allows to run, until another one is gone', async () => {
    world.serve({ maxPoolSize: 1 });
    const { id } = await world.instances.wake('web');
    const gateway = taking('g');
    await world.park();
    await settle();
    expect(gateway.told).toEqual(['resumed']);
    await world.instances.remove(id, 'operator');
    await settle();
    expect(gateway.told).toEqual(['resumed', 'reserved web-2 2']);
  });

  it('is not reserved for a gateway that does not know of that', async () => {
    const gateway = world.connect('g');
    await world.park();
    gateway.acquire();
    await settle();
    expect(gateway.told).toEqual(['resumed', 'granted web-1 2']);
    expect(world.granted).toEqual(['web parked']);
  });

  it('is thawed in the moment its gateway says that it uses it, without an answer, and counts as found parked', async () => {
    const gateway = taking('g');
    await world.park();
    await settle();
    const { leaseId = '' } = gateway.reserved[0] ?? {};
    expect(world.held).toEqual([`${leaseId} g 2 asleep`]);
    world.happened.length = 0;
    gateway.activate(leaseId);
    gateway.activate(leaseId);
    await settle();
    expect(world.happened).toEqual(['thaw web-1', 'noted web-1']);
    expect(world.held).toEqual([`${leaseId} g 2`]);
    expect(world.granted).toEqual(['web parked']);
    expect(gateway.told).toHaveLength(2);
    await vi.waitFor(() => expect(world.log).toContain('lease granted'));
    gateway.release(leaseId);
    await settle();
    expect(world.held).toEqual([]);
    expect(world.instances.get('web-1').state).toBe('running');
  });

  it('that is reserved is not for others: they get another, or a recall when there is no room for one', async () => {
    world.serve({ maxPoolSize: 2 });
    const [has, wants] = [taking('has'), world.connect('wants')];
    await world.park();
    await settle();
    wants.acquire();
    await settle();
    expect(wants.told.at(-1)).toBe('granted web-2 2');
    wants.acquire();
    await settle();
    expect(wants.told.at(-1)).toBe('denied EXHAUSTED');
    const { leaseId = '' } = has.reserved[0] ?? {};
    expect(has.told.at(-1)).toBe(`recall ${leaseId}`);
    has.release(leaseId);
    wants.acquire();
    await settle();
    expect(has.reserved).toHaveLength(1);
    expect(wants.told.at(-1)).toBe('granted web-1 2');
  });

  it('that one gateway gave back is reserved for another', async () => {
    const [one, two] = [taking('one'), taking('two')];
    await world.park();
    await settle();
    one.release(one.reserved[0]?.leaseId ?? '');
    await settle();
    expect(two.told).toEqual(['resumed', 'reserved web-1 2']);
    expect(one.reserved).toHaveLength(1);
  });

  it('whose reservation crosses an acquire of the same gateway is not joined by another instance', async () => {
    const gateway = taking('g');
    await world.park();
    gateway.acquire();
    await settle();
    expect(gateway.told).toEqual(['resumed', 'reserved web-1 2', 'denied EXHAUSTED']);
    expect(world.happened.filter((what) => what.startsWith('start'))).toEqual(['start web-1']);
  });

  it.each([
    ['is given up', 'idle', () => world.instances.retire(world.instances.get('web-1'), 'idle')],
    ['is removed by a person', 'operator', () => world.instances.remove('web-1', 'operator')],
    ['is of a revision that is replaced', 'superseded', () => world.serve({}, 'r2')],
  ])('that %s never runs, and its gateway is told so before it goes', async (_, reason, end) => {
    const gateway = taking('g');
    await world.park();
    await settle();
    const { leaseId = '' } = gateway.reserved[0] ?? {};
    void end();
    gateway.activate(leaseId);
    gateway.acquire();
    await settle();
    expect(gateway.told[2]).toBe(`revoked ${leaseId} never ran`);
    expect(gateway.told[3]).toBe('granted web-2 2');
    expect(world.happened).toContain(`gone web-1 ${reason}`);
    expect(world.happened.filter((what) => what.startsWith('thaw'))).toEqual([]);
  });

  it('that waits to be removed is not taken back by an acquire', async () => {
    world.instances.useRecycleWorkers(1);
    const instance = await world.park();
    world.instances.retire(instance, 'idle');
    const lease = await world.instances.acquire('web', [], 'g');
    expect(lease.instance.id).toBe('web-2');
  });

  it('that a person thaws runs, and its lease is called back, since a request may be on its way', async () => {
    const gateway = taking('g');
    await world.park();
    await settle();
    const { leaseId = '' } = gateway.reserved[0] ?? {};
    await world.instances.thaw('web-1');
    gateway.activate(leaseId);
    await settle();
    expect(gateway.told.at(-1)).toBe(`revoked ${leaseId}`);
    expect(world.held).toEqual([`${leaseId} g 2`]);
    expect(world.happened.filter((what) => what.startsWith('thaw'))).toEqual(['thaw web-1']);
    gateway.release(leaseId);
    await settle();
    expect(world.held).toEqual([]);
  });

  it('that is not reserved is what a person wakes, before one that is', async () => {
    world.serve({ maxPoolSize: 9 });
    const gateway = taking('g');
    for (let count = 0; count < 9; count++) await world.park();
    await settle();
    expect(gateway.reserved).toHaveLength(8);
    expect((await world.instances.wake('web')).id).toBe('web-9');
    expect(gateway.told.filter((what) => what.startsWith('revoked'))).toEqual([]);
  });

  it('whose gateway breaks off is for nobody else, and goes frozen when that does not come back', async () => {
    const [gone, other] = [taking('gone'), taking('other')];
    await world.park();
    await settle();
    gone.cut();
    await gone.over;
    await vi.advanceTimersByTimeAsync(LEASE_GRACE_MS - 1);
    expect(world.held).toHaveLength(1);
    expect(other.reserved).toEqual([]);
    await vi.advanceTimersByTimeAsync(1);
    expect(world.happened).toContain('gone web-1 drained');
    expect(world.happened.filter((what) => what.startsWith('thaw'))).toEqual([]);
  });

  it('whose gateway was restarted after it broke off, and does not know of it, goes frozen at once', async () => {
    const before = taking('g');
    await world.park();
    await settle();
    before.cut();
    await before.over;
    const after = taking('g');
    await settle();
    expect(after.told).toEqual(['resumed']);
    expect(world.happened).toContain('gone web-1 drained');
    expect(world.happened.filter((what) => what.startsWith('thaw'))).toEqual([]);
  });

  it('whose gateway says goodbye is reserved for another at once', async () => {
    const [one, two] = [taking('one'), taking('two')];
    await world.park();
    await settle();
    one.finish();
    await one.over;
    await settle();
    expect(two.told).toEqual(['resumed', 'reserved web-1 2']);
  });

  it('stays reserved over a broken stream when its gateway has sent nothing, and runs when it has', async () => {
    const before = taking('g');
    await world.park();
    await world.park();
    await settle();
    const [unused, used] = before.reserved.map(nameOf);
    before.cut();
    await before.over;
    const after = taking('g', { ...unused!, asleep: true }, { ...used!, asleep: false });
    await settle();
    expect(after.told).toEqual([`resumed ${unused?.leaseId},${used?.leaseId}`]);
    expect(world.held).toEqual([`${unused?.leaseId} g 2 asleep`, `${used?.leaseId} g 2`]);
    expect(world.happened.filter((what) => what.startsWith('thaw'))).toEqual(['thaw web-2']);
    expect(world.granted).toEqual(['web parked']);
    after.activate(unused?.leaseId ?? '');
    await settle();
    expect(world.happened.filter((what) => what.startsWith('thaw'))).toEqual(['thaw web-2', 'thaw web-1']);
  });
});

describe('an instance whose memory is still being filled', () => {
  const killed = new InitlessError('RESTORE_FAILED', 'the daemon was killed');
  beforeEach(() => {
    world.filling = true;
  });

  it('is leased as one, and its gateways are told once it is filled', async () => {
    const [one, other] = [world.connect('g'), world.connect('h')];
    one.acquire();
    await settle();
    const { leaseId = '' } = one.granted[0] ?? {};
    expect(one.told).toEqual(['resumed', 'granted web-1 2 filling']);
    world.endFill.get('web-1')?.(undefined);
    await settle();
    expect(one.told.slice(2)).toEqual([`filled ${leaseId}`]);
    expect(other.told).toEqual(['resumed']);
    one.release(leaseId);
    one.acquire();
    await settle();
    expect(one.told.slice(3)).toEqual(['granted web-1 2']);
  });

  it('that never will be takes its answers back before its leases', async () => {
    const gateway = world.connect('g');
    gateway.acquire();
    await settle();
    const { leaseId = '' } = gateway.granted[0] ?? {};
    world.endFill.get('web-1')?.(killed);
    await settle();
    expect(gateway.told.slice(2)).toEqual([`not filled ${leaseId}`, `revoked ${leaseId}`]);
    expect(world.happened).toContain('gone web-1 restore_failed');
  });

  it('is confirmed to serve rightly while its daemon is there, and not once that has gone', async () => {
    const gateway = world.connect('g');
    gateway.acquire();
    await settle();
    const { leaseId = '' } = gateway.granted[0] ?? {};
    const { filler } = world.instances.get('web-1');
    const confirm = (number: number) => gateway.say({ $case: 'confirm', value: { leaseId, number } });
    confirm(1);
    await settle();
    expect(gateway.told.slice(2)).toEqual([`confirmed ${leaseId} 1`]);
    if (filler) world.instances.get('web-1').filler = { ...filler, daemon: { pid: process.pid, startedAt: 'gone' } };
    confirm(2);
    await settle();
    expect(gateway.told).toHaveLength(3);
    world.endFill.get('web-1')?.(undefined);
    confirm(3);
    await settle();
    expect(gateway.told.slice(3)).toEqual([`filled ${leaseId}`, `confirmed ${leaseId} 3`]);
    world.connect('h').say({ $case: 'confirm', value: { leaseId, number: 4 } });
    await settle();
    expect(gateway.told).toHaveLength(5);
  });

  it('is said to be one when its gateway comes back, unless it was filled meanwhile', async () => {
    const before = world.connect('g');
    before.acquire();
    await settle();
    const { leaseId = '', instance = '' } = before.granted[0] ?? {};
    before.cut();
    await before.over;
    const again = world.connect('g', [{ leaseId, instance, slots: 2 }]);
    await settle();
    expect(again.told).toEqual([`resumed ${leaseId} filling`]);
    again.cut();
    await again.over;
    world.endFill.get('web-1')?.(undefined);
    const last = world.connect('g', [{ leaseId, instance, slots: 2 }]);
    await settle();
    expect(last.told).toEqual([`resumed ${leaseId}`]);
  });

  it('is still one for the next agent, until that knows how the fill ended', async () => {
    const lease = { id: 'web-1/a', gateway: 'g', slots: 2 };
    world.adopt('web-1', [lease]);
    const gateway = world.connect('g', [{ leaseId: lease.id, instance: 'web-1', slots: 2 }]);
    await settle();
    expect(gateway.told).toEqual([`resumed ${lease.id} filling`]);
    world.endFill.get('web-1')?.(killed);
    await settle();
    expect(gateway.told.slice(1)).toEqual([`not filled ${lease.id}`, `revoked ${lease.id}`]);
  });
});

describe('after a restart of the agent', () => {
  it('what was reserved stays so for a gateway that sent nothing; without its word it goes frozen', async () => {
    for (const gateway of ['back', 'gone']) {
      world.adopt(`web-${gateway}`, [{ id: `web-${gateway}/1`, gateway, slots: 2, asleep: true }], 'parked');
    }
    world.service.awaitGateways();
    const back = world.connect('back', [{ leaseId: 'web-back/1', instance: 'web-back', slots: 2, asleep: true }], true);
    await settle();
    expect(back.told).toEqual(['resumed web-back/1']);
    await vi.advanceTimersByTimeAsync(LEASE_GRACE_MS);
    expect(world.held).toEqual(['web-back/1 back 2 asleep']);
    expect(world.happened).toContain('gone web-gone drained');
    expect(world.happened.filter((what) => what.startsWith('thaw'))).toEqual([]);
  });

  it('what gateways held counts, until they say otherwise or their grace period is over', async () => {
    world.serve({ maxPoolSize: 1 });
    world.adopt('web-old', [
      { id: 'web-old/1', gateway: 'back', slots: 1 },
      { id: 'web-old/2', gateway: 'gone', slots: 1 },
    ]);
    world.service.awaitGateways();
    const third = world.connect('third');
    third.acquire();
    await settle();
    expect(third.told).toEqual(['resumed', 'denied EXHAUSTED']);
    const back = world.connect('back', [{ leaseId: 'web-old/1', instance: 'web-old', slots: 1 }]);
    await settle();
    expect(back.told).toEqual(['resumed web-old/1']);
    await vi.advanceTimersByTimeAsync(LEASE_GRACE_MS);
    expect(world.held).toEqual(['web-old/1 back 1']);
    third.acquire();
    await settle();
    expect(third.told.at(-1)).toBe('granted web-old 1');
  });

  it('a lease that was not noted in time stands if there is room for it', async () => {
    world.adopt('web-old', [{ id: 'web-old/1', gateway: 'one', slots: 1 }]);
    const two = world.connect('two', [{ leaseId: 'web-old/2', instance: 'web-old', slots: 1 }]);
    const three = world.connect('three', [{ leaseId: 'web-old/3', instance: 'web-old', slots: 1 }]);
    await settle();
    expect([...two.told, ...three.told]).toEqual(['resumed web-old/2', 'resumed']);
    expect(world.held).toEqual(['web-old/1 one 1', 'web-old/2 two 1']);
  });

  it('an instance that is noted as parked and used all the same runs', async () => {
    const instance = world.adopt('web-old', []);
    instance.apply({ type: 'park' });
    const gateway = world.connect('g', [{ leaseId: 'web-old/1', instance: 'web-old', slots: 2 }]);
    await settle();
    expect(gateway.told).toEqual(['resumed web-old/1']);
    expect(instance.state).toBe('running');
    expect(world.happened).toContain('thaw web-old');
  });

  it('new leases have other names than those of before', async () => {
    const again = new LeaseWorld();
    again.serve();
    const ends = [world.connect('g'), again.connect('g')];
    for (const end of ends) end.acquire();
    await settle();
    const [one, two] = ends.map((end) => end.granted[0]);
    expect(one?.instance).toBe(two?.instance);
    expect(one?.leaseId).not.toBe(two?.leaseId);
  });
});
