/** Bit numbers of <linux/capability.h>; what is not named is only ever counted. */
const NAMES: Record<number, string> = {
  0: 'CHOWN',
  1: 'DAC_OVERRIDE',
  2: 'DAC_READ_SEARCH',
  3: 'FOWNER',
  4: 'FSETID',
  5: 'KILL',
  6: 'SETGID',
  7: 'SETUID',
  8: 'SETPCAP',
  9: 'LINUX_IMMUTABLE',
  10: 'NET_BIND_SERVICE',
  11: 'NET_BROADCAST',
  12: 'NET_ADMIN',
  13: 'NET_RAW',
  14: 'IPC_LOCK',
  15: 'IPC_OWNER',
  16: 'SYS_MODULE',
  17: 'SYS_RAWIO',
  18: 'SYS_CHROOT',
  19: 'SYS_PTRACE',
  20: 'SYS_PACCT',
  21: 'SYS_ADMIN',
  22: 'SYS_BOOT',
  23: 'SYS_NICE',
  24: 'SYS_RESOURCE',
  25: 'SYS_TIME',
  26: 'SYS_TTY_CONFIG',
  27: 'MKNOD',
  28: 'LEASE',
  29: 'AUDIT_WRITE',
  30: 'AUDIT_CONTROL',
  31: 'SETFCAP',
  32: 'MAC_OVERRIDE',
  33: 'MAC_ADMIN',
  34: 'SYSLOG',
  35: 'WAKE_ALARM',
  36: 'BLOCK_SUSPEND',
  37: 'AUDIT_READ',
  38: 'PERFMON',
  39: 'BPF',
  40: 'CHECKPOINT_RESTORE',
};

/** Without these no host can work, whatever the flags: engine, sandboxes and CRIU need them. */
const NEEDED = ['SETGID', 'SETUID', 'NET_ADMIN', 'NET_RAW', 'SYS_CHROOT', 'SYS_PTRACE', 'SYS_ADMIN', 'MKNOD'];

/** What the machine's root may do, as far as a host is concerned. */
export interface Privilege {
  /** Whether `--privileged` can work: an engine that asks for a capability outside the bounding set is refused it all. */
  privileged: boolean;
  /** Names of the missing capabilities. */
  missing: string[];
  /** Those of them that no host can do without. */
  fatal: string[];
}

/**
 * Reads the bounding set.
 *
 * @param status text of /proc/self/status; its CapBnd is a hexadecimal mask.
 * @param lastCapability text of /proc/sys/kernel/cap_last_cap: the highest bit that the kernel knows.
 */
export function privilegeOf(status: string, lastCapability: string): Privilege {
  const mask = /^CapBnd:\s*([0-9a-f]+)$/im.exec(status)?.[1];
  const last = Number.parseInt(lastCapability, 10);
  if (mask === undefined || Number.isNaN(last)) {
    throw new Error('neither /proc/self/status nor /proc/sys/kernel/cap_last_cap can be understood');
  }
  const bounding = BigInt(`0x${mask}`);
  const missing: string[] = [];
  for (let bit = 0; bit <= last; bit += 1) {
    if ((bounding & (1n << BigInt(bit))) === 0n) missing.push(NAMES[bit] ?? `CAP_${bit}`);
  }
  return {
    privileged: missing.length === 0,
    missing,
    fatal: missing.filter((name) => NEEDED.includes(name)),
  };
}

/**
 * Which of the missing capabilities to take out of "ALL" by name. Engines up to 20.10 know none after AUDIT_READ: they
 * refuse a name they do not know, and never add what they do not know. Later ones leave out by themselves what is missing.
 */
export function droppable(missing: readonly string[]): string[] {
  const known = new Set(Object.values(NAMES).slice(0, 38));
  return missing.filter((name) => known.has(name));
}
