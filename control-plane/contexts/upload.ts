import { type FileHandle, open, rm } from 'node:fs/promises';
import { extract as createExtract, type Header } from 'tar-stream';
import { InitlessError } from '../../proto/rpc/errors.js';
import { drained } from './drained.js';
import { MAX_BYTES, MAX_ENTRIES } from './limits.js';
import { PIECE_BYTES } from './pack.js';
import { normalizePath } from './paths.js';
import { badArchive, buildTree, type Entry, type Tree, tooLarge } from './tree.js';

/** Room for headers, padding and names around the files of an archive. */
const MAX_ARCHIVE_BYTES = MAX_BYTES + MAX_ENTRIES * 2_048;

/** An archive that was taken in: its tree can be read until it is disposed of. */
export interface Upload {
  tree: Tree;
  dispose: () => Promise<void>;
}

/**
 * Takes an uploaded tar archive in. Nothing is unpacked under a name from the archive: all contents go, one after the
 * other, into the one file `staging`, and the tree reads from there.
 *
 * @param origin what it is called in messages.
 * Errors: BAD_ARCHIVE, TOO_LARGE, and those of `buildTree`.
 */
export async function stageUpload(origin: string, chunks: AsyncIterable<Uint8Array>, staging: string): Promise<Upload> {
  const file = await open(staging, 'wx+', 0o600);
  const dispose = async () => {
    await file.close();
    await rm(staging, { force: true });
  };
  try {
    const entries = await readArchive(origin, chunks, file);
    return { tree: await buildTree(origin, entries), dispose };
  } catch (error) {
    await dispose();
    throw error;
  }
}

async function readArchive(origin: string, chunks: AsyncIterable<Uint8Array>, file: FileHandle): Promise<Entry[]> {
  const extract = createExtract();
  const feeding = feed(origin, chunks, extract);
  // What goes wrong while the archive is fed reaches the loop below as the extractor's own error.
  feeding.catch((error: unknown) => extract.destroy(error as Error));
  const entries: Entry[] = [];
  const files = new Map<string, Entry>();
  let end = 0;
  try {
    for await (const stream of extract) {
      if (entries.length >= MAX_ENTRIES) throw tooLarge(origin, `more than ${MAX_ENTRIES} entries`);
      const entry = describe(origin, stream.header, file, end, files);
      if (end + (stream.header.size ?? 0) > MAX_BYTES) throw tooLarge(origin, 'more than 1 GiB');
      for await (const piece of stream as AsyncIterable<Buffer>) {
        await file.write(piece, 0, piece.length, end);
        end += piece.length;
      }
      if (entry === undefined) continue;
      entries.push(entry);
      if (entry.kind === 'file') files.set(entry.path, entry);
    }
    await feeding;
  } catch (error) {
    extract.destroy();
    throw error instanceof InitlessError || isSystemError(error) ? error : notTar(origin, error);
  }
  return entries;
}

function isSystemError(error: unknown): boolean {
  return typeof (error as NodeJS.ErrnoException).code === 'string' && 'syscall' in (error as object);
}

async function feed(
  origin: string,
  chunks: AsyncIterable<Uint8Array>,
  extract: ReturnType<typeof createExtract>,
): Promise<void> {
  let received = 0;
  for await (const chunk of chunks) {
    if (received === 0) checkMagic(origin, chunk);
    received += chunk.length;
    if (received > MAX_ARCHIVE_BYTES) throw tooLarge(origin, 'more than 1 GiB');
    if (!extract.write(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength))) await drained(extract);
    if (extract.destroyed) return;
  }
  if (received === 0) throw notTar(origin, new Error('it is empty'));
  extract.end(undefined);
}

/** A compressed archive is the one likely mistake that deserves an answer of its own. */
function checkMagic(origin: string, chunk: Uint8Array): void {
  const magic = Buffer.from(chunk.subarray(0, 6)).toString('hex');
  const format = { '1f8b': 'gzip', '425a68': 'bzip2', '28b52ffd': 'zstd', fd377a585a00: 'xz', '504b0304': 'zip' };
  for (const [prefix, name] of Object.entries(format)) {
    if (magic.startsWith(prefix)) throw notTar(origin, new Error(`it is compressed (${name})`));
  }
}

function notTar(origin: string, cause: unknown): InitlessError {
  return new InitlessError('BAD_ARCHIVE', `${origin} is not a whole tar archive: ${(cause as Error).message}`, {
    subject: origin,
    nextStep: "send a plain tar archive, as 'tar -C FOLDER -c .' makes it",
    cause,
  });
}

/** The entry a header stands for; undefined for the top folder itself. Errors: BAD_ARCHIVE. */
function describe(
  origin: string,
  header: Header,
  file: FileHandle,
  offset: number,
  before: ReadonlyMap<string, Entry>,
): Entry | undefined {
  const path = normalizePath(header.name);
  if (path === '') {
    if (header.type === 'directory') return undefined;
    throw badArchive(origin, header.name, 'has no name');
  }
  const size = header.size ?? 0;
  switch (header.type) {
    case 'directory':
      return { kind: 'directory', path };
    case 'symlink':
      return { kind: 'link', path, target: header.linkname ?? '' };
    case 'file':
    case 'contiguous-file': {
      const executable = ((header.mode ?? 0) & 0o100) !== 0;
      return { kind: 'file', path, executable, size, read: () => readRange(file, offset, size) };
    }
    case 'link': {
      // A hard link is a second name of a file that came before: it becomes a file of its own.
      const target = normalizePath(header.linkname ?? '');
      const original = before.get(target);
      if (original?.kind === 'file') return { ...original, path };
      throw badArchive(origin, path, `is a hard link to ${JSON.stringify(header.linkname)}, no file before it`);
    }
    default:
      throw badArchive(origin, path, `is of a kind that is not taken (${String(header.type)})`);
  }
}

async function* readRange(file: FileHandle, offset: number, size: number): AsyncGenerator<Buffer> {
  for (let done = 0; done < size; ) {
    const { bytesRead, buffer } = await file.read({
      buffer: Buffer.allocUnsafe(Math.min(PIECE_BYTES, size - done)),
      position: offset + done,
    });
    if (bytesRead === 0) throw new InitlessError('INTERNAL', 'a staged upload is shorter than it was');
    done += bytesRead;
    yield buffer.subarray(0, bytesRead);
  }
}
