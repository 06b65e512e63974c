import { rm } from 'node:fs/promises';
import path from 'node:path';
import { MEMORY_FOLDER } from '../memory/edit.js';
import { treeOf } from '../memory/kernel-view.js';
import type { Filler, LazyPages } from '../runtime/lazy.js';
import { Entering, restore } from '../runtime/restore.js';
import type { OutputFiles } from '../runtime/runc.js';
import type { Place } from './place.js';

/** What an instance is restored from. */
export interface RestoreSource {
  /** Folder of CRIU's images. */
  images: string;
  /** Whether memory files lie in its root file system. */
  mapped: boolean;
  /** Bound on CRIU's work, milliseconds. */
  timeoutMs: number;
}

/** How an instance is restored. */
export interface RestoreOptions {
  /** The process to do it in, where that was started ahead of time. */
  entering?: Entering;
  /** Left stopped before its first instruction. */
  stopped?: boolean;
  /** Its memory is filled by a daemon while it runs already. */
  lazy?: boolean;
  /** Told of that daemon before anything is restored: what is restored must not outlive a failure of it unnoticed. */
  onFiller?: (filler: Filler) => void;
  signal?: AbortSignal;
}

/** Restores processes into places that were made for them. */
export class Restorer {
  readonly #lazy: Pick<LazyPages, 'start' | 'filled'>;

  constructor(lazy: Pick<LazyPages, 'start' | 'filled'>) {
    this.#lazy = lazy;
  }

  /** Starts the process that restores an instance, before the instance has a place. */
  enter(id: string): Entering {
    return new Entering(id);
  }

  /** Gives the process id, on this host, of the first process. Errors: RESTORE_FAILED with CRIU's own words. */
  async restore(
    { id, folder }: Place,
    { images, mapped, timeoutMs }: RestoreSource,
    output: OutputFiles,
    { entering, stopped, lazy = false, onFiller, signal }: RestoreOptions = {},
  ): Promise<number> {
    if (lazy) {
      const daemon = await this.#lazy.start(id, images, folder, signal);
      onFiller?.({ daemon, timeoutMs });
    }
    // Mapped files need no name, and nobody inside is to open them by it, or to do anything to what is being removed here: so
    // it is removed before the first instruction.
    const stops = stopped || mapped;
    const pid = await restore(id, folder, images, output, timeoutMs, signal, { entering, stopped: stops, lazy });
    if (mapped) await rm(path.join(folder.root, MEMORY_FOLDER), { recursive: true });
    if (stops && !stopped) await resume(pid);
    return pid;
  }

  /** Waits until all memory of what was restored is there. Errors: RESTORE_FAILED when it never will be. */
  filled({ id, folder }: Place, filler: Filler, signal?: AbortSignal): Promise<void> {
    return this.#lazy.filled(id, folder, filler, signal);
  }
}

/** Lets all processes run that a restore has left stopped. */
export async function resume(pid: number): Promise<void> {
  for (const host of (await treeOf(pid)).values()) process.kill(host, 'SIGCONT');
}
