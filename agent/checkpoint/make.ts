import { randomBytes } from 'node:crypto';
import { rename, rm } from 'node:fs/promises';
import path from 'node:path';
import type { Readable } from 'node:stream';
import type { Logger } from 'pino';
import type { PreparedRevision, PrepareRevision } from '../../proto/gen/initless/v1/fleet.js';
import type { ServiceConfig, StageTime } from '../../proto/gen/initless/v1/types.js';
import { sleep, withDeadline } from '../../proto/rpc/deadline.js';
import { type ErrorCode, problemOf, toInitlessError } from '../../proto/rpc/errors.js';
import { configured, type Place, type Places, volumeFolder } from '../instance/place.js';
import type { Restorer } from '../instance/restorer.js';
import { AllocatorFinder, type Verdict, verdict } from '../memory/allocators.js';
import { guarded } from '../memory/guard.js';
import { treeOf, unlessGone } from '../memory/kernel-view.js';
import { dumpPreload } from '../runtime/criu.js';
import type { DockerEngine } from '../runtime/docker.js';
import { copyTree, unmountRootfs } from '../runtime/rootfs.js';
import type { Attached, Runc } from '../runtime/runc.js';
import { type OciSpec, volumesOf } from '../runtime/spec.js';
import type { Checkpoints } from './checkpoints.js';
import { IMAGES, LAYER, VOLUMES } from './manifest.js';
import { settleMemory } from './memory.js';
import { mayBeMapped } from './modes.js';
import { recordOf } from './record.js';
import type { RevisionRecord, Revisions } from './revisions.js';
import { type Progress, startUntilReady, timed } from './start.js';
import { takeOutTmpfs } from './tmpfs.js';

/** What making a revision needs. */
export interface MakerParts {
  docker: DockerEngine;
  runc: Runc;
  restorer: Restorer;
  places: Places;
  checkpoints: Checkpoints;
  revisions: Revisions;
  log: Logger;
  /** The build context with a digest, as a tar archive. */
  context: (digest: string, signal: AbortSignal) => Readable;
}

/** Bound on a dump: memory is written at 300 MB/s or more on every disk this is meant for, heaps are a few GB. */
const DUMP_TIMEOUT_MS = 180_000;
/** Bound on searching programs and libraries for allocators; what was seen once is not searched again. */
const LOOK_TIMEOUT_MS = 60_000;
/** Pauses between looks at a process that starts under the guard: the programs that object to it do so early. */
const FIRST_LOOK_MS = 20;
const LAST_LOOK_MS = 1_000;
/** Ends of a first start that the guard may be the reason of. */
const GUARDS_FAULT: readonly ErrorCode[] = [
  'EXITED_EARLY',
  'MESSAGE_TIMEOUT',
  'HEALTH_TIMEOUT',
  'NOT_LISTENING',
  'HEALTH_MISMATCH',
];
/** Ends of making a checkpoint after which the service is served by cold starts. */
const SERVED_COLD: readonly ErrorCode[] = ['DUMP_FAILED', 'RESTORE_FAILED', 'CHECKPOINT_DAMAGED'];

/** From a build context to a sealed checkpoint. */
export class Maker {
  readonly #parts: MakerParts;
  readonly #allocators = new AllocatorFinder();

  constructor(parts: MakerParts) {
    this.#parts = parts;
  }

