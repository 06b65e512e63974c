import { InitlessError } from '../../proto/rpc/errors.js';
import type { DeviceRule, Resources } from './spec.js';

/** One value that a cgroup's file is given. */
export interface Setting {
  /** The version 1 hierarchy that has the file; version 2 has one for all. */
  controller: string;
  file: string;
  value: string;
}

/** What a specification's resources mean for the files of a cgroup. */
export interface Settings {
  /** In force from the start. */
  first: Setting[];
  /**
   * In force once the processes are restored: CRIU works in the cgroup too, and would be slowed down, or kept from the
   * processes that it needs besides, by what is meant for the service alone.
   */
  last: Setting[];
  /** Devices that may be used, each as "TYPE MAJOR MINOR ACCESS". With version 1 they are among `first` too. */
  devices: string[];
}

/** What runc lets every container use, whatever its specification says (runc 1.3.6, specconv.AllowedDevices). */
const ALWAYS: readonly DeviceRule[] = [
  { allow: true, type: 'c', access: 'm' },
  { allow: true, type: 'b', access: 'm' },
  ...[
    [1, 3],
    [1, 8],
    [1, 7],
    [5, 0],
    [1, 5],
    [1, 9],
    [5, 2],
    [10, 200],
  ].map(([major, minor]) => ({ allow: true, type: 'c', major, minor, access: 'rwm' })),
  { allow: true, type: 'c', major: 136, access: 'rwm' },
];

/**
 * The settings of the resources that {@link instanceSpec} and Docker's defaults can bring. Pure.
 * Errors: UNSUPPORTED for any other that is set: a limit that is not kept must not look as if it were.
 */
export function settingsOf(resources: Resources, version: 1 | 2): Settings {
  const { devices, memory, cpu, pids, ...others } = resources;
  const { limit, swap, ...otherMemory } = memory ?? {};
  const { quota, period, ...otherCpu } = cpu ?? {};
  const { limit: processes, ...otherPids } = pids ?? {};
  const unknown = Object.entries({ ...others, ...otherMemory, ...otherCpu, ...otherPids }).filter(([, value]) =>
    isSet(value),
  );
  if (unknown.length > 0) {
    throw new InitlessError(
      'UNSUPPORTED',
      `a restored instance cannot be given ${JSON.stringify(Object.fromEntries(unknown))}`,
      {
        subject: 'linux.resources',
      },
    );
  }
  const first: Setting[] = [];
  const last: Setting[] = [];
  const set = (into: Setting[], controller: string, v1: string, v2: string, value: string) =>
    into.push({ controller, file: version === 1 ? v1 : v2, value });
  if (limit) set(first, 'memory', 'memory.limit_in_bytes', 'memory.max', String(limit));
  // Version 1 counts memory and swap together, version 2 swap alone.
  if (limit && swap !== undefined) {
    set(first, 'memory', 'memory.memsw.limit_in_bytes', 'memory.swap.max', String(version === 1 ? swap : swap - limit));
  }
  if (quota && period && version === 2) set(last, 'cpu', '', 'cpu.max', `${quota} ${period}`);
  if (quota && period && version === 1) {
    set(last, 'cpu', 'cpu.cfs_period_us', '', String(period));
    set(last, 'cpu', 'cpu.cfs_quota_us', '', String(quota));
  }
  if (processes) set(last, 'pids', 'pids.max', 'pids.max', processes > 0 ? String(processes) : 'max');
  const allowed = allowedDevices([...(devices ?? []), ...ALWAYS]);
  if (version === 1) {
    // A rule that names no device is one for all of them.
    for (const value of ['a', ...allowed.map(v1Rule)]) {
      first.push({ controller: 'devices', file: value === 'a' ? 'devices.deny' : 'devices.allow', value });
    }
  }
  return { first, last, devices: allowed };
}

/** "c 1 3 rwm" as the version 1 controller takes it: "c 1:3 rwm". */
function v1Rule(rule: string): string {
  const [type, major, minor, access] = rule.split(' ');
  return `${type} ${major}:${minor} ${access}`;
}

/** Whether a value says more than that there is none. */
function isSet(value: unknown): boolean {
  if (value !== null && typeof value === 'object') return Object.values(value).some(isSet);
  return value !== undefined && value !== null && value !== false && value !== 0 && value !== '';
}

/**
 * What a list of rules lets, as the kernel's version 1 controller reads one after the other: a rule for all devices
 * begins anew, any other adds to, or takes from, the entry with the same numbers. Pure.
 * Errors: UNSUPPORTED where all devices are let, which nothing here asks for.
 */
export function allowedDevices(rules: readonly DeviceRule[]): string[] {
  const allowed = new Map<string, Set<string>>();
  let everything = true;
  for (const { allow, type = 'a', major = -1, minor = -1, access = 'rwm' } of rules) {
    if (type === 'a') {
      allowed.clear();
      everything = allow;
      continue;
    }
    const number = (value: number) => (value < 0 ? '*' : String(value));
    const key = `${type === 'u' ? 'c' : type} ${number(major)} ${number(minor)}`;
    const entry = allowed.get(key) ?? new Set<string>();
    for (const letter of access) {
      if (allow) entry.add(letter);
      else entry.delete(letter);
    }
    if (entry.size > 0) allowed.set(key, entry);
    else allowed.delete(key);
  }
  if (everything) throw new InitlessError('UNSUPPORTED', 'a restored instance cannot be given all devices');
  return [...allowed].map(
    ([key, access]) => `${key} ${['r', 'w', 'm'].filter((letter) => access.has(letter)).join('')}`,
  );
}
