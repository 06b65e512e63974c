import { describe, expect, test } from 'vitest';
import { type Action, Admission, AGENT_GRACE_MS, LEASE_GRACE_MS, LINGER_MS, SLOW_MS } from '../../gateway/admission.js';
import type { AgentChoice } from '../../gateway/choice.js';
import { noHost } from '../../gateway/refusals.js';
import { InitlessError } from '../../proto/rpc/errors.js';

const LIMITS = { maxConcurrency: 2, queueLimit: 5, queueTimeoutMs: 1_000 };
const ABSENT = noHost('demo');
const error = (code: 'EXHAUSTED' | 'ELSEWHERE' | 'RESTORE_FAILED' | 'DEADLINE') =>
  new InitlessError(code, `said ${code}`);

function choice(agent: string, changes: Partial<AgentChoice> = {}): AgentChoice {
  const host = `host-${agent}`;
  return { agent, host, up: true, silent: false, maxRunning: 10, parked: 0, draining: false, ...changes };
}

function choices(...names: string[]): AgentChoice[] {
  return names.map((agent) => choice(agent));
}

function admission(agents = choices('a'), limits = LIMITS): Admission {
  const made = new Admission('demo');
  expect(made.configure(limits, agents, ABSENT, 0)).toEqual([]);
  return made;
}

function lease(name: string, slots = 2, agent = 'a') {
  return { lease: name, agent, instance: `i-${name}`, slots };
}

/** Actions in a short form: "acquire 1 a", "assign 3 L", "activate L", "refuse 3 QUEUE_FULL", "cancel 1", "release L". */
function short(actions: Action[]): string[] {
  return actions.map((action) => {
    if (action.do === 'assign') return `assign ${action.ticket} ${action.lease}`;
    if (action.do === 'refuse') return `refuse ${action.ticket} ${action.refusal.error.code}`;
    if (action.do === 'activate') return `activate ${action.lease}`;
    if (action.do === 'cancel') return `cancel ${action.acquire}`;
    if (action.do === 'release') return `release ${action.lease}`;
    if (action.do === 'shrink') return `shrink ${action.lease} to ${action.slots}`;
    return `acquire ${action.acquire} ${action.agent}${action.suspects.map((name) => ` !${name}`).join('')}`;
  });
}

