import { mkdir, rename, rm } from 'node:fs/promises';
import path from 'node:path';
import type { Logger } from 'pino';
import {
  type DescribeRevisionResponse,
  type ExportRevisionRequest,
  type FetchPartRequest,
  type TransferPart,
  TransferPartKind,
} from '../../proto/gen/initless/v1/transfer.js';
import { repeat, withDeadline } from '../../proto/rpc/deadline.js';
import { InitlessError, problemOf } from '../../proto/rpc/errors.js';
import type { Checkpoints } from '../checkpoint/checkpoints.js';
import { EXTENTS, type Manifest, MEMORY } from '../checkpoint/manifest.js';
import type { Revisions } from '../checkpoint/revisions.js';
import { readIndex } from '../memory/sparse.js';
import type { DockerEngine } from '../runtime/docker.js';
import { readIfThere } from '../runtime/files.js';
import { chunksOf, chunksOfMemory, piecesOf } from './chunks.js';
import { takeBlobs } from './image-archive.js';
import { idOf, textDigest } from './parts.js';
import type { Rate } from './rate.js';
import { Slots } from './slots.js';
import { inTree, packTree } from './tree-archive.js';

/** What revisions are read from, and where their archives go. */
export interface ExportParts {
  docker: Pick<DockerEngine, 'image' | 'save'>;
  checkpoints: Pick<Checkpoints, 'pin'>;
  revisions: Pick<Revisions, 'get'>;
  rate: Rate;
  /** Folder of the archives that are made for copies. */
  spool: string;
  log: Logger;
  /** Told when a checkpoint that was being read is not any more. */
  onReleased: () => void;
  /** Milliseconds since some moment. */
  now?: () => number;
}

/** What is kept ready of a revision is removed when nobody has asked for it for so long, milliseconds. */
const IDLE_MS = 60_000;
/** Revisions that are made ready at a time: that reads a whole image and a whole checkpoint. */
const MAKING = 2;
/** Streams at a time; each holds a few pieces in memory. */
const STREAMS = 16;
/** Calls that may wait for either. */
const WAITING = 32;
/** Bound on making parts of one revision ready, milliseconds. */
const MAKE_TIMEOUT_MS = 600_000;

/** A part that can be read. */
interface Ready {
  part: TransferPart;
  file: string;
}

/** A checkpoint that is being read. */
type Pin = Awaited<ReturnType<Checkpoints['pin']>>;

/** What is ready of one revision. */
interface Export {
  folder: string;
  /** By what they are; see {@link slotOf}. */
  parts: Map<string, Ready>;
  pin: Pin | undefined;
  /** Calls that use it now. */
  users: number;
  usedAt: number;
  /** One call at a time makes parts of it. */
  making: Promise<unknown>;
}

/** What this host gives to others: revisions in parts, each made ready when it is asked for and for as long as it is. */
export class Exports {
  readonly #parts: ExportParts;
  readonly #now: () => number;
  readonly #exports = new Map<string, Export>();
  /** Number of the next folder: an old one may still be being removed. */
  #folders = 0;
  readonly #making = new Slots(MAKING, WAITING, 'copies that are made ready');
  readonly #streams = new Slots(STREAMS, WAITING, 'copies that are sent');

  constructor(parts: ExportParts) {
    this.#parts = parts;
    this.#now = parts.now ?? (() => performance.now());
  }

