import { rm } from 'node:fs/promises';
import type { Logger } from 'pino';
import type { CopyRevision, CopySource, PreparedRevision } from '../../proto/gen/initless/v1/fleet.js';
import {
  type DescribeRevisionResponse,
  type TransferPart,
  TransferPartKind,
} from '../../proto/gen/initless/v1/transfer.js';
import type { ServiceConfig, StageTime } from '../../proto/gen/initless/v1/types.js';
import { repeat, sleep } from '../../proto/rpc/deadline.js';
import { InitlessError, toInitlessError } from '../../proto/rpc/errors.js';
import type { Checkpoints } from '../checkpoint/checkpoints.js';
import type { Maker } from '../checkpoint/make.js';
import { type Manifest, readManifest } from '../checkpoint/manifest.js';
import { imageNameOf, recordOf } from '../checkpoint/record.js';
import type { RevisionRecord, Revisions } from '../checkpoint/revisions.js';
import { type Progress, timed } from '../checkpoint/start.js';
import type { DockerEngine } from '../runtime/docker.js';
import { assemble, faultOf, type Staged } from './assemble.js';
import { imageArchive, missingLayers } from './image-archive.js';
import { dataOf, textDigest } from './parts.js';
import { Slots } from './slots.js';
import { dialSource, type Source, SourceFailure } from './source.js';
import { checkRoom, type Staging, stage, type Tally } from './staging.js';

/** What copying needs. */
export interface CopierParts {
  docker: Pick<DockerEngine, 'image' | 'hasImage' | 'heldLayers' | 'load' | 'tag' | 'specOf'>;
  checkpoints: Pick<Checkpoints, 'has' | 'inspect' | 'misfit' | 'begin' | 'sealCopy' | 'abandon'>;
  revisions: Pick<Revisions, 'find' | 'put'>;
  maker: Pick<Maker, 'makeFromImage'>;
  staging: Staging;
  log: Logger;
  /** Stands in for gRPC in tests. */
  dial?: (source: CopySource, service: string, revision: string) => Source;
}

/** What came of a copy. */
export interface Copied {
  prepared: PreparedRevision;
  /** `there`: nothing was to be done. `made`: the image was copied, and a checkpoint made of it here. */
  how: 'there' | 'copied' | 'made' | 'image';
  /** Host that it came from. */
  from: string;
  /** Bytes that came. */
  bytes: number;
  stages: StageTime[];
}

/** Copies at a time; others wait. */
const COPIES = 2;
const WAITING = 64;
/** How often one host is asked for the same revision in one copy. */
const TRIES = 3;
/** Between them, milliseconds: an agent that was started again needs a moment. */
const PAUSE_MS = 500;
/** How often progress is told, milliseconds. */
const PROGRESS_MS = 2_000;

const { TRANSFER_PART_KIND_IMAGE_CONFIG: CONFIG, TRANSFER_PART_KIND_LAYER: LAYER } = TransferPartKind;

/** One copy, all along. */
interface Work {
  command: CopyRevision;
  config: ServiceConfig;
  /** Where its parts are gathered. */
  folder: string;
  progress: Progress;
  signal: AbortSignal;
  bytes: number;
  stages: StageTime[];
}

/** Gets revisions from other hosts. */
export class Copier {
  readonly #parts: CopierParts;
  readonly #slots = new Slots(COPIES, WAITING, 'copies to this host');
  readonly #busy = new Set<string>();

  constructor(parts: CopierParts) {
    this.#parts = parts;
  }

