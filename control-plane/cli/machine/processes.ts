import { readdirSync, readFileSync, readlinkSync } from 'node:fs';

/** A process's arguments from /proc; undefined when there is none with that id, or it has none (a kernel thread). */
export function commandLine(pid: number): string[] | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/cmdline`, 'utf8');
    return text === '' ? undefined : text.replace(/\0$/, '').split('\0');
  } catch {
    return undefined; // It ended.
  }
}

/** Ids of the processes of that program name in our own pid namespace; those inside containers are others' affair. */
export function processesNamed(name: string): number[] {
  const own = readlinkSync('/proc/self/ns/pid');
  return readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry))
    .map(Number)
    .filter((pid) => {
      try {
        if (readFileSync(`/proc/${pid}/comm`, 'utf8').trim() !== name) return false;
        // One that has ended and is not reaped yet keeps its name but not its arguments.
        return readlinkSync(`/proc/${pid}/ns/pid`) === own && commandLine(pid) !== undefined;
      } catch {
        return false; // It ended while we looked.
      }
    });
}

/** The number a pid file holds; undefined when the file is missing or holds something else. */
export function readPidFile(path: string): number | undefined {
  try {
    const pid = Number.parseInt(readFileSync(path, 'utf8'), 10);
    return pid > 1 ? pid : undefined;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}
