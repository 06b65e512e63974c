import { readFile } from 'node:fs/promises';
import path from 'node:path';
import type { Readable } from 'node:stream';
import Docker from 'dockerode';
import { withDeadline } from '../../proto/rpc/deadline.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { followBuild } from './build-progress.js';
import { type OciSpec, revisionSpec } from './spec.js';

/** The no-op that stands in for an image's entrypoint while Docker makes the specification; see pause.c. */
const PAUSE = '/usr/local/lib/initless/pause';
const PAUSE_INSIDE = '/.initless-pause';
/** Where dockerd's own containerd keeps bundles. */
const BUNDLES = '/run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby';

/** What is needed of an image. */
export interface ImageFacts {
  /** "sha256:..." */
  id: string;
  entrypoint: string[];
  cmd: string[];
  /** Overlay2's folders. */
  graph: { UpperDir?: string; LowerDir?: string };
  /** Digests of its layers as tar archives, "sha256:...", lowest first. */
  layers: string[];
}

/** The host's Docker engine: it builds images, holds their layers and gives the specification; nothing else. */
export class DockerEngine {
  readonly #docker: Docker;

  constructor(socket = '/var/run/docker.sock') {
    this.#docker = new Docker({ socketPath: socket });
  }

  /** The engine's version. Errors: ENGINE_DOWN, also when it does not answer within `timeoutMs`. */
  async version(timeoutMs = 3_000): Promise<string> {
    try {
      const info = await withDeadline(timeoutMs, "the Docker engine's version", undefined, () =>
        this.#docker.version(),
      );
      return info.Version;
    } catch (cause) {
      throw new InitlessError('ENGINE_DOWN', `the host's Docker engine does not answer: ${(cause as Error).message}`, {
        cause,
      });
    }
  }