  /** Removes what an earlier run of the agent left. */
  async start(): Promise<void> {
    await rm(this.#parts.spool, { recursive: true, force: true });
    await mkdir(this.#parts.spool, { recursive: true, mode: 0o700 });
  }

  /** What there is of a revision. Errors: NOT_FOUND, ENGINE_DOWN. */
  async describe(service: string, revision: string, signal: AbortSignal): Promise<DescribeRevisionResponse> {
    const { docker, checkpoints, revisions } = this.#parts;
    const record = revisions.get(service, revision);
    const { layers } = await docker.image(record.imageId);
    const about = { imageId: record.imageId, layers, problem: record.problem };
    try {
      const pin = await checkpoints.pin(service, revision, signal);
      pin.release();
      return { ...about, manifest: pin.text, problem: undefined };
    } catch (error) {
      signal.throwIfAborted();
      return { ...about, manifest: '', problem: record.problem ?? problemOf(error) };
    }
  }

  /** Makes parts ready. Errors: NOT_FOUND, BUSY, DEADLINE, those of packing and of the engine. */
  async export(request: ExportRevisionRequest, signal: AbortSignal): Promise<TransferPart[]> {
    // Before anything is named after it.
    this.#parts.revisions.get(request.service, request.revision);
    const key = keyOf(request);
    const one = this.#exports.get(key) ?? {
      folder: path.join(this.#parts.spool, `${this.#folders++}-${key}`),
      parts: new Map(),
      pin: undefined,
      users: 0,
      usedAt: this.#now(),
      making: Promise.resolve(),
    };
    this.#exports.set(key, one);
    return this.#using(one, () => {
      const made = one.making.then(() => this.#making.run(signal, () => this.#makeBounded(one, request)));
      one.making = made.catch(() => {});
      return made;
    });
  }

  /** Others may wait for the same parts: a caller that goes away does not stop it. */
  #makeBounded(one: Export, request: ExportRevisionRequest): Promise<TransferPart[]> {
    const what = `making revision ${request.revision} of ${request.service} ready to be copied`;
    return withDeadline(MAKE_TIMEOUT_MS, what, undefined, (signal) => this.#make(one, request, signal));
  }

  async #make(one: Export, request: ExportRevisionRequest, signal: AbortSignal): Promise<TransferPart[]> {
    const { service, revision, image, layers, manifest } = request;
    await mkdir(one.folder, { recursive: true, mode: 0o700 });
    const wanted: string[] = [];
    if (image || layers.length > 0) {
      const { imageId } = this.#parts.revisions.get(service, revision);
      const blobs = new Map<string, TransferPartKind>();
      if (image) blobs.set(imageId, TransferPartKind.TRANSFER_PART_KIND_IMAGE_CONFIG);
      for (const layer of layers) blobs.set(layer, TransferPartKind.TRANSFER_PART_KIND_LAYER);
      await this.#makeImage(one, imageId, blobs, signal);
      wanted.push(...[...blobs].map(([name, kind]) => slotOf({ kind, name })));
    }
    if (manifest !== '') {
      await this.#makeCheckpoint(one, request, signal);
      wanted.push(...[...one.parts.keys()].filter((slot) => isOfCheckpoint(one.parts.get(slot) as Ready)));
    }
    return wanted.map((slot) => (one.parts.get(slot) as Ready).part);
  }

