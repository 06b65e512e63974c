import { describe, expect, it } from 'vitest';
import { allowedDevices, settingsOf } from '../../agent/runtime/resources.js';

const DENY_ALL = { allow: false, access: 'rwm' };
const NULL_DEVICE = { allow: true, type: 'c', major: 1, minor: 3, access: 'rwm' };
const MIB = 2 ** 20;

/** The settings as lines "controller/file value", devices left out. */
function lines(settings: { controller: string; file: string; value: string }[]): string[] {
  return settings
    .filter(({ controller }) => controller !== 'devices')
    .map(({ controller, file, value }) => `${controller}/${file} ${value}`);
}

describe('the resources of a specification', () => {
  const limited = {
    devices: [DENY_ALL],
    memory: { limit: 64 * MIB, swap: 64 * MIB, disableOOMKiller: false },
    cpu: { quota: 50_000, period: 100_000 },
    pids: { limit: 20 },
    blockIO: {},
  };

  it('limit memory from the start, CPU time and processes only once CRIU has done its work', () => {
    const { first, last } = settingsOf(limited, 1);
    expect(lines(first)).toEqual([
      'memory/memory.limit_in_bytes 67108864',
      'memory/memory.memsw.limit_in_bytes 67108864',
    ]);
    expect(lines(last)).toEqual(['cpu/cpu.cfs_period_us 100000', 'cpu/cpu.cfs_quota_us 50000', 'pids/pids.max 20']);
  });

  it('are said to version 2 in its own words: swap is counted without memory there', () => {
    const { first, last } = settingsOf(limited, 2);
    expect(lines(first)).toEqual(['memory/memory.max 67108864', 'memory/memory.swap.max 0']);
    expect(lines(last)).toEqual(['cpu/cpu.max 50000 100000', 'pids/pids.max 20']);
  });

  it('without limits set nothing, whichever way it says that there is none', () => {
    for (const version of [1, 2] as const) {
      const none = { devices: [DENY_ALL], memory: {}, cpu: { shares: 0 }, pids: { limit: 0 }, blockIO: { weight: 0 } };
      const { first, last } = settingsOf(none, version);
      expect([...lines(first), ...lines(last)]).toEqual([]);
    }
  });

  it('that cannot be kept are refused by name', () => {
    expect(() => settingsOf({ devices: [DENY_ALL], cpu: { shares: 512 } }, 2)).toThrow(/"shares":512/);
    expect(() => settingsOf({ devices: [DENY_ALL], hugepageLimits: [{ limit: 1 }] }, 1)).toThrow(/hugepageLimits/);
  });

  it('deny version 1 every device first, then let what is let', () => {
    const { first, devices } = settingsOf({ devices: [DENY_ALL, NULL_DEVICE] }, 1);
    expect(first[0]).toEqual({ controller: 'devices', file: 'devices.deny', value: 'a' });
    expect(first.slice(1).map(({ file }) => file)).toEqual(devices.map(() => 'devices.allow'));
    expect(first.map(({ value }) => value)).toContain('c 1:3 rwm');
    expect(first.map(({ value }) => value)).toContain('c 136:* rwm');
  });
});

describe('rules about devices', () => {
  it('add up for each device', () => {
    const read = { ...NULL_DEVICE, access: 'r' };
    expect(allowedDevices([DENY_ALL, read, { ...NULL_DEVICE, access: 'm' }])).toEqual(['c 1 3 rm']);
  });

  it('take away what the same numbers were let, and all of them what was let before', () => {
    const noWrite = { ...NULL_DEVICE, allow: false, access: 'w' };
    expect(allowedDevices([DENY_ALL, NULL_DEVICE, noWrite])).toEqual(['c 1 3 rm']);
    expect(allowedDevices([DENY_ALL, NULL_DEVICE, { ...NULL_DEVICE, allow: false }])).toEqual([]);
    expect(allowedDevices([NULL_DEVICE, DENY_ALL])).toEqual([]);
  });

  it('without numbers are about all of them', () => {
    expect(allowedDevices([DENY_ALL, { allow: true, type: 'b', access: 'm' }])).toEqual(['b * * m']);
  });

  it('that let everything are refused', () => {
    expect(() => allowedDevices([{ allow: true, access: 'rwm' }])).toThrow('cannot be given all devices');
    expect(() => allowedDevices([])).toThrow('cannot be given all devices');
  });
});