  /**
   * Builds a revision's image, starts it, waits until it is ready, dumps and seals it. A revision that is there already
   * is not made again without `force`. One that CRIU cannot dump, or not restore, is kept without a checkpoint, with the
   * problem.
   * Errors: BUILD_FAILED, BASE_IMAGE_MISSING, START_FAILED, EXITED_EARLY, MESSAGE_TIMEOUT, HEALTH_MISMATCH,
   * HEALTH_TIMEOUT, NOT_LISTENING, DISK_FULL, VOLUME_MISSING, VOLUME_REFUSED, ENGINE_DOWN, CANCELLED.
   */
  async prepare(command: PrepareRevision, progress: Progress, signal: AbortSignal): Promise<PreparedRevision> {
    const config = command.config as ServiceConfig;
    const { checkpoints, revisions } = this.#parts;
    const known = revisions.find(config.serviceName, command.revision);
    if (known && !command.force) {
      if (known.problem) return { imageId: known.imageId, checkpoint: undefined, problem: known.problem };
      if (checkpoints.has(config.serviceName, command.revision)) {
        progress('seal', `revision ${command.revision} has a checkpoint already`);
        const checkpoint = await checkpoints.inspect(config.serviceName, command.revision, false);
        return { imageId: known.imageId, checkpoint: { ...checkpoint, files: [] }, problem: undefined };
      }
    }
    const stages: StageTime[] = [];
    const record = await timed(stages, 'image', () => this.#image(command, config, progress, signal));
    return this.#made(config, record, stages, progress, signal);
  }

  /**
   * Makes a checkpoint of a revision whose image is on this host. One that CRIU cannot dump, or not restore, is kept without
   * a checkpoint, with the problem. Errors: those of {@link prepare}, but for building.
   */
  makeFromImage(
    config: ServiceConfig,
    record: RevisionRecord,
    progress: Progress,
    signal: AbortSignal,
  ): Promise<PreparedRevision> {
    return this.#made(config, record, [], progress, signal);
  }

  async #made(
    config: ServiceConfig,
    record: RevisionRecord,
    stages: StageTime[],
    progress: Progress,
    signal: AbortSignal,
  ): Promise<PreparedRevision> {
    const { revisions } = this.#parts;
    try {
      const checkpoint = await this.#checkpoint(config, record, stages, progress, signal);
      await revisions.put({ ...record, problem: undefined });
      return { imageId: record.imageId, checkpoint, problem: undefined };
    } catch (error) {
      const failure = toInitlessError(error);
      if (!SERVED_COLD.includes(failure.code)) throw failure;
      const problem = problemOf(failure);
      progress('dump', failure.message);
      await revisions.put({ ...record, problem });
      return { imageId: record.imageId, checkpoint: undefined, problem };
    }
  }

