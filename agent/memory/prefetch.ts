import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import path from 'node:path';
import { sleep, withDeadline } from '../../proto/rpc/deadline.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import type { SparseIndex } from './sparse.js';
import { type FileRange, type TouchedFile, withinExtents } from './touched.js';

/** A file, and what of it is wanted in the page cache. */
export interface WantedFile {
  /** Absolute path. */
  file: string;
  /** In order. */
  ranges: readonly FileRange[];
}

/** What of memory files is worth reading ahead: of what was touched, what is no hole. Pure. `dir`: folder of their paths. */
export function wantedFiles(dir: string, touched: readonly TouchedFile[], index: readonly SparseIndex[]): WantedFile[] {
  return touched.map((file) => {
    const extents = index.find(({ path }) => path === file.path)?.extents ?? [];
    return { file: path.join(dir, file.path), ranges: withinExtents(file.ranges, extents) };
  });
}

/** What reading ahead did. */
export interface Prefetched {
  bytes: number;
  ms: number;
  /** Whether the same list was read ahead before, so that nothing was read now. */
  before: boolean;
}

/** How fast it reads. */
export interface PrefetchBounds {
  /** So that the disk stays free for others. What is in the page cache already counts as well; it cannot be told apart. */
  bytesPerSecond: number;
  /** Reads of a file under way at a time: a disk answers several at once sooner than one after the other. */
  concurrency: number;
}

/** What it does things with. */
export interface PrefetchEffects {
  open(file: string): Promise<ReadAhead>;
  /** Milliseconds from some moment on. */
  now(): number;
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}

/** An opened file. */
export interface ReadAhead {
  /** Reads into the buffer; the number of bytes, 0 at the end of the file. */
  read(buffer: Buffer, length: number, offset: number): Promise<number>;
  close(): Promise<void>;
}

/** What is in the page cache already takes 0.2 to 0.4 ms a megabyte to read (measured, 2 cores); this leaves it 2 ms. */
const BOUNDS: PrefetchBounds = { bytesPerSecond: 500_000_000, concurrency: 4 };
/** Bytes of one read. */
const PIECE = 256 * 1024;
/** Bound on the wait for one's turn and the reading together: 300 GB at the usual rate. */
const TIMEOUT_MS = 600_000;
/** Checkpoints that may wait for their turn. */
const MAX_WAITING = 64;

const EFFECTS: PrefetchEffects = {
  open: async (file) => {
    const handle = await open(file, 'r');
    return {
      read: async (buffer, length, offset) => (await handle.read(buffer, 0, length, offset)).bytesRead,
      close: () => handle.close(),
    };
  },
  now: () => performance.now(),
  sleep,
};

/**
 * Reads parts of files into the page cache, in this process and so at the charge of its own memory cgroup: charged to the
 * instance that needs them first, they would count against its limit. One file at a time, and each list of a checkpoint once.
 */
export class Prefetcher {
  readonly #bounds: PrefetchBounds;
  readonly #effects: PrefetchEffects;
  readonly #buffers: Buffer[];
  /** Of each checkpoint the list that was read ahead. */
  readonly #done = new Map<string, string>();
  /** Ends when all that were asked for before have ended. */
  #last: Promise<unknown> = Promise.resolve();
  #waiting = 0;

  constructor(bounds: PrefetchBounds = BOUNDS, effects: PrefetchEffects = EFFECTS) {
    this.#bounds = bounds;
    this.#effects = effects;
    this.#buffers = Array.from({ length: bounds.concurrency }, () => Buffer.allocUnsafe(PIECE));
  }

  /**
   * Reads a checkpoint's list ahead, once those asked for earlier are done. A list that was read to its end is not read
   * again until the checkpoint's list is another one; one that failed is. Errors: BUSY when too many wait, DEADLINE, those
   * of reading, the signal's reason.
   */
  async prefetch(checkpoint: string, files: readonly WantedFile[], signal: AbortSignal): Promise<Prefetched> {
    signal.throwIfAborted();
    if (this.#waiting >= MAX_WAITING) {
      throw new InitlessError('BUSY', `${MAX_WAITING} checkpoints wait to be read ahead already`, {
        subject: checkpoint,
        nextStep: 'it is restored without, only slower at first',
      });
    }
    this.#waiting++;
    return withDeadline(TIMEOUT_MS, `reading ${checkpoint} ahead`, signal, (signal) => {
      const turn = () => this.#turn(checkpoint, files, signal);
      // Whatever became of the one before.
      const mine = this.#last.then(turn, turn).finally(() => this.#waiting--);
      this.#last = mine;
      return mine;
    });
  }

  /** Whether a list of this checkpoint was read to its end. */
  has(checkpoint: string): boolean {
    return this.#done.has(checkpoint);
  }

  /** To be called when a checkpoint is removed. */
  forget(checkpoint: string): void {
    this.#done.delete(checkpoint);
  }

  async #turn(checkpoint: string, files: readonly WantedFile[], signal: AbortSignal): Promise<Prefetched> {
    signal.throwIfAborted();
    const began = this.#effects.now();
    const list = createHash('sha256').update(JSON.stringify(files)).digest('hex');
    if (this.#done.get(checkpoint) === list) return { bytes: 0, ms: 0, before: true };
    let bytes = 0;
    for (const { file, ranges } of files) {
      bytes += await this.#file(file, ranges, (read) => this.#keepPace(began, bytes + read, signal), signal);
    }
    this.#done.set(checkpoint, list);
    return { bytes, ms: Math.round(this.#effects.now() - began), before: false };
  }

  /** Waits until so many bytes may have been read since `began`. */
  async #keepPace(began: number, bytes: number, signal: AbortSignal): Promise<void> {
    const early = began + (bytes / this.#bounds.bytesPerSecond) * 1000 - this.#effects.now();
    if (early > 0) await this.#effects.sleep(early, signal);
  }

  /** Returns how many bytes were read. */
  async #file(
    file: string,
    ranges: readonly FileRange[],
    pace: (bytes: number) => Promise<void>,
    signal: AbortSignal,
  ): Promise<number> {
    const opened = await this.#effects.open(file);
    try {
      const pieces = piecesOf(ranges);
      let bytes = 0;
      const reader = async (buffer: Buffer) => {
        // A reader that leaves the loop by an error ends it for the others too.
        for (const { offset, length } of pieces) {
          signal.throwIfAborted();
          const read = await opened.read(buffer, length, offset);
          bytes += read;
          await pace(bytes);
        }
      };
      // All must have ended before the file is closed.
      const ends = await Promise.allSettled(this.#buffers.map(reader));
      const failure = ends.find((end) => end.status === 'rejected');
      if (failure) throw failure.reason;
      return bytes;
    } finally {
      await opened.close();
    }
  }
}

/** Ranges cut into what is read at once. Several readers take from it. */
function* piecesOf(ranges: readonly FileRange[]): Generator<FileRange> {
  for (const { offset, length } of ranges) {
    for (let done = 0; done < length; done += PIECE) {
      yield { offset: offset + done, length: Math.min(PIECE, length - done) };
    }
  }
}