  /**
   * Builds an image with BuildKit from a tar archive. The lines that the build prints go to `onLine`.
   * Errors: BUILD_FAILED with the last lines, BASE_IMAGE_MISSING, ENGINE_DOWN.
   */
  async build(
    context: Readable,
    tag: string,
    dockerfile: string,
    onLine: (line: string) => void,
    signal: AbortSignal,
  ): Promise<ImageFacts> {
    const lines: string[] = [];
    const keep = (line: string) => {
      lines.push(line);
      if (lines.length > 200) lines.shift();
      onLine(line);
    };
    try {
      const stream = await this.#docker.buildImage(
        context as NodeJS.ReadableStream,
        {
          t: tag,
          dockerfile,
          version: '2',
          rm: true,
          forcerm: true,
          abortSignal: signal,
        } as Docker.ImageBuildOptions,
      );
      await followBuild(stream as Readable, keep, signal);
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      throw buildError(tag, error as Error, lines);
    }
    return this.image(tag);
  }

  /** Facts of an image. Errors: NOT_FOUND, ENGINE_DOWN. */
  async image(reference: string): Promise<ImageFacts> {
    const found = await this.#call(`image ${reference}`, () => this.#docker.getImage(reference).inspect());
    return {
      id: found.Id,
      entrypoint: listOf(found.Config.Entrypoint),
      cmd: listOf(found.Config.Cmd),
      graph: found.GraphDriver.Data as unknown as ImageFacts['graph'],
      layers: found.RootFS?.Layers ?? [],
    };
  }

  /** The layers of every image that is there, lowest first. Errors: ENGINE_DOWN. */
  async heldLayers(): Promise<string[][]> {
    const images = await this.#call('images', () => this.#docker.listImages());
    const held: string[][] = [];
    for (const { Id } of images) {
      // One that was removed since holds nothing any more.
      if (await this.hasImage(Id)) held.push((await this.image(Id)).layers);
    }
    return held;
  }

  /** An image as the tar archive that {@link load} takes. Errors: NOT_FOUND, ENGINE_DOWN; on the stream: the engine's. */
  async save(id: string): Promise<Readable> {
    return (await this.#call(`image ${id}`, () => this.#docker.getImage(id).get())) as Readable;
  }

  /** Takes an image in. Errors: DISK_FULL, ENGINE_DOWN, INTERNAL with the engine's words, the signal's reason. */
  async load(archive: Readable, signal: AbortSignal): Promise<void> {
    const stop = () => archive.destroy(signal.reason);
    signal.addEventListener('abort', stop, { once: true });
    try {
      const answer = await this.#call('image archive', () => this.#docker.loadImage(archive, { quiet: true }));
      await followBuild(answer as Readable, () => {}, signal);
    } catch (cause) {
      if (signal.aborted) throw signal.reason;
      const { message } = cause as Error;
      if (/no space left on device/i.test(message)) {
        throw new InitlessError('DISK_FULL', `the host's engine has no room for an image: ${message}`, { cause });
      }
      if (cause instanceof InitlessError) throw cause;
      throw new InitlessError('INTERNAL', `the host's engine does not take an image: ${message}`, { cause });
    } finally {
      signal.removeEventListener('abort', stop);
    }
  }

  /** Whether an image is there. */
  async hasImage(reference: string): Promise<boolean> {
    try {
      await this.image(reference);
      return true;
    } catch (error) {
      if (error instanceof InitlessError && error.code === 'NOT_FOUND') return false;
      throw error;
    }
  }

  /** Gives an image a further name, "repository:tag". */
  async tag(id: string, repository: string, tag: string): Promise<void> {
    await this.#call(`image ${id}`, () => this.#docker.getImage(id).tag({ repo: repository, tag }));
  }

  /** Removes a name of an image; the image goes with its last one. A missing one is no error. */
  async untag(reference: string): Promise<void> {
    try {
      await this.#call(`image ${reference}`, () => this.#docker.getImage(reference).remove({ force: false }));
    } catch (error) {
      if (!(error instanceof InitlessError && error.code === 'NOT_FOUND')) throw error;
    }
  }

  /**
   * The OCI specification that Docker makes for an image: its seccomp profile, capabilities, masked paths, mounts,
   * environment, user and limits. A container is started with a no-op in place of the entrypoint, and removed.
   */
  async specOf(
    image: ImageFacts,
    command: readonly string[],
    env: readonly string[],
    hostname: string,
    signal: AbortSignal,
  ): Promise<OciSpec> {
    const container = await this.#call(`image ${image.id}`, () =>
      this.#docker.createContainer({
        Image: image.id,
        Entrypoint: [PAUSE_INSIDE],
        Cmd: [],
        Labels: { 'initless.purpose': 'specification' },
        Hostname: hostname,
        HostConfig: {
          Binds: [`${PAUSE}:${PAUSE_INSIDE}:ro`],
          NetworkMode: 'bridge',
          LogConfig: { Type: 'none', Config: {} },
        },
        abortSignal: signal,
      } as Docker.ContainerCreateOptions),
    );
    try {
      await this.#call(`a container of ${image.id}`, () => container.start({ abortSignal: signal } as object));
      const text = await readFile(path.join(BUNDLES, container.id, 'config.json'), 'utf8');
      const args = [...image.entrypoint, ...(command.length > 0 ? command : image.cmd)];
      return revisionSpec(JSON.parse(text) as OciSpec, args, env, hostname, PAUSE_INSIDE);
    } finally {
      await container.remove({ force: true, v: true });
    }
  }

  /** Removes what an earlier run of the agent left: containers that were only made for their specification or for timing. */
  async removeLeftovers(): Promise<number> {
    const found = await this.#call('containers', () =>
      this.#docker.listContainers({ all: true, filters: { label: ['initless.purpose'] } }),
    );
    await Promise.all(found.map((info) => this.#docker.getContainer(info.Id).remove({ force: true, v: true })));
    return found.length;
  }

  /** Removes a container by name, with its volumes. A missing one is no error. */
  async removeContainer(name: string): Promise<void> {
    try {
      await this.#call(`container ${name}`, () => this.#docker.getContainer(name).remove({ force: true, v: true }));
    } catch (error) {
      if (!(error instanceof InitlessError && error.code === 'NOT_FOUND')) throw error;
    }
  }

  async #call<T>(subject: string, call: () => Promise<T>): Promise<T> {
    try {
      return await call();
    } catch (cause) {
      const error = cause as Error & { statusCode?: number; code?: string };
      if (error.statusCode === 404)
        throw new InitlessError('NOT_FOUND', `no ${subject} in the host's engine`, { subject, cause });
      if (error.code === 'ENOENT' || error.code === 'ECONNREFUSED' || error.code === 'ECONNRESET') {
        throw new InitlessError('ENGINE_DOWN', `the host's Docker engine does not answer: ${error.message}`, {
          subject,
          cause,
        });
      }
      throw new InitlessError('INTERNAL', `Docker, ${subject}: ${error.message}`, { subject, cause });
    }
  }
}

function listOf(value: string | string[] | null | undefined): string[] {
  return value === null || value === undefined ? [] : typeof value === 'string' ? ['/bin/sh', '-c', value] : value;
}

function buildError(tag: string, cause: Error, lines: readonly string[]): InitlessError {
  const message = cause.message.trim();
  const outputTail = lines.slice(-20);
  const missing = /(\S+): (?:failed to resolve source metadata|not found|pull access denied|failed to do request)/.exec(
    message,
  );
  if (
    /failed to resolve source metadata|pull access denied|failed to do request.*manifests|manifest unknown/.test(
      message,
    )
  ) {
    return new InitlessError(
      'BASE_IMAGE_MISSING',
      `building ${tag}: a base image is neither on the host nor to be pulled: ${missing?.[1] ?? message}`,
      {
        subject: tag,
        nextStep: 'use an image that the host has (debian:trixie-slim is always there), or make its registry reachable',
        outputTail: [...outputTail, message],
        cause,
      },
    );
  }
  const code = /ECONNREFUSED|ENOENT|ECONNRESET|socket hang up/.test(message) ? 'ENGINE_DOWN' : 'BUILD_FAILED';
  return new InitlessError(code, `building ${tag} failed: ${message}`, {
    subject: tag,
    nextStep: 'correct the Dockerfile; the lines above say where it stopped',
    outputTail,
    cause,
  });
}