describe('admission', () => {
  test('asks for one instance for as many requests as it serves, and for the next one beyond', () => {
    const it = admission();
    expect(short(it.enter(1, 0))).toEqual(['acquire 1 a']);
    expect(short(it.enter(2, 0))).toEqual([]);
    expect(short(it.enter(3, 0))).toEqual(['acquire 2 a']);
    expect(short(it.granted(1, lease('L'), 5))).toEqual(['assign 1 L', 'assign 2 L']);
    expect(short(it.done('L', 6))).toEqual(['assign 3 L']);
  });

  test('asks again when a lease has fewer slots than were hoped for', () => {
    const it = admission();
    it.enter(1, 0);
    it.enter(2, 0);
    expect(short(it.granted(1, lease('L', 1), 5))).toEqual(['assign 1 L', 'acquire 2 a']);
  });

  test('fills the oldest lease first, so that the newest runs idle and is given back', () => {
    const it = admission();
    for (const ticket of [1, 2, 3]) it.enter(ticket, 0);
    it.granted(1, lease('L'), 5);
    it.granted(2, lease('M'), 5);
    it.done('L', 10);
    it.done('M', 10);
    expect(short(it.enter(4, 20))).toEqual(['assign 4 L']);
    expect(it.nextTick).toBe(10 + LINGER_MS);
    expect(short(it.tick(10 + LINGER_MS))).toEqual(['release M']);
    expect(it.nextTick).toBeUndefined();
  });

  test('gives every acquire the time that its youngest request has', () => {
    const it = admission();
    it.enter(1, 0);
    expect(short(it.agentDown('a', 100))).toEqual(['cancel 1']);
    it.enter(2, 400);
    expect(it.agentUp('a', 500)).toMatchObject([{ do: 'acquire', timeoutMs: 900 }]);
  });

  test('refuses beyond the queue limit, and takes one at least', () => {
    const it = admission(choices('a'), { ...LIMITS, queueLimit: 0 });
    it.enter(1, 0);
    expect(short(it.enter(2, 0))).toEqual(['refuse 2 QUEUE_FULL']);
    expect(it.waiting).toBe(1);
  });

  test('refuses when time is over and says why: busy instances, what an agent said, or nothing at all', () => {
    const silent = admission();
    silent.enter(1, 0);
    expect(silent.nextTick).toBe(1_000);
    expect(short(silent.tick(1_000))).toEqual(['refuse 1 QUEUE_TIMEOUT', 'cancel 1']);

    const busy = admission();
    for (const ticket of [1, 2, 3]) busy.enter(ticket, 0);
    busy.granted(1, lease('L'), 1);
    expect(short(busy.tick(1_000))).toEqual(['refuse 3 QUEUE_TIMEOUT', 'cancel 2']);

    const told = admission();
    told.enter(1, 0);
    told.denied(1, error('EXHAUSTED'), 5_000, 10);
    expect(short(told.tick(1_000))).toEqual(['refuse 1 QUEUE_TIMEOUT']);
  });

  test('asks an exhausted agent again after the time it named, one acquire at a time until it grants one', () => {
    const it = admission(choices('a'), { ...LIMITS, maxConcurrency: 1 });
    for (const ticket of [1, 2, 3]) it.enter(ticket, 0);
    for (const acquire of [1, 2, 3]) expect(short(it.denied(acquire, error('EXHAUSTED'), 50, 10))).toEqual([]);
    expect(it.nextTick).toBe(60);
    expect(short(it.tick(60))).toEqual(['acquire 4 a']);
    expect(short(it.granted(4, lease('L', 1), 70))).toEqual(['assign 1 L', 'acquire 5 a', 'acquire 6 a']);
  });

  test('tells everyone who waits what an agent said that does not want to be asked again, then asks anew', () => {
    const it = admission();
    it.enter(1, 0);
    it.enter(2, 0);
    expect(short(it.denied(1, error('RESTORE_FAILED'), 0, 10))).toEqual([
      'refuse 1 RESTORE_FAILED',
      'refuse 2 RESTORE_FAILED',
    ]);
    expect(short(it.enter(3, 20))).toEqual(['acquire 2 a']);
  });

  test('lets requests wait for a slot when a further instance is refused', () => {
    const it = admission();
    for (const ticket of [1, 2, 3]) it.enter(ticket, 0);
    it.granted(1, lease('L'), 1);
    expect(short(it.denied(2, error('RESTORE_FAILED'), 0, 10))).toEqual([]);
    expect(short(it.done('L', 20))).toEqual(['assign 3 L']);
  });

  test('takes a denial at the bound of an acquire for that bound, and asks again for those who have time left', () => {
    const it = admission();
    it.enter(1, 0);
    it.enter(2, 500);
    expect(short(it.denied(1, error('DEADLINE'), 0, 1_001))).toEqual(['refuse 1 QUEUE_TIMEOUT', 'acquire 2 a']);
  });

  test('gives up an agent that never answers, and asks again', () => {
    const it = admission();
    it.enter(1, 0);
    it.enter(2, 900);
    it.tick(1_000);
    it.enter(3, 1_800);
    expect(short(it.tick(1_900))).toEqual(['refuse 2 QUEUE_TIMEOUT']);
    expect(short(it.tick(2_000))).toEqual(['cancel 1', 'acquire 2 a']);
  });

  test('cancels what was asked for when the last one who waits leaves, not before', () => {
    const it = admission();
    it.enter(1, 0);
    it.enter(2, 0);
    expect(short(it.leave(1, 1))).toEqual([]);
    expect(short(it.leave(2, 2))).toEqual(['cancel 1']);
    expect(short(it.leave(2, 3))).toEqual([]);
    expect(it.settled).toBe(true);
  });

  test('serves a request that comes back before all others, and not by the instance it suspects', () => {
    const it = admission();
    for (const ticket of [1, 2, 3]) it.enter(ticket, 0);
    it.granted(1, lease('L'), 1);
    it.broken('L');
    expect(short(it.done('L', 2))).toEqual([]);
    expect(short(it.enterAgain(4, 2))).toEqual([]);
    expect(short(it.granted(2, lease('M', 1), 3))).toEqual(['assign 4 M', 'acquire 3 a !i-L']);
    expect(short(it.done('L', 4))).toEqual(['release L']);
  });

  test('lets a revoked lease serve out what is in flight, then gives it back at once', () => {
    const it = admission();
    it.enter(1, 0);
    it.granted(1, lease('L'), 1);
    expect(short(it.revoked('L', 2))).toEqual([]);
    expect(short(it.enter(2, 3))).toEqual(['acquire 2 a']);
    expect(short(it.done('L', 4))).toEqual(['release L']);
  });

  test('uses what it holds while an agent is away, and serves who waits with what comes free', () => {
    const it = admission();
    for (const ticket of [1, 2, 3]) it.enter(ticket, 0);
    it.granted(1, lease('L'), 1);
    expect(short(it.agentDown('a', 2))).toEqual(['cancel 2']);
    expect(short(it.done('L', 3))).toEqual(['assign 3 L']);
    it.done('L', 4);
    expect(short(it.enter(4, 5))).toEqual(['assign 4 L']);
    expect(short(it.enter(5, 6))).toEqual([]);
    expect(short(it.agentUp('a', 7))).toEqual(['acquire 3 a']);
  });

  test('asks anew, in the old order, for what was asked for when an agent went away', () => {
    const it = admission(choices('a'), { ...LIMITS, maxConcurrency: 1 });
    for (const ticket of [1, 2, 3]) it.enter(ticket, 0);
    expect(short(it.agentDown('a', 2))).toEqual(['cancel 1', 'cancel 2', 'cancel 3']);
    it.enter(4, 3);
    expect(it.agentUp('a', 4)).toMatchObject([4, 5, 6, 7].map((acquire) => ({ acquire, timeoutMs: 999 })));
    expect(short(it.granted(6, lease('L', 1), 5))).toEqual(['assign 1 L']);
    expect(short(it.granted(4, lease('M', 1), 6))).toEqual(['assign 2 M']);
  });

  test('lets the leases of an agent that stays away end after a grace period, and keeps those that it confirmed', () => {
    const it = admission(choices('a'), { ...LIMITS, queueTimeoutMs: 60_000 });
    for (const ticket of [1, 2, 3]) it.enter(ticket, 0);
    it.granted(1, lease('L'), 1);
    it.granted(2, lease('M'), 1);
    it.agentDown('a', 10);
    it.agentUp('a', 20);
    it.resumed('L');
    expect(short(it.tick(10 + LEASE_GRACE_MS))).toEqual([]);
    expect(short(it.done('M', 20_000))).toEqual(['release M']);
    expect(short(it.done('L', 20_000))).toEqual([]);
    expect(short(it.enter(4, 20_001))).toEqual(['assign 4 L']);
  });

  test('counts the grace period from the first loss as long as nothing was confirmed in between', () => {
    const it = admission();
    it.enter(1, 0);
    it.granted(1, lease('L'), 1);
    it.agentDown('a', 10);
    it.agentUp('a', 14_000);
    it.agentDown('a', 14_500);
    expect(it.nextTick).toBe(10 + LEASE_GRACE_MS);
    it.tick(10 + LEASE_GRACE_MS);
    expect(short(it.done('L', 15_100))).toEqual(['release L']);
  });

  test('gives slots back that are recalled and not used, and the whole lease when none of it is', () => {
    const it = admission();
    for (const ticket of [1, 2, 3]) it.enter(ticket, 0);
    it.granted(1, lease('L'), 1);
    it.granted(2, lease('M'), 1);
    expect(short(it.recalled('L', 2))).toEqual([]);
    expect(short(it.recalled('M', 2))).toEqual(['shrink M to 1']);
    it.done('M', 3);
    expect(short(it.recalled('M', 4))).toEqual(['release M']);
    expect(short(it.enter(4, 5))).toEqual(['acquire 3 a']);
  });

  test('keeps to a limit that is lowered: what is in flight goes on, and slots beyond it are given back', () => {
    const it = admission(choices('a'), { ...LIMITS, maxConcurrency: 4 });
    for (const ticket of [1, 2, 3]) it.enter(ticket, 0);
    it.granted(1, lease('L', 4), 1);
    expect(short(it.configure(LIMITS, choices('a'), ABSENT, 2))).toEqual(['shrink L to 2']);
    expect(short(it.enter(4, 3))).toEqual(['acquire 2 a']);
    expect(short(it.done('L', 4))).toEqual([]);
    expect(short(it.done('L', 5))).toEqual(['assign 4 L']);
  });

  test('asks for more of an instance when the limit is raised', () => {
    const it = admission();
    for (const ticket of [1, 2]) it.enter(ticket, 0);
    it.granted(1, lease('L'), 1);
    it.configure({ ...LIMITS, maxConcurrency: 4 }, choices('a'), ABSENT, 2);
    for (const ticket of [3, 4]) it.enter(ticket, 3);
    const more = { ...lease('M'), instance: 'i-L' };
    expect(short(it.granted(2, more, 4))).toEqual(['assign 3 M', 'assign 4 M']);
    expect(short(it.configure(LIMITS, choices('a'), ABSENT, 5))).toEqual([]);
    expect(short(it.done('M', 6))).toEqual([]);
    expect(short(it.done('M', 6))).toEqual(['release M']);
  });

  test('says with each release how long nothing was in flight', () => {
    const it = admission();
    it.enter(1, 0);
    it.granted(1, lease('L'), 1);
    it.done('L', 50);
    expect(it.tick(50 + LINGER_MS)).toEqual([{ do: 'release', lease: 'L', idleMs: LINGER_MS }]);
  });

  test('prefers the agent that serves already, then tries the others in order', () => {
    const it = admission(choices('a', 'b', 'c'));
    it.enter(1, 0);
    expect(short(it.denied(1, error('RESTORE_FAILED'), 0, 1))).toEqual(['acquire 2 b']);
    it.granted(2, lease('L', 1, 'b'), 2);
    expect(short(it.enter(2, 3))).toEqual(['acquire 3 b']);
    expect(short(it.denied(3, error('EXHAUSTED'), 50, 4))).toEqual(['acquire 4 c']);
  });

  test('waits a while for an agent that is down, then refuses at once, until it is there again', () => {
    const it = admission(choices('a'), { ...LIMITS, queueTimeoutMs: 60_000 });
    it.agentDown('a', 10);
    expect(short(it.enter(1, 20))).toEqual([]);
    expect(it.nextTick).toBe(10 + AGENT_GRACE_MS);
    expect(short(it.tick(10 + AGENT_GRACE_MS))).toEqual(['refuse 1 AGENT_DOWN']);
    expect(short(it.enter(2, 6_000))).toEqual(['refuse 2 AGENT_DOWN']);
    expect(short(it.agentUp('a', 7_000))).toEqual([]);
    expect(short(it.enter(3, 7_001))).toEqual(['acquire 1 a']);
  });

  test('does not wait for an agent that is down when all others refuse and its grace is over', () => {
    const it = admission(choices('a', 'b'), { ...LIMITS, queueTimeoutMs: 60_000 });
    it.agentDown('b', 0);
    it.enter(1, 0);
    expect(short(it.denied(1, error('RESTORE_FAILED'), 0, 10))).toEqual([]);
    expect(short(it.tick(AGENT_GRACE_MS))).toHaveLength(1);
    expect(it.waiting).toBe(0);
  });

  test('without a host refuses with the reason of the route, but serves with what it holds', () => {
    const it = admission();
    it.enter(1, 0);
    it.granted(1, lease('L'), 1);
    it.configure(LIMITS, [], ABSENT, 2);
    expect(short(it.enter(2, 3))).toEqual(['assign 2 L']);
    it.done('L', 4);
    it.done('L', 4);
    it.tick(4 + LINGER_MS);
    expect(short(it.enter(3, 5_000))).toEqual(['refuse 3 NO_HOST']);
  });
});