  async #image(
    command: PrepareRevision,
    config: ServiceConfig,
    progress: Progress,
    signal: AbortSignal,
  ): Promise<RevisionRecord> {
    const { docker, context } = this.#parts;
    const name = `${config.imageName}:${config.tagName}`;
    progress('image', `building ${name}`);
    const image = await docker.build(
      context(command.contextDigest, signal),
      name,
      config.dockerfile,
      (line) => progress('image', line),
      signal,
    );
    return recordOf(docker, config, command.revision, image, signal);
  }

  async #checkpoint(
    config: ServiceConfig,
    record: RevisionRecord,
    stages: StageTime[],
    progress: Progress,
    signal: AbortSignal,
  ) {
    const { checkpoints, docker } = this.#parts;
    const dir = await checkpoints.begin(config.checkpointName, config.serviceName, record.revision);
    try {
      const started = await this.#startAndDump(config, record, dir, progress, signal);
      stages.push(...started.stages);
      const dumped = { config, record, dir, spec: started.spec, verdict: started.verdict };
      const memory = await timed(stages, 'trial', () => settleMemory(this.#parts, dumped, progress, signal));
      progress('seal', 'sealing the checkpoint');
      const sealing = performance.now();
      const checkpoint = await checkpoints.seal(dir, started.spec, {
        service: config.serviceName,
        revision: record.revision,
        imageId: record.imageId,
        hostname: record.hostname,
        volumes: volumesOf(record.spec),
        stages,
        memory,
      });
      await docker.tag(record.imageId, config.imageName, config.checkpointTagName);
      progress(
        'seal',
        `sealed ${Math.round(checkpoint.size / 1e6)} MB in ${Math.round(performance.now() - sealing)} ms`,
      );
      return checkpoint;
    } catch (error) {
      await checkpoints.abandon(dir);
      throw error;
    }
  }

  /** Starts the service, under the guard where its memory may be mapped and it can live with that, and dumps it. */
  async #startAndDump(
    config: ServiceConfig,
    record: RevisionRecord,
    dir: string,
    progress: Progress,
    signal: AbortSignal,
  ): Promise<Started> {
    const plain = (startsGuarded?: boolean) =>
      this.#dumped({ config, record, spec: record.spec, dir, startsGuarded }, progress, signal);
    if (!mayBeMapped(config.memory)) return plain();
    const spec = guarded(record.spec);
    try {
      return await this.#dumped({ config, record, spec, dir, startsGuarded: true, watched: true }, progress, signal);
    } catch (error) {
      if (signal.aborted) throw error;
      if (error instanceof NotUnderGuard) {
        progress('start', `starting it again, without the guard: ${error.message}`);
        return plain(true);
      }
      const { code, message } = toInitlessError(error);
      if (!GUARDS_FAULT.includes(code)) throw error;
      progress('start', `starting it again, without the guard, in case that was the reason: ${message}`);
      return plain(false);
    }
  }

  /**
   * Starts a service with one specification, and dumps it.
   * Errors: {@link NotUnderGuard} where that is watched for, those of the start and of the dump.
   */
  async #dumped(
    { config, record, spec, dir, startsGuarded, watched = false }: Start,
    progress: Progress,
    signal: AbortSignal,
  ): Promise<Started> {
    const { places, runc } = this.#parts;
    const stages: StageTime[] = [];
    const place = await places.make(
      {
        id: `${config.serviceName}-dump-${randomBytes(4).toString('hex')}`,
        servicePort: config.servicePort,
        hostname: record.hostname,
        spec,
        lowers: record.layers,
        ...configured(config),
      },
      signal,
    );
    try {
      const watch = watched ? this.#watchGuarded.bind(this) : undefined;
      const start = { config, place, args: spec.process.args, stages, progress, watch };
      const process = await startUntilReady(runc, start, signal);
      const decided = startsGuarded === undefined ? undefined : await this.#verdict(process, startsGuarded, signal);
      if (watched && decided && decided.guard !== 'with') throw new NotUnderGuard(decided);
      progress('dump', 'dumping the process');
      await timed(stages, 'dump', () => this.#dump(place, dir, process, signal));
      await this.#collect(place, record, dir);
      return { spec, verdict: decided, stages };
    } finally {
      await places.clear(place);
    }
  }

  /** Throws {@link NotUnderGuard} as soon as a process that is starting is seen to be one that the guard would end later. */
  async #watchGuarded(process: Attached, signal: AbortSignal): Promise<void> {
    for (let pause = FIRST_LOOK_MS; ; pause = Math.min(pause * 2, LAST_LOOK_MS)) {
      await sleep(pause, signal);
      // One that has ended is told of by its end.
      const decided = await unlessGone(this.#verdict(process, true, signal));
      if (decided && decided.guard !== 'with') throw new NotUnderGuard(decided);
    }
  }

  /** What may be done with the memory of a process and all that descend from it. */
  async #verdict(process: Attached, startsGuarded: boolean, signal: AbortSignal): Promise<Verdict> {
    return withDeadline(
      LOOK_TIMEOUT_MS,
      'looking for allocators in its programs and libraries',
      signal,
      async (signal) => {
        const pids = (await treeOf(await process.pid(signal))).values();
        return verdict(await this.#allocators.find(pids, signal), startsGuarded);
      },
    );
  }

  async #dump(place: Place, dir: string, process: Attached, signal: AbortSignal): Promise<void> {
    const images = path.join(dir, IMAGES);
    await this.#parts.runc.checkpoint(place.id, place.folder, images, await dumpPreload(), DUMP_TIMEOUT_MS, signal);
    await takeOutTmpfs(images);
    // What the process still had in its pipes, and runc itself, must be gone before its folder is.
    await Promise.race([process.ended, sleep(10_000, signal)]);
  }

  /** Moves what the process had changed, and its volumes, into the checkpoint's folder. */
  async #collect(place: Place, record: RevisionRecord, dir: string): Promise<void> {
    await unmountRootfs(place.folder);
    await move(place.folder.upper, path.join(dir, LAYER));
    await rm(path.join(dir, VOLUMES), { recursive: true, force: true });
    for (const index of volumesOf(record.spec).keys()) {
      await copyTree(volumeFolder(place.folder, index), path.join(dir, VOLUMES, String(index)));
    }
  }
}

/** How a service is started once. */
interface Start {
  config: ServiceConfig;
  record: RevisionRecord;
  spec: OciSpec;
  /** Folder that it is dumped into. */
  dir: string;
  /** Whether it is known to start under the guard. Undefined: mapping is not looked into. */
  startsGuarded?: boolean;
  /** It starts under the guard, and is given up when that is found to be wrong for it. */
  watched?: boolean;
}

/** A service that was dumped. */
interface Started {
  /** Specification that it was started with. */
  spec: OciSpec;
  /** Undefined: mapping was not looked into. */
  verdict: Verdict | undefined;
  stages: StageTime[];
}

/** The end of a start under the guard of a process that must not be under it. */
class NotUnderGuard extends Error {
  constructor({ reason }: Verdict) {
    super(reason);
  }
}

/** Renames a folder, or copies it where `to` is on another file system. */
async function move(from: string, to: string): Promise<void> {
  try {
    await rename(from, to);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EXDEV') throw error;
    await copyTree(from, to);
  }
}
