import { type FSWatcher, readFileSync, watch } from 'node:fs';
import path from 'node:path';
import { sleep } from '../../proto/rpc/deadline.js';
import { readIfThere } from './files.js';
import { unifiedCgroup } from './freezer.js';
import { isAlive, type ProcessId } from './process.js';

/** Where the host's reaper notes how processes ended that nobody else waits for; see reaper.c. */
const EXITS = '/run/initless.exits';
/** How long the reaper may take to note an end that the cgroup has shown already. */
const NOTE_MS = 500;
/** How often a process is looked at on a kernel without cgroup version 2. */
const LOOK_MS = 250;

/** Ends of instances' processes. */
export interface Exits {
  /** Calls `onEnd` once when the last process of an instance has ended, also when it has already. Gives what stops that. */
  watch(id: string, process: ProcessId, onEnd: () => void): () => void;
  /** How a process ended: "exit code 3", "killed by SIGKILL". Undefined: nobody knows. */
  statusOf(process: ProcessId): Promise<string | undefined>;
}

/** The kernel's and the reaper's own. */
export const kernelExits: Exits = { watch: watchEnd, statusOf };

/** By inotify on `populated` in cgroup.events: no process, no polling, however many instances there are. */
function watchEnd(id: string, process: ProcessId, onEnd: () => void): () => void {
  const file = path.join(unifiedCgroup(id), 'cgroup.events');
  let over = false;
  let stop = () => {};
  const end = () => {
    if (over) return;
    over = true;
    stop();
    onEnd();
  };
  const look = () => {
    if (!isPopulated(file)) end();
  };
  let watcher: FSWatcher;
  try {
    watcher = watch(file, look);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    // Either the group went with the process, or this kernel has no version 2 hierarchy.
    const timer = setInterval(() => {
      if (!isAlive(process)) end();
    }, LOOK_MS);
    stop = () => clearInterval(timer);
    return () => stop();
  }
  // The group is removed only after its last process has ended, which the look has seen by then.
  watcher.on('error', end);
  stop = () => watcher.close();
  // What ended before the watch began told nobody. Not at once: the caller has nothing to stop it by yet.
  setImmediate(look);
  return () => {
    over = true;
    stop();
  };
}

function isPopulated(file: string): boolean {
  try {
    return /^populated 1$/m.test(readFileSync(file, 'utf8'));
  } catch (error) {
    // Removed, or being removed.
    if (['ENOENT', 'ENODEV'].includes((error as NodeJS.ErrnoException).code ?? '')) return false;
    throw error;
  }
}

async function statusOf(process: ProcessId): Promise<string | undefined> {
  const until = performance.now() + NOTE_MS;
  for (;;) {
    // A host whose image is older than the reaper has none.
    const found = findExit(await readIfThere(EXITS), process);
    if (found !== undefined) return found;
    if (performance.now() > until) return undefined;
    await sleep(10);
  }
}

const SIGNALS: Record<number, string> = {
  1: 'SIGHUP',
  2: 'SIGINT',
  3: 'SIGQUIT',
  4: 'SIGILL',
  6: 'SIGABRT',
  7: 'SIGBUS',
  8: 'SIGFPE',
  9: 'SIGKILL',
  11: 'SIGSEGV',
  13: 'SIGPIPE',
  15: 'SIGTERM',
  31: 'SIGSYS',
};

/** What the reaper's notes say of a process, in words. Pure. */
export function findExit(notes: string, { pid, startedAt }: ProcessId): string | undefined {
  for (const line of notes.split('\n').reverse()) {
    const [number, started, status] = line.split(' ');
    if (number !== String(pid) || started !== startedAt) continue;
    const code = Number(status);
    return code > 128 ? `killed by ${SIGNALS[code - 128] ?? `signal ${code - 128}`}` : `exit code ${code}`;
  }
  return undefined;
}