describe('a reserved lease', () => {
  test('is activated by the first request that no running instance has a slot for, before that is sent', () => {
    const it = admission();
    it.enter(1, 0);
    it.granted(1, lease('L', 1), 1);
    expect(short(it.reserved(lease('R'), 2))).toEqual([]);
    it.done('L', 3);
    expect(short(it.enter(2, 4))).toEqual(['assign 2 L']);
    expect(short(it.enter(3, 5))).toEqual(['activate R', 'assign 3 R']);
    expect(short(it.enter(4, 6))).toEqual(['assign 4 R']);
    expect(short(it.enter(5, 7))).toEqual(['acquire 2 a']);
  });

  test('stays as long as it is not used, and is given back like any other once it was', () => {
    const it = admission();
    it.reserved(lease('R'), 0);
    expect(it.nextTick).toBeUndefined();
    expect(it.settled).toBe(true);
    expect(short(it.tick(100 * LINGER_MS))).toEqual([]);
    it.enter(1, 200_000);
    expect(it.settled).toBe(false);
    it.done('R', 200_005);
    expect(it.nextTick).toBe(200_005 + LINGER_MS);
    expect(it.tick(200_005 + LINGER_MS)).toEqual([{ do: 'release', lease: 'R', idleMs: LINGER_MS }]);
  });

  test('serves those who wait, and what was asked for them is cancelled when nobody waits any more', () => {
    const it = admission();
    for (const ticket of [1, 2, 3]) it.enter(ticket, 0);
    expect(short(it.reserved(lease('R'), 1))).toEqual(['activate R', 'assign 1 R', 'assign 2 R']);
    expect(short(it.reserved(lease('S'), 2))).toEqual(['activate S', 'assign 3 S', 'cancel 1', 'cancel 2']);
  });

  test('is not used while its agent is away, and is still there when that is back', () => {
    const it = admission();
    it.reserved(lease('R'), 0);
    it.agentDown('a', 1);
    expect(short(it.enter(1, 2))).toEqual([]);
    it.leave(1, 3);
    expect(short(it.tick(3 * LEASE_GRACE_MS))).toEqual([]);
    it.agentUp('a', 3 * LEASE_GRACE_MS);
    expect(short(it.enter(2, 3 * LEASE_GRACE_MS))).toEqual(['activate R', 'assign 2 R']);
  });

  test('serves who waits as soon as its agent is back', () => {
    const it = admission();
    it.reserved(lease('R'), 0);
    it.agentDown('a', 1);
    it.enter(1, 2);
    expect(short(it.agentUp('a', 3))).toEqual(['activate R', 'assign 1 R']);
  });

  test('that was activated has only its grace, as others have, when its agent goes', () => {
    const it = admission();
    it.reserved(lease('R'), 0);
    it.enter(1, 1);
    it.agentDown('a', 2);
    it.tick(2 + LEASE_GRACE_MS);
    expect(short(it.done('R', 2 + LEASE_GRACE_MS))).toEqual(['release R']);
  });

  test('is given back when others need it, or no route leads to its agent any more', () => {
    const it = admission();
    it.reserved(lease('R'), 0);
    it.reserved(lease('S'), 0);
    expect(short(it.recalled('R', 1))).toEqual(['release R']);
    expect(short(it.configure(LIMITS, choices('b'), ABSENT, 2))).toEqual(['release S']);
  });

  test('that ends before it was used is gone, and whoever comes next asks', () => {
    const it = admission();
    it.reserved(lease('R'), 0);
    expect(short(it.revoked('R', 1))).toEqual(['release R']);
    expect(short(it.enter(1, 2))).toEqual(['acquire 1 a']);
  });
});

