import { createHash, randomBytes } from 'node:crypto';
import { mkdir, open, readdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { InitlessError } from '../../proto/rpc/errors.js';
import { PIECE_BYTES, packTree, type TreeDigests } from './pack.js';
import type { Tree } from './tree.js';
import { stageUpload, type Upload } from './upload.js';

const DIGEST = /^sha256:([0-9a-f]{64})$/;
/** Begins the names of files that are not complete; a crash may leave them. */
const TEMPORARY = '.incomplete-';

/** The build contexts of all revisions, as canonical tar archives in one folder, each named by its digest. */
export class ContextStore {
  readonly #folder: string;

  private constructor(folder: string) {
    this.#folder = folder;
  }

  /** Opens the folder, makes it if need be, and removes what a crash left half-written. */
  static async open(folder: string): Promise<ContextStore> {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    for (const name of await readdir(folder)) {
      if (name.startsWith(TEMPORARY)) await rm(join(folder, name), { force: true });
    }
    return new ContextStore(folder);
  }

  /** Takes an uploaded archive in; the caller disposes of it. Errors: those of `stageUpload`. */
  async stage(origin: string, chunks: AsyncIterable<Uint8Array>): Promise<Upload> {
    return await stageUpload(origin, chunks, this.#temporary());
  }

  /** Keeps a tree; it is on disk when this resolves. Errors: DISK_FULL, BUSY (a file changed meanwhile). */
  async put(tree: Tree): Promise<TreeDigests> {
    const temporary = this.#temporary();
    let digests: TreeDigests | undefined;
    try {
      const file = await open(temporary, 'wx', 0o600);
      try {
        for await (const piece of packTree(tree, (made) => {
          digests = made;
        })) {
          await file.writeFile(piece);
        }
        await file.sync();
      } finally {
        await file.close();
      }
      if (digests === undefined) throw new InitlessError('INTERNAL', 'an archive was given up halfway');
      await rename(temporary, this.#path(digests.context));
      await syncFolder(this.#folder);
      return digests;
    } catch (error) {
      await rm(temporary, { force: true });
      throw error;
    }
  }

  /**
   * The archive with a digest, in pieces of 64 KiB at most. Errors: NOT_FOUND, and STORE_DAMAGED at its end when it is
   * not what it was.
   */
  async *read(digest: string): AsyncGenerator<Buffer> {
    const path = this.#path(digest);
    const file = await open(path, 'r').catch((cause: unknown) => {
      throw new InitlessError('NOT_FOUND', `there is no build context ${digest}`, {
        subject: digest,
        nextStep: 'apply the service again',
        cause,
      });
    });
    const hash = createHash('sha256');
    try {
      for (;;) {
        const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(PIECE_BYTES));
        if (bytesRead === 0) break;
        hash.update(buffer.subarray(0, bytesRead));
        yield buffer.subarray(0, bytesRead);
      }
    } finally {
      await file.close();
    }
    if (`sha256:${hash.digest('hex')}` !== digest) {
      throw new InitlessError('STORE_DAMAGED', `${path} was altered since it was stored`, {
        subject: path,
        nextStep: 'apply the service again',
      });
    }
  }

  /** Digests of all archives that are there. */
  async list(): Promise<string[]> {
    const names = await readdir(this.#folder);
    return names.flatMap((name) => (/^[0-9a-f]{64}\.tar$/.test(name) ? [`sha256:${name.slice(0, 64)}`] : []));
  }

  /** Removes all archives but those with the digests in `keep`. */
  async keepOnly(keep: ReadonlySet<string>): Promise<void> {
    for (const digest of await this.list()) {
      if (!keep.has(digest)) await rm(this.#path(digest), { force: true });
    }
  }

  #path(digest: string): string {
    const hex = DIGEST.exec(digest)?.[1];
    if (hex === undefined) throw new InitlessError('BAD_REQUEST', `${JSON.stringify(digest)} is not a digest`);
    return join(this.#folder, `${hex}.tar`);
  }

  #temporary(): string {
    return join(this.#folder, `${TEMPORARY}${randomBytes(8).toString('hex')}`);
  }
}

/** Makes renames in a folder survive a power cut. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