  /**
   * Gets a revision from the first of its sources that has all of it. Where none has a checkpoint that fits this machine, the
   * image is copied and a checkpoint made of it here.
   * Errors: COPY_FAILED naming each source and why; BUSY; DISK_FULL, ENGINE_DOWN of this host; those of making a checkpoint;
   * the signal's reason. What has come stays for the next copy after COPY_FAILED and where the signal aborted.
   */
  async copy(command: CopyRevision, progress: Progress, signal: AbortSignal): Promise<Copied> {
    const there = await this.#there(command);
    if (there) return { prepared: there, how: 'there', from: '', bytes: 0, stages: [] };
    return this.#slots.run(signal, async () => {
      const config = command.config as ServiceConfig;
      const folder = await this.#parts.staging.open(config.serviceName, command.revision);
      this.#busy.add(folder);
      try {
        const copied = await this.#fromAny({ command, config, folder, progress, signal, bytes: 0, stages: [] });
        await rm(folder, { recursive: true, force: true });
        return copied;
      } catch (error) {
        const failure = toInitlessError(error);
        if (!signal.aborted && failure.code !== 'COPY_FAILED') await rm(folder, { recursive: true, force: true });
        throw failure;
      } finally {
        this.#busy.delete(folder);
      }
    });
  }

  /** Removes what nobody went on with, every ten minutes. */
  async run(signal: AbortSignal): Promise<void> {
    const sweep = () => {
      this.#parts.staging
        .sweep(this.#busy, Date.now())
        .catch((error: unknown) => this.#parts.log.error({ error }, 'parts of old copies could not be removed'));
    };
    sweep();
    await repeat(600_000, signal, sweep);
  }

  async #there({ config, revision, imageOnly }: CopyRevision): Promise<PreparedRevision | undefined> {
    const { checkpoints, revisions } = this.#parts;
    const service = config?.serviceName ?? '';
    const known = revisions.find(service, revision);
    if (known === undefined) return undefined;
    if (checkpoints.has(service, revision)) {
      const checkpoint = await checkpoints.inspect(service, revision, false);
      return { imageId: known.imageId, checkpoint: { ...checkpoint, files: [] }, problem: undefined };
    }
    return imageOnly && known.problem
      ? { imageId: known.imageId, checkpoint: undefined, problem: known.problem }
      : undefined;
  }

  async #fromAny(work: Work): Promise<Copied> {
    const { command } = work;
    const failures: string[] = [];
    // Those that have the image, and why not the checkpoint.
    const without: { source: CopySource; reason: string }[] = [];
    if (!command.imageOnly) {
      for (const source of command.sources) {
        const copied = await this.#try(work, source, failures, (dialled) => this.#checkpointFrom(work, dialled));
        if (copied && 'how' in copied) return copied;
        if (copied) without.push({ source, reason: copied.reason });
      }
    }
    const images = command.imageOnly ? command.sources.map((source) => ({ source, reason: '' })) : without;
    for (const { source, reason } of images) {
      const got = await this.#try(work, source, failures, (dialled) => this.#imageFrom(work, dialled));
      if (got === undefined) continue;
      if (command.imageOnly) return this.#withoutCheckpoint(work, source.host, got);
      return this.#make(work, source.host, reason, got.record);
    }
    const { serviceName } = work.config;
    throw new InitlessError(
      'COPY_FAILED',
      `revision ${command.revision} of ${serviceName} could not be copied: ${failures.join('; ') || 'no host to copy from'}`,
      {
        subject: serviceName,
        nextStep: "it is tried again; 'initless host ls' shows whether the hosts that have it are there",
      },
    );
  }

  /** Asks one host, again where that may help. Undefined: it failed, which is noted. */
  async #try<T>(
    work: Work,
    { host, address }: CopySource,
    failures: string[],
    use: (source: Source) => Promise<T>,
  ): Promise<T | undefined> {
    const { dial = dialSource } = this.#parts;
    for (let tries = 1; ; tries++) {
      work.stages = [];
      const source = dial({ host, address }, work.config.serviceName, work.command.revision);
      try {
        return await use(source);
      } catch (error) {
        if (!(error instanceof SourceFailure)) throw error;
        work.progress('copy', `${host}: ${error.message}`);
        if (!error.again || tries >= TRIES) {
          failures.push(`${host}: ${error.message}`);
          return undefined;
        }
      } finally {
        source.close();
      }
      await sleep(PAUSE_MS * tries, work.signal);
    }
  }

  async #describe({ command, stages, signal }: Work, source: Source): Promise<DescribeRevisionResponse> {
    const described = await timed(stages, 'describe', () => source.describe(signal));
    if (described.imageId === command.imageId) return described;
    throw new SourceFailure(`it has the image ${described.imageId}, not ${command.imageId}`, false);
  }

  /** Image and checkpoint from one host, or why its checkpoint is of no use here. */
  async #checkpointFrom(work: Work, source: Source): Promise<Copied | { reason: string }> {
    const { config, command, signal, stages } = work;
    const described = await this.#describe(work, source);
    if (described.manifest === '') return { reason: described.problem?.message ?? 'it has no checkpoint of it' };
    const manifest = this.#read(work, described.manifest);
    if (typeof manifest === 'string') {
      work.progress('copy', `the checkpoint of ${source.host} does not fit: ${manifest}`);
      return { reason: manifest };
    }
    await this.#image(work, source, described);
    const parts = await timed(stages, 'export', () =>
      source.export({ image: false, layers: [], manifest: textDigest(described.manifest) }, signal),
    );
    const fault = faultOf(manifest, parts);
    if (fault) throw new SourceFailure(`its checkpoint is refused: ${fault}`, false);
    const staged = await timed(stages, 'fetch', () => this.#fetch(work, source, parts, 'the checkpoint'));
    const checkpoint = await timed(stages, 'assemble', () => this.#seal(work, described.manifest, manifest, staged));
    await this.#parts.docker.tag(command.imageId, config.imageName, config.checkpointTagName);
    const prepared = { imageId: command.imageId, checkpoint, problem: undefined };
    return { prepared, how: 'copied', from: source.host, bytes: work.bytes, stages };
  }

  /** A manifest, or why its checkpoint cannot be used on this machine. */
  #read({ command, config }: Work, text: string): Manifest | string {
    let manifest: Manifest;
    try {
      manifest = readManifest(text, 'its manifest');
    } catch (error) {
      const { code, message } = toInitlessError(error);
      if (code === 'CHECKPOINT_INCOMPATIBLE') return message;
      throw new SourceFailure(message, false, error);
    }
    const { service, revision, imageId } = manifest;
    if (service !== config.serviceName || revision !== command.revision || imageId !== command.imageId) {
      throw new SourceFailure(`its manifest is of revision ${revision} of ${service}, image ${imageId}`, false);
    }
    return this.#parts.checkpoints.misfit(manifest.fingerprint) ?? manifest;
  }

  async #seal(work: Work, text: string, manifest: Manifest, staged: readonly Staged[]) {
    const { checkpoints, revisions } = this.#parts;
    const { config, command, signal } = work;
    const dir = await checkpoints.begin(config.checkpointName, config.serviceName, command.revision);
    try {
      await assemble(dir, manifest, staged, signal);
      const checkpoint = await checkpoints.sealCopy(dir, text, signal);
      const record = revisions.find(config.serviceName, command.revision);
      if (record?.problem) await revisions.put({ ...record, problem: undefined });
      return checkpoint;
    } catch (error) {
      await checkpoints.abandon(dir);
      throw this.#blame(work, error, ['BAD_ARCHIVE', 'CHECKPOINT_DAMAGED']);
    }
  }

  /** What is wrong with something whose bytes were all right is wrong at its source: it would come again the same. */
  #blame({ signal }: Work, error: unknown, codes: readonly string[]): unknown {
    const { code, message } = toInitlessError(error);
    return !signal.aborted && codes.includes(code) ? new SourceFailure(message, false, error) : error;
  }

  async #imageFrom(
    work: Work,
    source: Source,
  ): Promise<{ record: RevisionRecord; described: DescribeRevisionResponse }> {
    const described = await this.#describe(work, source);
    return { record: await this.#image(work, source, described), described };
  }

  /** Makes sure that the image is here, and that the revision can be started from it. */
  async #image(work: Work, source: Source, { layers }: DescribeRevisionResponse): Promise<RevisionRecord> {
    const { docker, revisions } = this.#parts;
    const { command, config, signal, stages } = work;
    const { imageId, revision } = command;
    const known = revisions.find(config.serviceName, revision);
    const here = await docker.hasImage(imageId);
    if (here && known?.imageId === imageId) return known;
    if (!here) {
      const missing = missingLayers(layers, await docker.heldLayers());
      const parts = await timed(stages, 'export image', () =>
        source.export({ image: true, layers: missing, manifest: '' }, signal),
      );
      const config = parts.find(({ kind, name }) => kind === CONFIG && name === imageId);
      const lacks = missing.find((layer) => !parts.some(({ kind, name }) => kind === LAYER && name === layer));
      if (config === undefined || lacks) throw new SourceFailure(`it does not give ${lacks ?? 'the image'}`, false);
      const what = `the image, ${missing.length} of ${layers.length} layers`;
      const staged = await timed(stages, 'fetch image', () => this.#fetch(work, source, parts, what));
      await timed(stages, 'load image', () => this.#load(work, layers, staged));
    }
    const record = await timed(stages, 'specification', async () =>
      recordOf(docker, config, revision, await docker.image(imageId), signal),
    );
    // At once: it is then removed with the revision, whatever becomes of the checkpoint.
    await revisions.put(record);
    return record;
  }

  async #load(work: Work, layers: readonly string[], staged: readonly Staged[]): Promise<void> {
    const { docker } = this.#parts;
    const { command, config, signal } = work;
    const fileOf = (digest: string) => staged.find(({ part }) => part.name === digest)?.file;
    const archive = imageArchive({
      config: { digest: command.imageId, file: fileOf(command.imageId) as string },
      layers: layers.map((digest) => ({ digest, file: fileOf(digest) })),
      name: imageNameOf(config.serviceName, command.revision),
    });
    try {
      await docker.load(archive, signal);
    } catch (error) {
      throw this.#blame(work, error, ['INTERNAL']);
    } finally {
      archive.destroy();
      for (const { file } of staged) await rm(file, { force: true });
    }
    // An image's id is the digest of its configuration, which names the digests of its layers; the engine checks both.
    if (!(await docker.hasImage(command.imageId))) {
      throw new SourceFailure(`what it gave is not the image ${command.imageId}`, false);
    }
  }

  async #fetch(work: Work, source: Source, parts: readonly TransferPart[], what: string): Promise<Staged[]> {
    const { folder, progress, signal } = work;
    await checkRoom(folder, parts);
    const total = parts.reduce((sum, part) => sum + dataOf(part), 0);
    let [came, found, told] = [0, 0, performance.now()];
    const tell = (line: string) => progress('copy', `${what} from ${source.host}: ${line}`);
    const tally: Tally = {
      came: (bytes) => {
        came += bytes;
        work.bytes += bytes;
        if (performance.now() - told < PROGRESS_MS) return;
        told = performance.now();
        tell(`${megabytes(came + found)} of ${megabytes(total)} MB`);
      },
      found: (bytes) => {
        found += bytes;
      },
    };
    const staged: Staged[] = [];
    for (const part of parts) staged.push({ part, file: await stage(source, part, folder, tally, signal) });
    tell(`${megabytes(total)} MB${found > 0 ? `, ${megabytes(found)} of them from an earlier attempt` : ''}`);
    return staged;
  }

  async #make(work: Work, from: string, reason: string, record: RevisionRecord): Promise<Copied> {
    const { config, progress, signal, stages } = work;
    const about = { from, bytes: work.bytes, stages };
    if (record.problem) {
      // It was tried here before.
      return {
        ...about,
        how: 'image',
        prepared: { imageId: record.imageId, checkpoint: undefined, problem: record.problem },
      };
    }
    progress('copy', `a checkpoint is made here: ${reason}`);
    const prepared = await this.#parts.maker.makeFromImage(config, record, progress, signal);
    return { ...about, how: 'made', prepared };
  }

  async #withoutCheckpoint(
    { command, bytes, stages }: Work,
    from: string,
    { record, described }: { record: RevisionRecord; described: DescribeRevisionResponse },
  ): Promise<Copied> {
    const problem = described.problem ?? {
      code: 'NO_CHECKPOINT',
      message: `revision ${command.revision} is served from its image`,
      nextStep: '',
      outputTail: [],
    };
    await this.#parts.revisions.put({ ...record, problem });
    return { prepared: { imageId: record.imageId, checkpoint: undefined, problem }, how: 'image', from, bytes, stages };
  }
}

function megabytes(bytes: number): string {
  return (bytes / 1e6).toFixed(1);
}
