import { mkdir, open, rename, stat } from 'node:fs/promises';
import path from 'node:path';
import type { RevisionPart, TransferServiceDefinition } from '../../proto/gen/initless/v1/transfer.js';
import type { createRpcClient } from '../../proto/rpc/client.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { CHUNK, sha256 } from './chunks.js';

/** A source that sends nothing for this long is given up; sending an image begins with reading it. */
const SILENT_MS = 60_000;

/** A part of a revision to be had from another agent. */
export interface Wanted {
  service: string;
  revision: string;
  part: RevisionPart;
  /** Which bytes they are: the same text, the same bytes. */
  version: string;
}

/** How much of a part is there. */
export type OnBytes = (received: number) => void;

/**
 * Gets a part into `file`, which is complete when this resolves. What an earlier attempt got of the same bytes, from whom
 * ever, is not asked for again: it stands in a file of the same name with ".part" at its end, in whole chunks.
 *
 * Errors: those of the source, COPY_FAILED (wrong digest), DEADLINE (nothing comes), DISK_FULL.
 */
export async function fetchPart(
  client: ReturnType<typeof createRpcClient<typeof TransferServiceDefinition>>,
  wanted: Wanted,
  file: string,
  onBytes: OnBytes,
  signal: AbortSignal,
): Promise<void> {
  if (await sizeOf(file)) return;
  await mkdir(path.dirname(file), { recursive: true, mode: 0o700 });
  const partial = `${file}.part`;
  const offset = Math.floor((await sizeOf(partial)) / CHUNK) * CHUNK;
  const handle = await open(partial, offset === 0 ? 'w' : 'r+', 0o600);
  const silence = new AbortController();
  const late = () =>
    silence.abort(
      new InitlessError('DEADLINE', `nothing came for ${SILENT_MS} ms; pending was: a copy of ${wanted.service}`),
    );
  let timer = setTimeout(late, SILENT_MS);
  try {
    await handle.truncate(offset);
    let at = offset;
    const bound = AbortSignal.any([signal, silence.signal]);
    for await (const chunk of client.fetchPart({ ...wanted, offset }, { signal: bound })) {
      clearTimeout(timer);
      timer = setTimeout(late, SILENT_MS);
      if (!sha256(chunk.data).equals(Buffer.from(chunk.sha256))) {
        throw new InitlessError('COPY_FAILED', `the bytes of ${wanted.service} from ${at} on do not have their digest`);
      }
      await handle.write(chunk.data, 0, chunk.data.length, at);
      at += chunk.data.length;
      onBytes(at);
    }
    await handle.sync();
  } catch (error) {
    if (silence.signal.aborted && !signal.aborted) throw silence.signal.reason;
    throw (error as NodeJS.ErrnoException).code === 'ENOSPC' ? diskFull(file, error) : error;
  } finally {
    clearTimeout(timer);
    await handle.close();
  }
  await rename(partial, file);
}

function diskFull(file: string, cause: unknown): InitlessError {
  return new InitlessError('DISK_FULL', `there is no room for a copy: ${file}`, { subject: file, cause });
}

async function sizeOf(file: string): Promise<number> {
  return stat(file).then(
    ({ size }) => size,
    (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return 0;
      throw error;
    },
  );
}
