import { chmod, mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { Logger } from 'pino';
import { type Checkpoint, type Fingerprint, MemoryMode, type Problem } from '../../proto/gen/initless/v1/types.js';
import { InitlessError, problemOf, toInitlessError } from '../../proto/rpc/errors.js';
import type { RestoreSource } from '../instance/restorer.js';
import { Prefetcher, wantedFiles } from '../memory/prefetch.js';
import { readIndex } from '../memory/sparse.js';
import { readTouched } from '../memory/touched.js';
import { incompatibility } from '../runtime/criu.js';
import type { OciSpec } from '../runtime/spec.js';
import {
  checkpointOnWire,
  damaged,
  EXTENTS,
  FORMAT,
  IMAGES,
  imageBytes,
  LAYER,
  MANIFEST,
  type Manifest,
  MEMORY,
  readManifest,
  restoreTimeoutMs,
  SPEC,
  TOUCHED,
  VOLUMES,
  writeManifest,
} from './manifest.js';
import { difference, readTree, signature, sync, syncTree } from './tree.js';

/** Prefix of a folder that is not sealed yet; what carries it after a crash is removed. */
const UNSEALED = '.making-';

/** A sealed checkpoint that may be restored. */
export interface Usable {
  /** Its folder. */
  dir: string;
  manifest: Manifest;
  /** Specification of its revision. */
  spec: OciSpec;
  /** What CRIU restores, and in how much time at most. */
  source: RestoreSource;
  /** Layers over those of the image, topmost first: memory files, and what the process had changed in its root file system. */
  layers: string[];
  /** Folder of what volume N held. */
  volume(index: number): string;
}

interface Held {
  dir: string;
  manifest: Manifest;
  spec: OciSpec | undefined;
  /** Signature at the last time that all digests were right. */
  verified: string | undefined;
  /** Why it is not used. */
  quarantined: Problem | undefined;
  /** Restores that failed one after the other, each with a retry. */
  failures: number;
}

/** Restores in a row that may fail before a checkpoint is not tried again. */
const MAX_FAILURES = 3;

/** The sealed checkpoints of this host. */
export class Checkpoints {
  #root: string;
  readonly #host: string;
  readonly #here: Fingerprint;
  readonly #log: Logger;
  readonly #prefetcher = new Prefetcher();
  #held = new Map<string, Held>();
  /** Folders of {@link begin} that are neither sealed nor abandoned. */
  readonly #making = new Set<string>();
  /** Folders that a newer checkpoint took the place of, but that instances may still read from. */
  readonly #retired = new Set<string>();
  /** Folders that are being read, with the number of readers: they are not removed meanwhile. */
  readonly #pins = new Map<string, number>();

  constructor(root: string, host: string, here: Fingerprint, log: Logger) {
    this.#root = root;
    this.#host = host;
    this.#here = here;
    this.#log = log;
  }

  /**
   * Keeps checkpoints in another folder from now on, and uses what is there. Without effect for the present one; when the
   * other one cannot be made or read, the present one stays. A dump that is under way is sealed where it was begun.
   * Errors: BAD_CONFIG, DISK_FULL.
   */
  async moveTo(root: string): Promise<void> {
    if (root === '' || root === this.#root) return;
    let held: Map<string, Held>;
    try {
      held = await this.#read(root);
    } catch (cause) {
      const { code, message } = toInitlessError(cause);
      throw new InitlessError(
        code === 'DISK_FULL' ? code : 'BAD_CONFIG',
        `checkpoint_dir ${root} cannot be used on the host ${this.#host}: ${message}; checkpoints stay in ${this.#root}`,
        { subject: root, nextStep: "correct 'checkpoint_dir' in the settings file", cause },
      );
    }
    this.#root = root;
    this.#held = held;
  }

  /** Reads what is on disk, and removes what was never sealed. */
  async load(): Promise<void> {
    this.#held = await this.#read(this.#root);
  }

  async #read(root: string): Promise<Map<string, Held>> {
    const found = new Map<string, Held>();
    await mkdir(root, { recursive: true, mode: 0o700 });
    for (const name of await readdir(root)) {
      const parent = path.join(root, name);
      for (const revision of await readdir(parent)) {
        const dir = path.join(parent, revision);
        if (revision.startsWith(UNSEALED)) {
          if (!this.#making.has(dir)) await rm(dir, { recursive: true, force: true });
          continue;
        }
        // It is there only for the instances that still read from it.
        if (this.#retired.has(dir)) continue;
        try {
          const manifest = readManifest(await readFile(path.join(dir, MANIFEST), 'utf8'), path.join(dir, MANIFEST));
          const other = found.get(keyOf(manifest.service, manifest.revision));
          if (other && other.manifest.createdAt > manifest.createdAt) this.#retired.add(dir);
          else this.#hold(found, dir, manifest);
        } catch (error) {
          this.#log.error({ dir, error: toInitlessError(error).message }, 'a checkpoint is not used');
        }
      }
    }
    return found;
  }

  /** Removes replaced checkpoints that no instance, nor anybody else, reads from any more. */
  async sweep(inUse: ReadonlySet<string>): Promise<void> {
    for (const dir of [...this.#retired].filter((retired) => !inUse.has(retired) && !this.#pins.has(retired))) {
      this.#retired.delete(dir);
      this.#prefetcher.forget(dir);
      await rm(dir, { recursive: true, force: true });
    }
  }

  /** Notes a checkpoint among others; an earlier one of its revision gives way. */
  #hold(among: Map<string, Held>, dir: string, manifest: Manifest): Held {
    const before = among.get(keyOf(manifest.service, manifest.revision));
    if (before) this.#retired.add(before.dir);
    const held: Held = { dir, manifest, spec: undefined, verified: undefined, quarantined: undefined, failures: 0 };
    among.set(keyOf(manifest.service, manifest.revision), held);
    return held;
  }

  /** A new folder to make a checkpoint in, in the folder `name` that it will stay in once it is sealed. */
  async begin(name: string, service: string, revision: string): Promise<string> {
    const dir = path.join(this.#root, name, `${UNSEALED}${service}-${revision}`);
    this.#making.add(dir);
    await rm(dir, { recursive: true, force: true });
    await mkdir(path.join(dir, IMAGES), { recursive: true, mode: 0o700 });
    await mkdir(path.join(dir, VOLUMES), { recursive: true });
    return dir;
  }

  /**
   * Seals a folder: digests, everything on disk, manifest, read-only, then the rename that makes it a checkpoint. An
   * earlier checkpoint of the same revision gives way; {@link sweep} removes it.
   */
  async seal(
    dir: string,
    spec: OciSpec,
    facts: Omit<Manifest, 'format' | 'entries' | 'createdAt' | 'fingerprint'>,
  ): Promise<Checkpoint> {
    await writeFile(path.join(dir, SPEC), JSON.stringify(spec));
    for (const file of await readdir(path.join(dir, IMAGES))) await chmod(path.join(dir, IMAGES, file), 0o400);
    await chmod(path.join(dir, SPEC), 0o400);
    const entries = await readTree(dir);
    const manifest: Manifest = {
      ...facts,
      format: FORMAT,
      createdAt: new Date().toISOString(),
      fingerprint: this.#here,
      entries,
    };
    return this.#settle(dir, spec, manifest, writeManifest(manifest));
  }

  /**
   * Seals a folder with what was copied from another host, after making sure that it is, to the last byte, what its manifest
   * says. Errors: CHECKPOINT_DAMAGED, CHECKPOINT_INCOMPATIBLE, DISK_FULL, the signal's reason.
   */
  async sealCopy(dir: string, text: string, signal: AbortSignal): Promise<Checkpoint> {
    const manifest = readManifest(text, path.join(dir, MANIFEST));
    const found = difference(manifest.entries, await readTree(dir, signal));
    if (found) throw damaged(`the copy of ${manifest.service} in ${dir} is not what was sealed: ${found}`, dir);
    const spec = JSON.parse(await readFile(path.join(dir, SPEC), 'utf8')) as OciSpec;
    return this.#settle(dir, spec, manifest, text);
  }

  /** Everything on disk, the manifest, then the rename that makes a folder a checkpoint. */
  async #settle(dir: string, spec: OciSpec, manifest: Manifest, text: string): Promise<Checkpoint> {
    const { entries, revision } = manifest;
    await syncTree(dir, entries);
    await writeFile(path.join(dir, MANIFEST), text, { mode: 0o400 });
    await sync(path.join(dir, MANIFEST));
    await sync(dir);
    // Not where checkpoints are kept now: that may be on another disk, to which nothing can be renamed.
    const parent = path.dirname(dir);
    // Never the name of an earlier one: instances may be running on its layer.
    const sealed = path.join(parent, `${revision}-${Date.now().toString(36)}`);
    await rename(dir, sealed);
    this.#making.delete(dir);
    await sync(parent);
    const held = this.#hold(this.#held, sealed, manifest);
    held.spec = spec;
    held.verified = signature(sealed, entries);
    return checkpointOnWire(manifest, this.#host, sealed, false);
  }

  /**
   * The checkpoint of a revision to read from, its manifest's text with it: it is not removed before `release` is called.
   * Errors: those of {@link use}.
   */
  async pin(
    service: string,
    revision: string,
    signal?: AbortSignal,
  ): Promise<{ dir: string; manifest: Manifest; text: string; release: () => void }> {
    const { dir, manifest } = await this.use(service, revision, signal);
    this.#pins.set(dir, (this.#pins.get(dir) ?? 0) + 1);
    let pinned = true;
    const release = () => {
      if (!pinned) return;
      pinned = false;
      const readers = (this.#pins.get(dir) ?? 1) - 1;
      if (readers === 0) this.#pins.delete(dir);
      else this.#pins.set(dir, readers);
    };
    try {
      return { dir, manifest, text: await readFile(path.join(dir, MANIFEST), 'utf8'), release };
    } catch (error) {
      release();
      throw error;
    }
  }

  /** Gives up a folder of {@link begin}. */
  async abandon(dir: string): Promise<void> {
    this.#making.delete(dir);
    await rm(dir, { recursive: true, force: true });
  }

  /** Whether there is a checkpoint of a revision that is not quarantined. */
  has(service: string, revision: string): boolean {
    const held = this.#held.get(keyOf(service, revision));
    return held !== undefined && held.quarantined === undefined;
  }

  /**
   * The checkpoint of a revision, after making sure that it is still what was sealed and fits this machine. All digests
   * are checked the first time and whenever a file's inode, size or change time differs from then.
   * Errors: NO_CHECKPOINT, CHECKPOINT_DAMAGED, CHECKPOINT_INCOMPATIBLE; what fails once is quarantined.
   */
  async use(service: string, revision: string, signal?: AbortSignal): Promise<Usable> {
    const held = this.#held.get(keyOf(service, revision));
    if (held === undefined)
      throw new InitlessError('NO_CHECKPOINT', `${service} has no checkpoint of revision ${revision}`);
    if (held.quarantined) {
      throw new InitlessError('CHECKPOINT_DAMAGED', held.quarantined.message, { nextStep: held.quarantined.nextStep });
    }
    const { dir, manifest } = held;
    try {
      const reason = incompatibility(manifest.fingerprint, this.#here);
      if (reason) {
        throw new InitlessError('CHECKPOINT_INCOMPATIBLE', `checkpoint ${dir} cannot be restored here: ${reason}`, {
          subject: dir,
          nextStep: `make a new one with 'initless checkpoint create ${service}'`,
        });
      }
      if (held.verified === undefined || held.verified !== signature(dir, manifest.entries)) {
        await this.#verify(held, signal);
      }
      held.spec ??= JSON.parse(await readFile(path.join(dir, SPEC), 'utf8')) as OciSpec;
    } catch (error) {
      if (signal?.aborted) throw error;
      this.#quarantine(held, error);
      throw error;
    }
    const mapped = manifest.memory.mode === MemoryMode.MEMORY_MODE_MAPPED;
    return {
      dir,
      manifest,
      spec: held.spec,
      source: {
        images: path.join(dir, IMAGES),
        mapped,
        timeoutMs: restoreTimeoutMs(imageBytes(manifest)),
      },
      layers: [...(mapped ? [path.join(dir, MEMORY)] : []), path.join(dir, LAYER)],
      volume: (index) => path.join(dir, VOLUMES, String(index)),
    };
  }

  /**
   * Brings what the trial of a checkpoint touched of its memory files into the page cache, at the charge of this agent's
   * cgroup. Without effect where memory is not mapped, or that was done before.
   * Errors: BUSY, DEADLINE, CHECKPOINT_DAMAGED, those of reading, the signal's reason.
   */
  async readAhead(service: string, revision: string, signal: AbortSignal): Promise<void> {
    const held = this.#held.get(keyOf(service, revision));
    if (held?.manifest.memory.mode !== MemoryMode.MEMORY_MODE_MAPPED || held.quarantined) return;
    const { dir } = held;
    // A sealed checkpoint's list stays the same: it need not be read for each instance of a pool.
    if (this.#prefetcher.has(dir)) return;
    const [extents, touched] = [path.join(dir, EXTENTS), path.join(dir, TOUCHED)];
    const index = readIndex(await readFile(extents, 'utf8'), extents);
    const files = wantedFiles(path.join(dir, MEMORY), readTouched(await readFile(touched, 'utf8'), touched), index);
    const { bytes, ms, before } = await this.#prefetcher.prefetch(dir, files, signal);
    if (!before) this.#log.info({ service, revision, bytes, ms }, 'memory was read ahead');
  }

  /** Why a checkpoint that was made on another machine cannot be used on this one, or undefined when it can. */
  misfit(made: Fingerprint): string | undefined {
    return incompatibility(made, this.#here);
  }

  /** Checks the digests of all that is held ahead of its use, one after the other; what fails is quarantined. */
  async verifyAll(signal: AbortSignal): Promise<void> {
    for (const held of [...this.#held.values()]) {
      if (signal.aborted) return;
      if (held.verified !== undefined || held.quarantined !== undefined) continue;
      await this.#verify(held, signal).catch((error: unknown) => {
        if (!signal.aborted) this.#quarantine(held, error);
      });
    }
  }

  async #verify(held: Held, signal?: AbortSignal): Promise<void> {
    const { dir, manifest } = held;
    const before = signature(dir, manifest.entries);
    let is: Awaited<ReturnType<typeof readTree>>;
    try {
      is = await readTree(dir, signal);
    } catch (cause) {
      if (signal?.aborted || (cause instanceof InitlessError && cause.code === 'CHECKPOINT_DAMAGED')) throw cause;
      throw damaged(`checkpoint ${dir} cannot be read: ${(cause as Error).message}`, dir, cause);
    }
    const found = difference(
      manifest.entries,
      is.filter((entry) => entry.path !== MANIFEST),
    );
    if (found) throw damaged(`checkpoint ${dir} was altered since it was sealed: ${found}`, dir);
    held.verified = before;
  }

  #quarantine(held: Held, error: unknown): void {
    held.quarantined = problemOf(error);
    this.#log.error({ checkpoint: held.dir, error: held.quarantined.message }, 'a checkpoint is quarantined');
  }

  /** Notes how a restore, with its one retry, ended; a checkpoint whose restores keep failing is quarantined. */
  restored(service: string, revision: string, failure: unknown): void {
    const held = this.#held.get(keyOf(service, revision));
    if (held === undefined) return;
    held.failures = failure === undefined ? 0 : held.failures + 1;
    if (held.failures >= MAX_FAILURES) this.#quarantine(held, failure);
  }

  /** One checkpoint with its files; `verify` checks every digest first. Errors: NOT_FOUND, CHECKPOINT_DAMAGED. */
  async inspect(service: string, revision: string, verify: boolean): Promise<Checkpoint> {
    const held = this.#held.get(keyOf(service, revision));
    if (held === undefined) {
      throw new InitlessError('NOT_FOUND', `${service} has no checkpoint of revision ${revision} on ${this.#host}`);
    }
    if (verify) {
      try {
        await this.#verify(held);
      } catch (error) {
        this.#quarantine(held, error);
        throw error;
      }
    }
    return { ...checkpointOnWire(held.manifest, this.#host, held.dir, true), quarantined: held.quarantined };
  }

  /** All of them, files left out. */
  list(): Checkpoint[] {
    return [...this.#held.values()].map((held) => ({
      ...checkpointOnWire(held.manifest, this.#host, held.dir, false),
      quarantined: held.quarantined,
    }));
  }

  /** Takes a service's checkpoints out of use, but those of the revisions in `keep`; {@link sweep} removes them. */
  remove(service: string, keep: readonly string[]): void {
    for (const [key, held] of this.#held) {
      if (held.manifest.service !== service || keep.includes(held.manifest.revision)) continue;
      this.#held.delete(key);
      this.#retired.add(held.dir);
    }
  }
}

function keyOf(service: string, revision: string): string {
  return `${service} ${revision}`;
}
