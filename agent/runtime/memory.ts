import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import path from 'node:path';

/** Memory that something has, bytes. */
export interface MemoryReading {
  /** What it is of, for people. */
  of: string;
  total: number;
  /** What can still be taken without anything else suffering. */
  available: number;
}

/** Where the kernel tells of memory. */
export interface MemoryFiles {
  proc: string;
  cgroups: string;
}

const KERNEL: MemoryFiles = { proc: '/proc', cgroups: '/sys/fs/cgroup' };

/**
 * The memory of the machine, and that of this host's own cgroup where it has a limit (version 1 or 2), at this moment.
 * Errors: those of reading /proc/meminfo.
 */
export function readMemory({ proc, cgroups } = KERNEL): MemoryReading[] {
  const meminfo = fieldsOf(readFileSync(path.join(proc, 'meminfo'), 'utf8'), 1024);
  const total = meminfo.get('MemTotal') ?? 0;
  const machine = { of: 'the machine', total, available: meminfo.get('MemAvailable') ?? 0 };
  const forms = [
    { dir: cgroups, limit: 'memory.max', used: 'memory.current', idle: 'inactive_file' },
    {
      dir: path.join(cgroups, 'memory'),
      limit: 'memory.limit_in_bytes',
      used: 'memory.usage_in_bytes',
      idle: 'total_inactive_file',
    },
  ];
  for (const { dir, limit: limitFile, used, idle } of forms) {
    const limit = Number(readOrEmpty(path.join(dir, limitFile)) || Number.NaN);
    // "max", and a number that no machine has, mean that there is none.
    if (!(limit < total)) continue;
    const usage = Number(readOrEmpty(path.join(dir, used)));
    // Page cache that nothing has touched lately goes as soon as memory is wanted.
    const cache = fieldsOf(readOrEmpty(path.join(dir, 'memory.stat')), 1).get(idle) ?? 0;
    const available = Math.max(0, limit - usage + cache);
    return [machine, { of: "this host's memory limit", total: limit, available }];
  }
  return [machine];
}

/**
 * Memory of their own that processes hold, bytes: what they wrote, and shared memory by their share of it. The pages of
 * a checkpoint that its instances map, and the image's files, are not in it: they are there once for all of them.
 */
export async function ownMemory(pids: readonly number[], { proc } = KERNEL): Promise<number> {
  const texts = await Promise.all(
    pids.map((pid) =>
      readFile(path.join(proc, String(pid), 'smaps_rollup'), 'utf8').catch((error: NodeJS.ErrnoException) => {
        // The process has ended in between.
        if (error.code === 'ENOENT' || error.code === 'ESRCH') return '';
        throw error;
      }),
    ),
  );
  return texts
    .map((text) => fieldsOf(text, 1024))
    .reduce((sum, fields) => sum + (fields.get('Pss_Anon') ?? 0) + (fields.get('Pss_Shmem') ?? 0), 0);
}

/** The numbers in a file of lines such as "MemTotal:  16384 kB" or "inactive_file 4096". */
function fieldsOf(text: string, unit: number): Map<string, number> {
  const fields = [...text.matchAll(/^(\w+):?\s+(\d+)/gm)];
  return new Map(fields.map(([, name, value]) => [name as string, Number(value) * unit]));
}

function readOrEmpty(file: string): string {
  try {
    return readFileSync(file, 'utf8').trim();
  } catch {
    // Of the two versions of cgroups only one is there, and at its root there is no limit.
    return '';
  }
}
