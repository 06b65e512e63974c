import { mkdir, readdir, rm, stat } from 'node:fs/promises';
import path from 'node:path';
import type { CopyRevision, CopySource, PreparedRevision } from '../../proto/gen/initless/v1/fleet.js';
import {
  type DescribeRevisionResponse,
  RevisionPart,
  TransferServiceDefinition,
} from '../../proto/gen/initless/v1/transfer.js';
import type { ServiceConfig, StageTime } from '../../proto/gen/initless/v1/types.js';
import { connect, createRpcClient } from '../../proto/rpc/client.js';
import { withDeadline } from '../../proto/rpc/deadline.js';
import { fromGrpcError, InitlessError, toInitlessError } from '../../proto/rpc/errors.js';
import type { Checkpoints } from '../checkpoint/checkpoints.js';
import type { Maker } from '../checkpoint/make.js';
import { MANIFEST, type Manifest, readManifest } from '../checkpoint/manifest.js';
import type { RevisionRecord, Revisions } from '../checkpoint/revisions.js';
import { type Progress, timed } from '../checkpoint/start.js';
import { difference, readTree } from '../checkpoint/tree.js';
import type { DockerEngine } from '../runtime/docker.js';
import { makeSocket, unpack } from './archive.js';
import { sha256 } from './chunks.js';
import { fetchPart, type Wanted } from './fetching.js';

/** A source describes what it has at once. */
const DESCRIBE_MS = 20_000;
/** What a copy that was cut short left is kept for this long. */
const KEPT_MS = 24 * 3_600_000;
/** Progress is told after so many bytes. */
const TOLD_BYTES = 64 * 2 ** 20;

/** What a copy needs of the agent. */
export interface CopierParts {
  docker: Pick<DockerEngine, 'hasImage' | 'load'>;
  checkpoints: Checkpoints;
  revisions: Revisions;
  maker: Pick<Maker, 'recordOf' | 'checkpointOf' | 'existing'>;
  /** Folder for what is not complete yet. */
  staging: string;
}

/** A revision that is here now. */
export interface Copied {
  prepared: PreparedRevision;
  /** Whose it was; empty: it was here already, or its checkpoint was made here. */
  from: string;
  stages: StageTime[];
}

type Client = ReturnType<typeof createRpcClient<typeof TransferServiceDefinition>>;

/** Gets revisions from other agents. */
export class Copier {
  readonly #parts: CopierParts;

  constructor(parts: CopierParts) {
    this.#parts = parts;
  }

