import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { extract as createExtract, pack as createPack } from 'tar-stream';
import { InitlessError } from '../../proto/rpc/errors.js';

/** Where `docker save` puts a blob, by its digest in hexadecimal; layers are there as plain tar archives. */
const BLOBS = 'blobs/sha256/';

/**
 * Takes blobs out of what `docker save` prints, each into a file of its own; the rest is passed over.
 *
 * @param wanted digests, "sha256:...", and the files they go to.
 * Errors: NOT_FOUND when one is not in the archive, those of writing, the signal's reason.
 */
export async function takeBlobs(
  archive: Readable,
  wanted: ReadonlyMap<string, string>,
  signal: AbortSignal,
): Promise<void> {
  const missing = new Set(wanted.keys());
  const extract = createExtract();
  const reading = pipeline(archive, extract, { signal });
  // Whatever ends the reading ends the loop below too.
  reading.catch(() => {});
  for await (const entry of extract) {
    const { name, type } = entry.header;
    const digest = name.startsWith(BLOBS) ? `sha256:${name.slice(BLOBS.length)}` : '';
    const file = wanted.get(digest);
    if (file === undefined || type !== 'file') {
      entry.resume();
      continue;
    }
    missing.delete(digest);
    await pipeline(entry as unknown as Readable, createWriteStream(file, { mode: 0o600 }), { signal });
  }
  await reading;
  const [first] = missing;
  if (first !== undefined) throw new InitlessError('NOT_FOUND', `the engine's archive of the image has no ${first}`);
}

/** What `docker load` is given. */
export interface LoadableImage {
  /** Its configuration. */
  config: { digest: string; file: string };
  /** All of its layers, lowest first; those without a file are there already. */
  layers: readonly { digest: string; file?: string }[];
  /** Name that it gets, "repository:tag". */
  name: string;
}

/** An archive that `docker load` takes. The engine opens only those layers that it lacks. */
export function imageArchive({ config, layers, name }: LoadableImage): Readable {
  const pathOf = (digest: string) => `${BLOBS}${digest.replace('sha256:', '')}`;
  const manifest = [
    { Config: pathOf(config.digest), RepoTags: [name], Layers: layers.map(({ digest }) => pathOf(digest)) },
  ];
  const pack = createPack();
  const fill = async () => {
    pack.entry({ name: 'manifest.json' }, JSON.stringify(manifest));
    const done = new Set<string>();
    for (const { digest, file } of [config, ...layers]) {
      if (file === undefined || done.has(digest)) continue;
      done.add(digest);
      const { size } = await stat(file);
      await pipeline(createReadStream(file), pack.entry({ name: pathOf(digest), size }));
    }
    pack.finalize();
  };
  fill().catch((error: unknown) => pack.destroy(error as Error));
  return pack as unknown as Readable;
}

/** The chain of each layer, lowest first: what names a layer together with everything below it. Pure. */
export function chainsOf(layers: readonly string[]): string[] {
  const chains: string[] = [];
  for (const layer of layers) {
    const below = chains.at(-1);
    chains.push(
      below === undefined ? layer : `sha256:${createHash('sha256').update(`${below} ${layer}`).digest('hex')}`,
    );
  }
  return chains;
}

/** The layers of an image that are not there yet, under the same ones as here. Pure. */
export function missingLayers(layers: readonly string[], held: readonly (readonly string[])[]): string[] {
  const chains = new Set(held.flatMap(chainsOf));
  const of = chainsOf(layers);
  return [...new Set(layers.filter((_, index) => !chains.has(of[index] as string)))];
}
