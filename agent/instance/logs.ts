import { mkdir, open, readdir, rm, stat } from 'node:fs/promises';
import path from 'node:path';
import { LogStream } from '../../proto/gen/initless/v1/types.js';
import { sleep } from '../../proto/rpc/deadline.js';
import type { OutputFiles } from '../runtime/runc.js';

/** A log beyond this is cut to its last quarter, bytes. */
const LIMIT = 8 * 1024 * 1024;
/** Logs of this many instances of a service are kept; the oldest go first. */
const KEPT_INSTANCES = 20;
/** How often a followed log is looked at. */
const FOLLOW_MS = 200;

/** A piece of a log. */
export interface Piece {
  instance: string;
  stream: LogStream;
  data: Buffer;
}

/** What instances print. Services write to the files themselves, so that no agent is needed for them to go on. */
export class Logs {
  readonly #root: string;

  constructor(root: string) {
    this.#root = root;
  }

  /** Files for a new instance's output; old instances' logs beyond the limit go. */
  async create(service: string, instance: string): Promise<OutputFiles> {
    const dir = path.join(this.#root, service);
    await mkdir(dir, { recursive: true, mode: 0o700 });
    const instances = await this.#instances(service);
    for (const old of instances.slice(0, Math.max(0, instances.length - KEPT_INSTANCES + 1))) {
      await Promise.all(['out', 'err'].map((end) => rm(path.join(dir, `${old}.${end}`), { force: true })));
    }
    return this.files(service, instance);
  }

  /** The files of an instance's output. */
  files(service: string, instance: string): OutputFiles {
    const base = path.join(this.#root, service, instance);
    return { stdout: `${base}.out`, stderr: `${base}.err` };
  }

  /** Removes all logs of a service. */
  async remove(service: string): Promise<void> {
    await rm(path.join(this.#root, service), { recursive: true, force: true });
  }

  /** Instances of a service that have a log, oldest first. */
  async #instances(service: string): Promise<string[]> {
    const dir = path.join(this.#root, service);
    let names: string[];
    try {
      names = await readdir(dir);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
      throw error;
    }
    const born = new Map<string, number>();
    for (const name of names) {
      const info = await stat(path.join(dir, name)).catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'ENOENT') return undefined;
        throw error;
      });
      const instance = name.replace(/\.(out|err)$/, '');
      if (info) born.set(instance, Math.min(info.birthtimeMs, born.get(instance) ?? Number.POSITIVE_INFINITY));
    }
    return [...born.entries()].sort(([, a], [, b]) => a - b).map(([instance]) => instance);
  }

  /** Cuts every log that has grown beyond the limit to its last quarter. Writers append, so they go on at its end. */
  async trim(): Promise<void> {
    const services = await readdir(this.#root).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return [];
      throw error;
    });
    for (const service of services) {
      for (const name of await readdir(path.join(this.#root, service)))
        await trimFile(path.join(this.#root, service, name));
    }
  }

  /**
   * The last `tail` lines (0: all) of each log of a service, or of one instance; with `follow` also what is added, and
   * logs that appear, until `signal` aborts.
   */
  async *read(
    service: string,
    instance: string,
    tail: number,
    follow: boolean,
    signal: AbortSignal,
  ): AsyncGenerator<Piece> {
    const offsets = new Map<string, number>();
    let first = true;
    for (;;) {
      const instances = instance === '' ? await this.#instances(service) : [instance];
      for (const name of instances) {
        const files = this.files(service, name);
        for (const [file, stream] of [
          [files.stdout, LogStream.LOG_STREAM_STDOUT],
          [files.stderr, LogStream.LOG_STREAM_STDERR],
        ] as const) {
          const at = offsets.get(file) ?? 0;
          const data = await readFrom(file, at);
          offsets.set(file, data.next);
          const wanted = first && tail > 0 ? lastLinesOf(data.bytes, tail) : data.bytes;
          if (wanted.length > 0) yield { instance: name, stream, data: wanted };
        }
      }
      if (!follow || signal.aborted) return;
      first = false;
      await sleep(FOLLOW_MS, signal).catch(() => {});
      if (signal.aborted) return;
    }
  }
}

/** What is in a file from `offset` on; from its start when it was cut meanwhile. A missing file is empty. */
async function readFrom(file: string, offset: number): Promise<{ bytes: Buffer; next: number }> {
  let handle: Awaited<ReturnType<typeof open>>;
  try {
    handle = await open(file, 'r');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { bytes: Buffer.alloc(0), next: 0 };
    throw error;
  }
  try {
    const { size } = await handle.stat();
    const from = size < offset ? 0 : offset;
    const bytes = Buffer.alloc(Math.min(size - from, LIMIT * 2));
    const { bytesRead } = await handle.read(bytes, 0, bytes.length, from);
    return { bytes: bytes.subarray(0, bytesRead), next: from + bytesRead };
  } finally {
    await handle.close();
  }
}

/** The last `count` lines of `bytes`, whole. */
export function lastLinesOf(bytes: Buffer, count: number): Buffer {
  let at = bytes.length - 1;
  for (let lines = 0; at >= 0; at--) {
    if (bytes[at] === 10 && at !== bytes.length - 1) lines++;
    if (lines === count) return bytes.subarray(at + 1);
  }
  return bytes;
}

async function trimFile(file: string): Promise<void> {
  const handle = await open(file, 'r+').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  });
  if (handle === undefined) return;
  try {
    const { size } = await handle.stat();
    if (size <= LIMIT) return;
    const kept = Buffer.alloc(LIMIT / 4);
    const { bytesRead } = await handle.read(kept, 0, kept.length, size - kept.length);
    await handle.truncate(0);
    await handle.write(kept, 0, bytesRead, 0);
  } finally {
    await handle.close();
  }
}
