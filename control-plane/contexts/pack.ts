import { createHash } from 'node:crypto';
import { pack as createPack } from 'tar-stream';
import { drained } from './drained.js';
import { CONFIG_FILE } from './limits.js';
import type { Entry, Tree } from './tree.js';

/** A moment for every entry, so that equal folders give equal archives. */
const EPOCH = new Date(0);

/** Largest piece that is given out: also the largest that a FetchContext message carries. */
export const PIECE_BYTES = 64 * 1024;

/** What a tree's archive is known by. */
export interface TreeDigests {
  /** "sha256:..." of the archive. */
  context: string;
  /** "sha256:..." over all of the tree but `config.yaml`, whose keys are looked at one by one instead. */
  content: string;
}

/**
 * A tree as a canonical tar archive: equal folders give equal bytes, whatever their times, owners and order on disk.
 *
 * @param onDigests told the digests once the whole archive has been given out.
 */
export async function* packTree(tree: Tree, onDigests?: (digests: TreeDigests) => void): AsyncGenerator<Buffer> {
  const pack = createPack();
  const whole = createHash('sha256');
  const content = createHash('sha256');
  const filled = fill(pack, tree.entries, content).catch((error: unknown) => pack.destroy(error as Error));
  try {
    for await (const piece of pack as AsyncIterable<Buffer>) {
      whole.update(piece);
      for (let offset = 0; offset < piece.length; offset += PIECE_BYTES) {
        yield piece.subarray(offset, offset + PIECE_BYTES);
      }
    }
  } finally {
    // Whoever gives the archive up halfway must not leave a file open.
    pack.destroy();
    await filled;
  }
  onDigests?.({ context: `sha256:${whole.digest('hex')}`, content: `sha256:${content.digest('hex')}` });
}

type Pack = ReturnType<typeof createPack>;
type Hash = ReturnType<typeof createHash>;

async function fill(pack: Pack, entries: readonly Entry[], content: Hash): Promise<void> {
  for (const entry of entries) {
    const sum = await add(pack, entry);
    if (entry.path !== CONFIG_FILE) content.update(`${JSON.stringify([entry.path, entry.kind, ...sum])}\n`);
  }
  pack.finalize();
}

/** Adds an entry and gives what distinguishes it from others of its path and kind. */
async function add(pack: Pack, entry: Entry): Promise<(string | boolean)[]> {
  const header = { name: entry.path, mtime: EPOCH, uid: 0, gid: 0, uname: '', gname: '' };
  switch (entry.kind) {
    case 'directory':
      await finished(pack, { ...header, type: 'directory', mode: 0o755 });
      return [];
    case 'link':
      await finished(pack, { ...header, type: 'symlink', mode: 0o777, linkname: entry.target });
      return [entry.target];
    case 'file': {
      const hash = createHash('sha256');
      const mode = entry.executable ? 0o755 : 0o644;
      await finished(pack, { ...header, type: 'file', mode, size: entry.size }, async (write) => {
        for await (const piece of entry.read()) {
          hash.update(piece);
          await write(piece);
        }
      });
      return [entry.executable, hash.digest('hex')];
    }
  }
}

type Header = Parameters<Pack['entry']>[0];

/** Adds one entry, its body written by `body`, and waits until the archive has taken it in and `body` has ended. */
async function finished(
  pack: Pack,
  header: Header,
  body?: (write: (piece: Buffer) => Promise<void>) => Promise<void>,
): Promise<void> {
  let sink!: ReturnType<Pack['entry']>;
  const taken = new Promise<void>((resolve, reject) => {
    sink = pack.entry(header, (error) => (error ? reject(error) : resolve()));
    // A stream that is destroyed with an error says so once more, by itself.
    sink.on('error', reject);
  });
  taken.catch(() => undefined); // It is waited for below; until then it must not count as unhandled.
  try {
    await body?.(async (piece) => {
      if (!sink.write(piece)) await drained(sink);
      if (sink.destroyed) throw new Error('the archive was given up');
    });
    sink.end(undefined);
  } catch (error) {
    sink.destroy(error as Error);
    throw error;
  }
  await taken;
}
