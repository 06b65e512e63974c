import { readFileSync } from 'node:fs';

/** One process, and never another one that has its number later: its id, when it started, and in which boot. */
export interface ProcessIdentity {
  pid: number;
  /** Start time in clock ticks since the boot (field 22 of /proc/PID/stat, proc_pid_stat(5)). */
  start: string;
  /** /proc/sys/kernel/random/boot_id. */
  boot: string;
}

/** State letter and start time from the text of /proc/PID/stat. The name in it may hold blanks and parentheses. */
export function parseStat(text: string): { state: string; start: string } | undefined {
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  const [state, start] = [fields[0], fields[19]];
  return state && start ? { state, start } : undefined;
}

/** The process that has this number now; undefined when none has, or one that has ended and waits to be reaped. */
export function identityOf(pid: number): ProcessIdentity | undefined {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/stat`, 'utf8');
  } catch {
    return undefined; // There is none.
  }
  const stat = parseStat(text);
  if (!stat || stat.state === 'Z' || stat.state === 'X') return undefined;
  return { pid, start: stat.start, boot: readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim() };
}

/** Whether two identities are of the same process. */
export function sameProcess(a: ProcessIdentity, b: ProcessIdentity | undefined): boolean {
  return b !== undefined && a.pid === b.pid && a.start === b.start && a.boot === b.boot;
}

/** Whether that process is still there. */
export function isAlive(identity: ProcessIdentity): boolean {
  return sameProcess(identity, identityOf(identity.pid));
}

/** Sends a signal to that process and to no other; false when it is not there any more. */
export function signalProcess(identity: ProcessIdentity, signal: NodeJS.Signals): boolean {
  if (!isAlive(identity)) return false;
  try {
    process.kill(identity.pid, signal);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false;
    throw error;
  }
}
