import { createHash } from 'node:crypto';
import {
  Checkpoint,
  type CheckpointMemory,
  type Fingerprint,
  type StageTime,
} from '../../proto/gen/initless/v1/types.js';
import { InitlessError } from '../../proto/rpc/errors.js';

/** Version of a checkpoint's folder. A folder of another version is refused, not guessed at. */
export const FORMAT = 2;
/** Names in a checkpoint's folder. */
export const MANIFEST = 'manifest.json';
export const SPEC = 'spec.json';
export const IMAGES = 'criu';
export const LAYER = 'rootfs';
export const VOLUMES = 'volumes';
/** With mapped memory only: the layer with the memory files, what data they hold, and what of it to read ahead. */
export const MEMORY = 'memory';
export const EXTENTS = 'extents.json';
export const TOUCHED = 'touched.json';

/** One entry of a checkpoint's folder. */
export interface Entry {
  /** Path below the folder. */
  path: string;
  type: 'file' | 'directory' | 'link' | 'special';
  /** Permission bits. */
  mode: number;
  uid: number;
  gid: number;
  /** Bytes; files only. */
  size?: number;
  /** Bytes that are data, of a memory file: the rest are holes. */
  data?: number;
  /** "sha256:..."; files only. Of a memory file: over its extents. */
  digest?: string;
  /** Links only. */
  target?: string;
}

/** What a sealed checkpoint says of itself: `manifest.json` in its folder. */
export interface Manifest {
  format: number;
  service: string;
  revision: string;
  /** ISO 8601. */
  createdAt: string;
  /** Image it was made of. */
  imageId: string;
  /** Host name inside its instances. */
  hostname: string;
  fingerprint: Fingerprint;
  /** Where each volume is mounted; its content at the dump is `volumes/N`. */
  volumes: string[];
  stages: StageTime[];
  /** How restores fill memory. */
  memory: CheckpointMemory;
  entries: Entry[];
}

/** How long CRIU may take, in milliseconds, for images of so many bytes: what a slow disk needs, and some for the rest. */
export function restoreTimeoutMs(bytes: number): number {
  return 20_000 + bytes / 20_000;
}

/** Bytes of a checkpoint's CRIU images. */
export function imageBytes({ entries }: Manifest): number {
  const images = entries.filter(({ path }) => path.startsWith(`${IMAGES}/`));
  return images.reduce((sum, { size = 0 }) => sum + size, 0);
}

/** The text of a manifest file: the manifest and the digest of itself. */
export function writeManifest(manifest: Manifest): string {
  const body = JSON.stringify(manifest);
  return `${JSON.stringify({ digest: digestOf(body), manifest: body })}\n`;
}

/** Reads a manifest file's text. Errors: CHECKPOINT_DAMAGED, CHECKPOINT_INCOMPATIBLE for another format. */
export function readManifest(text: string, file: string): Manifest {
  let outer: { digest?: unknown; manifest?: unknown };
  try {
    outer = JSON.parse(text) as typeof outer;
  } catch (cause) {
    throw damaged(`${file} is not a manifest`, file, cause);
  }
  if (typeof outer.manifest !== 'string' || outer.digest !== digestOf(outer.manifest)) {
    throw damaged(`${file} does not have the digest that it names`, file);
  }
  const manifest = JSON.parse(outer.manifest) as Manifest;
  if (manifest.format !== FORMAT) {
    throw new InitlessError(
      'CHECKPOINT_INCOMPATIBLE',
      `${file} has format ${manifest.format}, this agent reads ${FORMAT}`,
      {
        subject: file,
        nextStep: `make a new one with 'initless checkpoint create ${manifest.service}'`,
      },
    );
  }
  return manifest;
}

/** The error for a checkpoint that is not what it was when it was sealed. */
export function damaged(message: string, subject: string, cause?: unknown): InitlessError {
  return new InitlessError('CHECKPOINT_DAMAGED', message, {
    subject,
    nextStep: "make a new one with 'initless checkpoint create SERVICE'; cold starts serve meanwhile",
    cause,
  });
}

/** "sha256:..." of a text. */
function digestOf(text: string): string {
  return `sha256:${createHash('sha256').update(text).digest('hex')}`;
}

/** A checkpoint as it goes over the wire. */
export function checkpointOnWire(manifest: Manifest, host: string, dir: string, withFiles: boolean): Checkpoint {
  const files = manifest.entries.filter((entry) => entry.type === 'file');
  return Checkpoint.fromPartial({
    service: manifest.service,
    revision: manifest.revision,
    host,
    path: dir,
    format: manifest.format,
    createdAt: new Date(manifest.createdAt),
    size: files.reduce((sum, file) => sum + bytesOf(file), 0),
    fingerprint: manifest.fingerprint,
    imageId: manifest.imageId,
    stages: manifest.stages,
    memory: manifest.memory,
    files: withFiles ? files.map((file) => ({ path: file.path, size: bytesOf(file), digest: file.digest ?? '' })) : [],
  });
}

/** Bytes that a file takes. */
function bytesOf({ data, size = 0 }: Entry): number {
  return data ?? size;
}
