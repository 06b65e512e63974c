import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { mkdir, readdir, rm, symlink, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import path from 'node:path';
import type { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { pino } from 'pino';
import { extract as createExtract, pack as createPack } from 'tar-stream';
import { Checkpoints } from '../../agent/checkpoint/checkpoints.js';
import type { Manifest } from '../../agent/checkpoint/manifest.js';
import { recordOf } from '../../agent/checkpoint/record.js';
import { Revisions } from '../../agent/checkpoint/revisions.js';
import { SparseWriter, writeIndex } from '../../agent/memory/sparse.js';
import { writeTouched } from '../../agent/memory/touched.js';
import type { DockerEngine, ImageFacts } from '../../agent/runtime/docker.js';
import type { OciSpec } from '../../agent/runtime/spec.js';
import { Copier } from '../../agent/transfer/copier.js';
import { Exports } from '../../agent/transfer/exports.js';
import { chainsOf } from '../../agent/transfer/image-archive.js';
import { Rate } from '../../agent/transfer/rate.js';
import { dialSource, type Source } from '../../agent/transfer/source.js';
import { Staging } from '../../agent/transfer/staging.js';
import { TransferService } from '../../agent/transfer/transfer-service.js';
import { CopyRevision, type CopySource } from '../../proto/gen/initless/v1/fleet.js';
import { type ExportRevisionRequest, TransferServiceDefinition } from '../../proto/gen/initless/v1/transfer.js';
import { CheckpointMemory, Fingerprint, MemoryMode, ServiceConfig } from '../../proto/gen/initless/v1/types.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { createRpcServer, type RpcServer } from '../../proto/rpc/server.js';

const MIB = 2 ** 20;
export const REVISION = 'abc';
export const FINGERPRINT = Fingerprint.fromPartial({ kernel: '6.1', criu: '4.2.1', arch: 'x86_64' });
const SPEC = { process: { args: ['app'], env: [] }, mounts: [] } as unknown as OciSpec;
const LOG = pino({ level: 'silent' });
export const CONFIG = ServiceConfig.fromPartial({
  serviceName: 'web',
  imageName: 'web',
  checkpointTagName: 'checkpoint',
  checkpointName: 'web',
});

const digest = (bytes: Buffer) => `sha256:${createHash('sha256').update(bytes).digest('hex')}`;

/** What a Docker engine knows of images: layers by their chain, configurations by their digest. */
export class FakeEngine {
  readonly chains = new Map<string, Buffer>();
  readonly configs = new Map<string, Buffer>();
  readonly names = new Map<string, string>();
  /** Blobs that were given to it, by digest. */
  loaded: string[] = [];
  refuse: Error | undefined;

  add(layers: readonly Buffer[]): string {
    const digests = layers.map(digest);
    const config = Buffer.from(JSON.stringify({ layers: digests }));
    for (const [index, chain] of chainsOf(digests).entries()) this.chains.set(chain, layers[index] as Buffer);
    this.configs.set(digest(config), config);
    return digest(config);
  }

  #layers(id: string): string[] {
    return (JSON.parse(String(this.configs.get(id))) as { layers: string[] }).layers;
  }

  async hasImage(id: string) {
    return this.configs.has(id);
  }

  async image(id: string): Promise<ImageFacts> {
    if (!this.configs.has(id)) throw new InitlessError('NOT_FOUND', `no image ${id}`);
    return { id, entrypoint: [], cmd: [], graph: {}, layers: this.#layers(id) };
  }

  async heldLayers() {
    return [...this.configs.keys()].map((id) => this.#layers(id));
  }

  async tag(id: string, repository: string, tag: string) {
    this.names.set(`${repository}:${tag}`, id);
  }

  async specOf() {
    return structuredClone(SPEC);
  }

  async save(id: string): Promise<Readable> {
    const { layers } = await this.image(id);
    const pack = createPack();
    pack.entry({ name: 'blobs/sha256/', type: 'directory' });
    pack.entry({ name: `blobs/sha256/${id.slice(7)}` }, this.configs.get(id) as Buffer);
    for (const [index, chain] of chainsOf(layers).entries()) {
      pack.entry({ name: `blobs/sha256/${layers[index]?.slice(7)}` }, this.chains.get(chain) as Buffer);
    }
    pack.entry({ name: 'manifest.json' }, '[]');
    pack.finalize();
    return pack as unknown as Readable;
  }

  async load(archive: Readable) {
    if (this.refuse) throw this.refuse;
    const files = new Map<string, Buffer>();
    const extract = createExtract();
    archive.pipe(extract);
    for await (const entry of extract) files.set(entry.header.name, await buffer(entry as unknown as Readable));
    const [{ Config, RepoTags, Layers }] = JSON.parse(String(files.get('manifest.json'))) as [
      { Config: string; RepoTags: string[]; Layers: string[] },
    ];
    this.loaded = [...files.keys()]
      .filter((name) => name.startsWith('blobs/'))
      .map((name) => `sha256:${name.slice(13)}`);
    const config = files.get(Config) as Buffer;
    const digests = (JSON.parse(String(config)) as { layers: string[] }).layers;
    for (const [index, chain] of chainsOf(digests).entries()) {
      if (this.chains.has(chain)) continue;
      const layer = files.get(Layers[index] as string);
      if (layer === undefined || digest(layer) !== digests[index])
        throw new InitlessError('INTERNAL', 'invalid diffID');
      this.chains.set(chain, layer);
    }
    this.configs.set(digest(config), config);
    for (const name of RepoTags) this.names.set(name, digest(config));
  }
}

/** What one host is asked for, and how it may go wrong. */
export interface Faults {
  asked: { exports: ExportRevisionRequest[]; bytes: number };
  /** Given each piece before it goes. */
  piece?: (data: Buffer) => Buffer;
}

/** One host: its engine, its checkpoints, and both sides of the transfer. */
export class TransferHost {
  readonly engine = new FakeEngine();
  readonly checkpoints: Checkpoints;
  readonly revisions: Revisions;
  readonly exports: Exports;
  readonly copier: Copier;
  readonly rate = new Rate();
  readonly made: string[] = [];
  readonly dialled: string[] = [];
  readonly faults: Faults = { asked: { exports: [], bytes: 0 } };
  now = 0;
  source: CopySource = { host: '', address: '' };
  readonly root: string;
  #server: RpcServer | undefined;

  constructor(root: string, name: string, here = FINGERPRINT) {
    this.root = root;
    this.source = { host: name, address: '' };
    this.checkpoints = new Checkpoints(path.join(root, 'checkpoints'), name, here, LOG);
    this.revisions = new Revisions(path.join(root, 'revisions'));
    const docker = this.engine as unknown as DockerEngine;
    const { checkpoints, revisions, rate } = this;
    this.exports = new Exports({
      ...{ docker, checkpoints, revisions, rate, log: LOG },
      spool: path.join(root, 'spool'),
      onReleased: () => {},
      now: () => this.now,
    });
    this.copier = new Copier({
      ...{ docker, checkpoints, revisions, log: LOG },
      staging: new Staging(path.join(root, 'parts')),
      maker: {
        makeFromImage: async (_, record) => {
          this.made.push(record.revision);
          return { imageId: record.imageId, checkpoint: undefined, problem: undefined };
        },
      },
      dial: (source, service, revision): Source => {
        this.dialled.push(source.host);
        return dialSource(source, service, revision);
      },
    });
  }

  async start(): Promise<void> {
    await this.checkpoints.load();
    await this.revisions.load(() => {});
    await this.exports.start();
    const service = new TransferService(this.exports);
    const { faults } = this;
    this.#server = createRpcServer([TransferServiceDefinition.fullName], () => {});
    this.#server.add(TransferServiceDefinition, {
      describeRevision: (request, context) => service.describeRevision(request, context),
      exportRevision: (request, context) => {
        faults.asked.exports.push(request);
        return service.exportRevision(request, context);
      },
      async *fetchPart(request, context) {
        for await (const { data } of service.fetchPart(request, context)) {
          faults.asked.bytes += data.length;
          yield { data: faults.piece?.(data) ?? data };
        }
      },
    });
    this.source.address = `127.0.0.1:${await this.#server.listen('127.0.0.1:0')}`;
  }

  async stop(): Promise<void> {
    await this.#server?.stop(0);
    this.#server = undefined;
  }

  /** Notes a revision as one that was built here. */
  async holdImage(imageId: string): Promise<void> {
    const image = await this.engine.image(imageId);
    await this.revisions.put(
      await recordOf(this.engine as unknown as DockerEngine, CONFIG, REVISION, image, new AbortController().signal),
    );
  }

  /** Seals a checkpoint with one of everything that a folder can hold. */
  async holdCheckpoint(imageId: string, volumes = true): Promise<void> {
    const { checkpoints } = this;
    const dir = await checkpoints.begin('web', 'web', REVISION);
    await writeFile(path.join(dir, 'criu/pages-1.img'), randomBytes(3 * MIB + 17));
    await writeFile(path.join(dir, 'criu/empty.img'), '');
    await mkdir(path.join(dir, 'memory/.initless'), { recursive: true });
    const writer = await SparseWriter.create(path.join(dir, 'memory/.initless/mem-1'));
    for (const at of [1, 500]) await writer.write(at * 1024 * MIB, randomBytes(5 * MIB));
    const index = { path: '.initless/mem-1', ...(await writer.finish(1024 * 1024 * MIB)) };
    await writeFile(path.join(dir, 'extents.json'), writeIndex([index]));
    await writeFile(path.join(dir, 'touched.json'), writeTouched([]));
    const layer = path.join(dir, 'rootfs');
    await mkdir(path.join(layer, 'var/lib'), { recursive: true });
    await writeFile(path.join(layer, 'var/lib/data'), 'data', { mode: 0o640 });
    await symlink('/elsewhere', path.join(layer, 'link'));
    const script = `mknod gone c 0 0; mkfifo pipe; ln var/lib/data second; chown 12:34 var/lib/data; truncate -s 40M sparse
      setfattr -n trusted.overlay.opaque -v y var/lib 2>/dev/null || true`;
    execFileSync('sh', ['-c', script], { cwd: layer });
    await new Promise<void>((resolve, reject) => {
      const server = createServer().on('error', reject);
      // Its file would go with an orderly end.
      server.listen(path.join(layer, 'app.sock'), () => resolve()).unref();
    });
    if (volumes) {
      await mkdir(path.join(dir, 'volumes/0'));
      await writeFile(path.join(dir, 'volumes/0/file'), 'in a volume');
    } else await rm(path.join(dir, 'volumes'), { recursive: true });
    const facts: Omit<Manifest, 'format' | 'entries' | 'createdAt' | 'fingerprint'> = {
      ...{ service: 'web', revision: REVISION, imageId, hostname: 'web', volumes: ['/data'], stages: [] },
      memory: CheckpointMemory.fromPartial({ mode: MemoryMode.MEMORY_MODE_MAPPED }),
    };
    await checkpoints.seal(dir, SPEC, facts);
  }

  /** Gets the revision from other hosts. */
  copy(imageId: string, sources: readonly TransferHost[], more: Partial<CopyRevision> = {}, signal?: AbortSignal) {
    const command = CopyRevision.fromPartial({
      ...{ config: CONFIG, revision: REVISION, imageId },
      sources: sources.map(({ source }) => source),
      ...more,
    });
    return this.copier.copy(command, () => {}, signal ?? new AbortController().signal);
  }

  /** Files of parts that are on their way. */
  async parts(): Promise<string[]> {
    const folder = path.join(this.root, 'parts', `web@${REVISION}`);
    return (await readdir(folder).catch(() => [])).map((name) => path.join(folder, name));
  }
}

/** Layers of an image. */
export function layersOf(count: number): Buffer[] {
  return Array.from({ length: count }, () => randomBytes(MIB + 100));
}
