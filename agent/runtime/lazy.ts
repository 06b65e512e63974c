import { readFile } from 'node:fs/promises';
import path from 'node:path';
import type { Logger } from 'pino';
import { InitlessError, toInitlessError } from '../../proto/rpc/errors.js';
import { criuErrors } from './criu.js';
import { run } from './exec.js';
import type { Exits } from './exits.js';
import { makeCgroup, removeCgroups } from './freezer.js';
import { identify, type ProcessId } from './process.js';
import type { InstanceFolder } from './rootfs.js';

/** The daemon that fills an instance's memory, and how long it may take. */
export interface Filler {
  daemon: ProcessId;
  /** Milliseconds, from when it is watched. */
  timeoutMs: number;
}

/** A daemon listens after a hundredth of this, milliseconds. */
const START_MS = 10_000;
const LOG = 'lazy-pages.log';
/** The end, as {@link Exits} has it, of a daemon that has served all of the memory. */
export const FILLED = 'exit code 0';

/** What lazy restores need. */
export interface LazyPagesParts {
  exits: Exits;
  log: Logger;
  /** CRIU, or what stands in for it. */
  program?: string;
  cgroups?: { make(name: string): Promise<string>; remove(name: string): Promise<void> };
}

/**
 * Name of the cgroup that an instance's daemon is in: beside the instance's own, so that it is neither frozen nor limited
 * with the instance, and listed and removed like it. No instance has such a name: theirs end with hexadecimal digits.
 */
export function fillerCgroup(id: string): string {
  return `${id}.lazy`;
}

/**
 * CRIU's daemons that serve lazily restored instances their memory, by userfaultfd: each page when it is first touched, and
 * all others meanwhile. Once a daemon is gone, pages that it has not served read as zeros. So its end decides: with exit
 * code 0 it has served all of them, with anything else the instance is worth nothing.
 */
export class LazyPages {
  readonly #parts: Required<LazyPagesParts>;

  constructor(parts: LazyPagesParts) {
    this.#parts = { program: 'criu', cgroups: { make: makeCgroup, remove: removeCgroups }, ...parts };
  }

  /**
   * Starts an instance's daemon and waits until it listens for the restore, which must have the same working folder. It
   * outlives this agent, and belongs to the host's reaper from its first moment: how it ends is noted whoever asks later.
   * When this fails, what may be left of it is in its cgroup. Errors: RESTORE_FAILED with CRIU's own words, DEADLINE.
   */
  async start(id: string, images: string, folder: InstanceFolder, signal?: AbortSignal): Promise<ProcessId> {
    const { program, cgroups } = this.#parts;
    const procs = await cgroups.make(fillerCgroup(id));
    const pidFile = path.join(folder.work, 'lazy-pages.pid');
    // The program that is run ends, with the pid file written, once the socket is there; the daemon is a child of it.
    const args = ['lazy-pages', '--daemon', '--pidfile', pidFile, '--log-file', LOG];
    args.push('--images-dir', images, '--work-dir', folder.work);
    try {
      await run('sh', ['-c', 'echo $$ > "$0" && exec "$@"', procs, program, ...args], {
        label: `${program} lazy-pages`,
        timeoutMs: START_MS,
        signal,
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw await this.#failed(id, folder, `could not be started: ${toInitlessError(error).message}`, error);
    }
    const daemon = identify(Number(await readFile(pidFile, 'utf8')));
    if (daemon === undefined) throw await this.#failed(id, folder, 'ended at once');
    return daemon;
  }

  /**
   * Calls `onEnd` once: without a failure when the daemon has served all of the memory, else with what became of it, also
   * when it takes too long. Its cgroup goes with it. Gives what stops that; the daemon goes on.
   */
  watch(
    id: string,
    folder: InstanceFolder,
    { daemon, timeoutMs }: Filler,
    onEnd: (failure: InitlessError | undefined) => void,
  ): () => void {
    const { exits, cgroups, log } = this.#parts;
    let over = false;
    const stop = () => {
      over = true;
      clearTimeout(timer);
      unwatch();
    };
    const end = (failure: InitlessError | undefined) => {
      if (over) return;
      stop();
      onEnd(failure);
    };
    const timer = setTimeout(async () => {
      end(await this.#failed(id, folder, `has not filled it within ${Math.round(timeoutMs)} ms`));
    }, timeoutMs);
    const unwatch = exits.watch(fillerCgroup(id), daemon, async () => {
      const status = await exits.statusOf(daemon);
      if (status !== FILLED) {
        end(await this.#failed(id, folder, `ended before it had filled it (${status ?? 'nobody knows how'})`));
        return;
      }
      end(undefined);
      await cgroups.remove(fillerCgroup(id)).catch((error: unknown) => {
        // It goes with the instance.
        log.warn({ instance: id, error }, 'the empty cgroup of a lazy-pages daemon could not be removed');
      });
    });
    return stop;
  }

  /** Waits until the daemon has served all of the memory. Errors: RESTORE_FAILED when it never will, the signal's reason. */
  filled(id: string, folder: InstanceFolder, filler: Filler, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) {
        reject(signal.reason);
        return;
      }
      const stop = this.watch(id, folder, filler, (failure) => {
        signal?.removeEventListener('abort', onAbort);
        if (failure) reject(failure);
        else resolve();
      });
      const onAbort = () => {
        stop();
        reject(signal?.reason);
      };
      signal?.addEventListener('abort', onAbort, { once: true });
    });
  }

  async #failed(id: string, folder: InstanceFolder, what: string, cause?: unknown): Promise<InitlessError> {
    const said = await criuErrors(path.join(folder.work, LOG));
    const last = said.length > 0 ? `: ${said.at(-1)}` : '';
    return new InitlessError('RESTORE_FAILED', `the lazy-pages daemon that fills the memory of ${id} ${what}${last}`, {
      subject: id,
      nextStep: "if it happens again, set 'memory: copied' for the service",
      outputTail: said,
      cause,
    });
  }
}