describe('several hosts', () => {
  const long = { ...LIMITS, queueTimeoutMs: 60_000 };

  test('are asked where an instance may be parked first, also when another one serves already', () => {
    const it = admission([choice('a'), choice('b', { parked: 1 })]);
    it.reserved(lease('L', 1, 'a'), 0);
    expect(short(it.enter(1, 0))).toEqual(['activate L', 'assign 1 L']);
    expect(short(it.enter(2, 1))).toEqual(['acquire 1 b']);
  });

  test('are asked in order again when the one that parks had to make an instance, until it reserves one', () => {
    const it = admission([choice('a'), choice('b', { parked: 1 })]);
    it.enter(1, 0);
    it.granted(1, lease('L', 1, 'b'), 1, true);
    it.broken('L');
    expect(short(it.enter(2, 2))).toEqual(['acquire 2 a']);
    it.leave(2, 3);
    it.reserved(lease('R', 1, 'b'), 4);
    it.enter(3, 5);
    expect(short(it.enter(4, 6))).toEqual(['acquire 3 b !i-L']);
  });

  test('that say ELSEWHERE are passed over for the next, and asked again after the time they named when all have', () => {
    const it = admission(choices('a', 'b'), long);
    it.enter(1, 0);
    expect(short(it.denied(1, error('ELSEWHERE'), 50, 10))).toEqual(['acquire 2 b']);
    expect(short(it.denied(2, error('EXHAUSTED'), 80, 20))).toEqual([]);
    expect(it.nextTick).toBe(60);
    expect(short(it.tick(60))).toEqual(['acquire 3 a']);
  });

  test('that say so without a time are not asked in a loop', () => {
    const it = admission(choices('a', 'b'), long);
    it.enter(1, 0);
    expect(short(it.denied(1, error('ELSEWHERE'), 0, 10))).toEqual(['acquire 2 b']);
    expect(short(it.denied(2, error('ELSEWHERE'), 0, 10))).toEqual([]);
    expect(it.nextTick).toBeGreaterThan(20);
  });

  test('without a share are passed over as long as another has one, though it is busy', () => {
    const it = admission([choice('a', { maxRunning: 0, parked: 1 }), choice('b')], long);
    expect(short(it.enter(1, 0))).toEqual(['acquire 1 b']);
    expect(short(it.denied(1, error('ELSEWHERE'), 50, 10))).toEqual([]);
    expect(short(it.agentDown('b', 20))).toEqual(['acquire 2 a']);
  });

  test('that do not answer lose what was asked of them to one that does, and get nothing new until they answer', () => {
    const it = admission([choice('a', { parked: 1 }), choice('b')], long);
    it.reserved(lease('R', 1, 'a'), 0);
    it.enter(1, 0);
    it.enter(2, 0);
    it.reserved(lease('S', 1, 'a'), 0);
    expect(short(it.enter(3, 0))).toEqual(['acquire 2 a']);
    expect(short(it.agentSilent('a', true, 10))).toEqual(['cancel 2', 'acquire 3 b']);
    it.reserved(lease('T', 1, 'a'), 11);
    expect(short(it.enter(4, 12))).toEqual([]);
    expect(short(it.agentSilent('a', false, 20))).toEqual(['activate T', 'assign 3 T']);
  });

  test('that do not answer are waited for where no other can serve', () => {
    const it = admission(choices('a'), long);
    it.enter(1, 0);
    expect(short(it.agentSilent('a', true, 10))).toEqual([]);
    expect(short(it.granted(1, lease('L'), 20))).toEqual(['assign 1 L']);
  });

  test('that take long are stood in for by one that may have an instance parked, once, and what is late is not needed', () => {
    const it = admission([choice('a'), choice('b'), choice('c')], long);
    expect(short(it.enter(1, 0))).toEqual(['acquire 1 a']);
    expect(short(it.tick(SLOW_MS))).toEqual([]);
    it.configure(long, [choice('a'), choice('b'), choice('c', { parked: 1 })], ABSENT, SLOW_MS + 1);
    expect(short(it.tick(SLOW_MS + 2))).toEqual([]);
    expect(short(it.granted(2, lease('L', 1, 'c'), SLOW_MS + 3))).toEqual(['assign 1 L', 'cancel 1']);
  });

  test('whose instance is out of reach get no requests over that lease, until it is reached again', () => {
    const it = admission(choices('a', 'b'), long);
    it.enter(1, 0);
    it.granted(1, lease('L'), 1);
    it.doubted('L', true, 2);
    expect(short(it.enter(2, 3))).toEqual(['acquire 2 a']);
    expect(short(it.doubted('L', false, 4))).toEqual(['assign 2 L']);
  });

  test('that are drained serve only while no other can', () => {
    const it = admission(choices('a', 'b'), long);
    it.enter(1, 0);
    it.granted(1, lease('L'), 1);
    it.configure(long, [choice('a', { draining: true }), choice('b')], ABSENT, 2);
    expect(short(it.enter(2, 3))).toEqual(['acquire 2 b']);
    expect(short(it.denied(2, error('ELSEWHERE'), 50, 4))).toEqual(['assign 2 L']);
  });
});
