import { describe, expect, it } from 'vitest';
import { Instance } from '../../agent/instance/instance.js';
import { isHung, Liveness, nextPulse, type Pulse } from '../../agent/instance/liveness.js';
import { findExit } from '../../agent/runtime/exits.js';
import type { Attempt } from '../../agent/runtime/health.js';
import { ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import { Origin, ServiceConfig } from '../../proto/gen/initless/v1/types.js';

const NEW: Pulse = { dueAt: 0, failingSince: undefined };

describe('the pulse of a running instance', () => {
  it('counts failures from the first one on, and one good answer makes up for all', () => {
    const failing = nextPulse(nextPulse(NEW, 'silent', 100, 1_100), 'mismatch', 2_000, 2_050);
    expect(failing.failingSince).toBe(100);
    expect(nextPulse(failing, 'healthy', 3_000, 3_010).failingSince).toBeUndefined();
  });

  it('asks a failing instance sooner than one that is well', () => {
    expect(nextPulse(NEW, 'silent', 0, 10).dueAt).toBeLessThan(nextPulse(NEW, 'healthy', 0, 10).dueAt);
  });

  it('is that of a hung one after hang_timeout, and never where that is 0', () => {
    const failing = nextPulse(NEW, 'silent', 100, 1_100);
    expect(isHung(failing, 1_000, 1_099)).toBe(false);
    expect(isHung(failing, 1_000, 1_100)).toBe(true);
    expect(isHung(failing, 0, 1_000_000)).toBe(false);
    expect(isHung(NEW, 1, 1_000_000)).toBe(false);
  });
});

describe('the watch over running instances', () => {
  function world(outcome: () => Attempt) {
    const config = ServiceConfig.fromPartial({
      serviceName: 'web',
      hangTimeoutMs: 1,
      healthCheck: { path: '/health', timeoutMs: 50 },
    });
    const instance = new Instance('web-1', ServiceAssignment.fromPartial({ config }), Origin.ORIGIN_RESTORED);
    instance.apply({ type: 'start' });
    instance.apply({ type: 'healthy' });
    const hung: string[] = [];
    let asked = 0;
    let looks = 0;
    const liveness = new Liveness({
      list: () => [instance],
      onHung: (_, why) => hung.push(why.message),
      attempt: async () => {
        asked += 1;
        await new Promise((resolve) => setTimeout(resolve, 5));
        return outcome();
      },
    });
    const look = async () => {
      // Each look is an hour after the one before: whatever was due in between is due now.
      liveness.look(performance.now() + 3_600_000 * ++looks, new AbortController().signal);
      await new Promise((resolve) => setTimeout(resolve, 30));
    };
    return { instance, hung, look, asked: () => asked };
  }

  it('tells of one that does not answer, with what came last', async () => {
    const { hung, look } = world(() => ({ kind: 'silent', reason: 'no answer within 50 ms' }));
    await look();
    await look();
    expect(hung).toEqual([
      'web-1 hangs: every health check GET /health has failed for 0.001 s; last: no answer within 50 ms',
    ]);
  });

  it('leaves one alone that answers', async () => {
    const { hung, look, asked } = world(() => ({ kind: 'healthy' }));
    for (let i = 0; i < 4; i++) await look();
    expect(asked()).toBe(3);
    expect(hung).toEqual([]);
  });

  it('does not ask a parked one', async () => {
    const { instance, look, asked } = world(() => ({ kind: 'silent', reason: 'frozen' }));
    instance.apply({ type: 'park' });
    for (let i = 0; i < 3; i++) await look();
    expect(asked()).toBe(0);
  });

  it('forgets what it saw of one that was parked meanwhile', async () => {
    const { instance, hung, look } = world(() => {
      instance.apply({ type: 'park' });
      return { kind: 'silent', reason: 'frozen' };
    });
    await look();
    await look();
    instance.apply({ type: 'thaw' });
    await look();
    expect(hung).toEqual([]);
  });
});

describe('how a process ended', () => {
  const notes = '11 500 3\n12 600 137\n11 700 0\n13 800 199\n';

  it('is told in words', () => {
    expect(findExit(notes, { pid: 11, startedAt: '500' })).toBe('exit code 3');
    expect(findExit(notes, { pid: 12, startedAt: '600' })).toBe('killed by SIGKILL');
    expect(findExit(notes, { pid: 13, startedAt: '800' })).toBe('killed by signal 71');
  });

  it('is not mistaken for the end of another process with the same number', () => {
    expect(findExit(notes, { pid: 11, startedAt: '700' })).toBe('exit code 0');
    expect(findExit(notes, { pid: 11, startedAt: '701' })).toBeUndefined();
  });
});