  /** Removes what copies left that nobody has gone on with for a day; what is younger is gone on with. */
  async sweep(): Promise<void> {
    await mkdir(this.#parts.staging, { recursive: true, mode: 0o700 });
    for (const name of await readdir(this.#parts.staging)) {
      const folder = path.join(this.#parts.staging, name);
      if (Date.now() - (await stat(folder)).mtimeMs > KEPT_MS) await rm(folder, { recursive: true, force: true });
    }
  }

  /**
   * Gets a revision's image and checkpoint; the sources are tried in their order. A checkpoint that does not fit this machine
   * stays where it is, and one is made here.
   * Errors: COPY_FAILED with what each source said, DISK_FULL, ENGINE_DOWN, CANCELLED, those of making a checkpoint.
   */
  async copy(command: CopyRevision, progress: Progress, signal: AbortSignal): Promise<Copied> {
    const config = command.config as ServiceConfig;
    const existing = await this.#parts.maker.existing(config.serviceName, command.revision);
    if (existing !== undefined) return { prepared: existing, from: '', stages: [] };
    const failures: string[] = [];
    for (const source of command.sources) {
      const channel = connect(source.address);
      try {
        const client = createRpcClient(TransferServiceDefinition, channel);
        return await this.#from(client, source, command, progress, signal);
      } catch (thrown) {
        signal.throwIfAborted();
        const error = fromGrpcError(thrown, `the agent of ${source.host}`);
        if (OURS.includes(error.code)) throw error;
        failures.push(`${source.host}: ${error.message}`);
        progress('copy', `${source.host}: ${error.message}`);
      } finally {
        channel.close();
      }
    }
    const why = failures.length === 0 ? 'no host has it' : failures.join('; ');
    throw new InitlessError(
      'COPY_FAILED',
      `revision ${command.revision} of ${config.serviceName} could not be copied: ${why}`,
      {
        subject: config.serviceName,
        nextStep: `it is tried again; 'initless host ls' shows whether the hosts that have it are there`,
      },
    );
  }

  async #from(
    client: Client,
    source: CopySource,
    command: CopyRevision,
    progress: Progress,
    signal: AbortSignal,
  ): Promise<Copied> {
    const config = command.config as ServiceConfig;
    const { serviceName: service } = config;
    const { revision } = command;
    const stages: StageTime[] = [];
    const there = await withDeadline(DESCRIBE_MS, `${source.host} to describe ${service}`, signal, (bound) =>
      client.describeRevision({ service, revision }, { signal: bound }),
    );
    const record = await this.#image(client, source, command, there, stages, progress, signal);
    if (there.problem !== undefined || command.imageOnly) {
      const problem = there.problem ?? unknownProblem(service);
      await this.#parts.revisions.put({ ...record, problem });
      return { prepared: { imageId: record.imageId, checkpoint: undefined, problem }, from: source.host, stages };
    }
    const manifest = manifestOf(there.manifest, source.host);
    const misfit = manifest.kind === 'read' ? this.#parts.checkpoints.misfit(manifest.manifest) : manifest.reason;
    if (manifest.kind === 'other' || misfit !== undefined) {
      progress('copy', `the checkpoint of ${source.host} does not fit this machine: ${misfit}; one is made here`);
      const prepared = await this.#parts.maker.checkpointOf(config, record, stages, progress, signal);
      return { prepared, from: '', stages };
    }
    const checkpoint = await this.#checkpoint(
      client,
      source,
      command,
      there.manifest,
      manifest.manifest,
      stages,
      progress,
      signal,
    );
    await this.#parts.revisions.put({ ...record, problem: undefined });
    await rm(this.#folder(command), { recursive: true, force: true });
    return { prepared: { imageId: record.imageId, checkpoint, problem: undefined }, from: source.host, stages };
  }

  #folder({ config, revision }: CopyRevision): string {
    return path.join(this.#parts.staging, `${config?.serviceName}@${revision}`);
  }

  /** Sees to it that the image is here. */
  async #image(
    client: Client,
    source: CopySource,
    command: CopyRevision,
    { imageId }: DescribeRevisionResponse,
    stages: StageTime[],
    progress: Progress,
    signal: AbortSignal,
  ): Promise<RevisionRecord> {
    const { docker, maker } = this.#parts;
    const config = command.config as ServiceConfig;
    if (!(await docker.hasImage(imageId))) {
      const file = path.join(this.#folder(command), 'image.tar');
      const part = RevisionPart.REVISION_PART_IMAGE;
      const wanted = { service: config.serviceName, revision: command.revision, part, version: imageId };
      await timed(stages, 'fetch image', () => this.#fetch(client, source, wanted, file, progress, signal));
      progress('copy', 'loading the image');
      try {
        await timed(stages, 'load image', () => docker.load(file, signal));
      } finally {
        // Also when it is not what it should be: the next attempt begins anew.
        await rm(file, { force: true });
      }
      if (!(await docker.hasImage(imageId))) {
        throw new InitlessError('COPY_FAILED', `the image that ${source.host} sent is not ${imageId}`);
      }
    }
    return maker.recordOf(imageId, config, command.revision, signal);
  }

  async #checkpoint(
    client: Client,
    source: CopySource,
    command: CopyRevision,
    text: string,
    manifest: Manifest,
    stages: StageTime[],
    progress: Progress,
    signal: AbortSignal,
  ) {
    const { checkpoints } = this.#parts;
    const config = command.config as ServiceConfig;
    const file = path.join(this.#folder(command), 'checkpoint.tar');
    const version = sha256(Buffer.from(text)).toString('hex');
    const part = RevisionPart.REVISION_PART_CHECKPOINT;
    const wanted = { service: config.serviceName, revision: command.revision, part, version };
    await timed(stages, 'fetch checkpoint', () => this.#fetch(client, source, wanted, file, progress, signal));
    const dir = await checkpoints.begin(config.checkpointName, config.serviceName, command.revision);
    try {
      progress('copy', 'unpacking and comparing');
      return await timed(stages, 'unpack', async () => {
        await unpack(file, dir, manifest.entries, [MANIFEST], signal);
        const there = new Set((await readTree(dir, signal)).map((entry) => entry.path));
        for (const entry of manifest.entries) {
          if (entry.type === 'special' && !there.has(entry.path))
            await makeSocket(path.join(dir, entry.path), entry, signal);
        }
        const is = (await readTree(dir, signal)).filter((entry) => entry.path !== MANIFEST);
        const found = difference(manifest.entries, is);
        if (found)
          throw new InitlessError('COPY_FAILED', `what ${source.host} sent is not what its manifest says: ${found}`);
        return checkpoints.sealCopy(dir, text, manifest);
      });
    } catch (error) {
      await checkpoints.abandon(dir);
      throw error;
    } finally {
      await rm(file, { force: true });
    }
  }

  async #fetch(
    client: Client,
    source: CopySource,
    wanted: Wanted,
    file: string,
    progress: Progress,
    signal: AbortSignal,
  ) {
    const what = wanted.part === RevisionPart.REVISION_PART_IMAGE ? 'image' : 'checkpoint';
    progress('copy', `fetching the ${what} from ${source.host}`);
    let told = 0;
    const onBytes = (bytes: number) => {
      if (bytes - told < TOLD_BYTES) return;
      told = bytes;
      progress('copy', `${what}: ${Math.round(bytes / 1e6)} MB`);
    };
    await fetchPart(client, wanted, file, onBytes, signal);
  }
}

/** What is wrong here, not at a source: another one would not be better. */
const OURS: readonly InitlessError['code'][] = [
  ...(['DISK_FULL', 'ENGINE_DOWN', 'CANCELLED', 'VOLUME_MISSING', 'VOLUME_REFUSED', 'START_FAILED'] as const),
  ...(['EXITED_EARLY', 'MESSAGE_TIMEOUT', 'HEALTH_MISMATCH', 'HEALTH_TIMEOUT', 'NOT_LISTENING'] as const),
];

/** A manifest of another format is another agent's, and not damaged: the checkpoint is made here. Errors: COPY_FAILED. */
function manifestOf(
  text: string,
  host: string,
): { kind: 'read'; manifest: Manifest } | { kind: 'other'; reason: string } {
  if (text === '') throw new InitlessError('COPY_FAILED', `${host} has no checkpoint of it any more`);
  try {
    return { kind: 'read', manifest: readManifest(text, `the manifest of ${host}`) };
  } catch (thrown) {
    const error = toInitlessError(thrown);
    if (error.code === 'CHECKPOINT_INCOMPATIBLE') return { kind: 'other', reason: error.message };
    throw new InitlessError('COPY_FAILED', error.message, { cause: thrown });
  }
}

function unknownProblem(service: string) {
  const message = `${service} could not be checkpointed where it was made`;
  return {
    code: 'DUMP_FAILED',
    message,
    nextStep: `'initless checkpoint create ${service}' tries again`,
    outputTail: [],
  };
}