  async #makeImage(
    one: Export,
    imageId: string,
    blobs: ReadonlyMap<string, TransferPartKind>,
    signal: AbortSignal,
  ): Promise<void> {
    const missing = [...blobs].filter(([name, kind]) => !one.parts.has(slotOf({ kind, name })));
    if (missing.length === 0) return;
    const fileOf = (name: string) => path.join(one.folder, name.replace(':', '-'));
    const archive = await this.#parts.docker.save(imageId);
    try {
      await takeBlobs(archive, new Map(missing.map(([name]) => [name, `${fileOf(name)}.new`])), signal);
    } catch (error) {
      for (const [name] of missing) await rm(`${fileOf(name)}.new`, { force: true });
      throw error;
    } finally {
      archive.destroy();
    }
    for (const [name, kind] of missing) {
      await rename(`${fileOf(name)}.new`, fileOf(name));
      this.#ready(one, { kind, name, ...(await chunksOf(fileOf(name), signal)) }, fileOf(name));
    }
  }

  async #makeCheckpoint(
    one: Export,
    { service, revision, manifest: digest }: ExportRevisionRequest,
    signal: AbortSignal,
  ): Promise<void> {
    const pin = await this.#parts.checkpoints.pin(service, revision, signal);
    if (textDigest(pin.text) !== digest) {
      pin.release();
      throw new InitlessError('NOT_FOUND', `the checkpoint of ${service}, revision ${revision}, is another one by now`);
    }
    if (one.pin?.dir === pin.dir) {
      // It is ready, and pinned since then.
      pin.release();
      return;
    }
    this.#dropCheckpoint(one);
    one.pin = pin;
    try {
      await this.#makeFiles(one, pin, signal);
    } catch (error) {
      this.#dropCheckpoint(one);
      throw error;
    }
  }

  async #makeFiles(one: Export, { dir, manifest }: Pin, signal: AbortSignal): Promise<void> {
    const extents = path.join(dir, EXTENTS);
    const text = await readIfThere(extents);
    const memory = new Map(
      text === '' ? [] : readIndex(text, extents).map((file) => [path.join(MEMORY, file.path), file]),
    );
    for (const { path: name } of filesOf(manifest)) {
      const file = path.join(dir, name);
      const index = memory.get(name);
      const content = index ? chunksOfMemory(index) : await chunksOf(file, signal);
      this.#ready(one, { kind: TransferPartKind.TRANSFER_PART_KIND_FILE, name, ...content }, file);
    }
    const archive = path.join(one.folder, 'tree.tar');
    await rm(archive, { force: true });
    await packTree(dir, archive, signal);
    const content = await chunksOf(archive, signal);
    this.#ready(one, { kind: TransferPartKind.TRANSFER_PART_KIND_TREE, name: '', ...content }, archive);
  }

  #ready(one: Export, part: TransferPart, file: string): void {
    one.parts.set(slotOf(part), { part, file });
  }

  #dropCheckpoint(one: Export): void {
    for (const [slot, ready] of one.parts) if (isOfCheckpoint(ready)) one.parts.delete(slot);
    if (one.pin === undefined) return;
    one.pin.release();
    one.pin = undefined;
    this.#parts.onReleased();
  }

  /** Chunks of a part, in pieces, no faster than the rate. Errors: NOT_FOUND, BUSY, BAD_REQUEST, those of reading. */
  async *read(request: FetchPartRequest, signal: AbortSignal): AsyncGenerator<Buffer> {
    const { part: id, first, count } = request;
    const one = this.#exports.get(keyOf(request));
    const ready = one && [...one.parts.values()].find(({ part }) => idOf(part) === id);
    if (one === undefined || ready === undefined) {
      throw notReady(request);
    }
    const { part, file } = ready;
    if (first + count > part.chunks.length) {
      throw new InitlessError('BAD_REQUEST', `that part has ${part.chunks.length} chunks, not ${first + count}`);
    }
    one.users++;
    const leave = await this.#streams.enter(signal).catch((error: unknown) => {
      this.#leave(one);
      throw error;
    });
    try {
      for await (const piece of piecesOf(file, part.chunks.slice(first, first + count))) {
        await this.#parts.rate.take(piece.length, signal);
        yield piece;
      }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      // Somebody removed what was made ready: it is all made anew.
      this.#dropCheckpoint(one);
      one.parts.clear();
      throw notReady(request);
    } finally {
      leave();
      this.#leave(one);
    }
  }

  async #using<T>(one: Export, work: () => Promise<T>): Promise<T> {
    one.users++;
    try {
      return await work();
    } finally {
      this.#leave(one);
    }
  }

  #leave(one: Export): void {
    one.users--;
    one.usedAt = this.#now();
  }

  /** Removes what nobody has asked for lately, again and again. */
  async run(signal: AbortSignal): Promise<void> {
    await repeat(IDLE_MS / 4, signal, () => {
      this.sweep().catch((error: unknown) =>
        this.#parts.log.error({ error }, 'archives of copies could not be removed'),
      );
    });
  }

  /** Removes what nobody has asked for lately. */
  async sweep(): Promise<void> {
    for (const [key, one] of this.#exports) {
      if (one.users > 0 || this.#now() - one.usedAt < IDLE_MS) continue;
      this.#exports.delete(key);
      this.#dropCheckpoint(one);
      await rm(one.folder, { recursive: true, force: true });
    }
  }
}

function notReady({ service, revision }: FetchPartRequest): InitlessError {
  return new InitlessError('NOT_FOUND', `that part of ${service}, revision ${revision}, is not ready here`, {
    nextStep: 'ask for it again with ExportRevision',
  });
}

/** The files of a checkpoint that go one by one; the rest goes as an archive. */
function filesOf({ entries }: Manifest) {
  return entries.filter((entry) => entry.type === 'file' && !inTree(entry));
}

function isOfCheckpoint({ part: { kind } }: Ready): boolean {
  return kind === TransferPartKind.TRANSFER_PART_KIND_FILE || kind === TransferPartKind.TRANSFER_PART_KIND_TREE;
}

function slotOf({ kind, name }: Pick<TransferPart, 'kind' | 'name'>): string {
  return `${kind} ${name}`;
}

function keyOf({ service, revision }: { service: string; revision: string }): string {
  return `${service}@${revision}`;
}
