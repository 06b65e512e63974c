import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { Problem } from '../../proto/gen/initless/v1/types.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import type { OciSpec } from '../runtime/spec.js';
import { sync } from './tree.js';

/** What a host keeps of a revision that it built, so that it can be started from its image at any time. */
export interface RevisionRecord {
  service: string;
  revision: string;
  /** Image id, "sha256:...". */
  imageId: string;
  /** Name of the image that keeps its layers, "repository:tag". */
  imageName: string;
  /** Specification for an instance of it. */
  spec: OciSpec;
  /** Host name inside its instances. */
  hostname: string;
  /** Overlay2's short names of the image's layers, topmost first. */
  layers: string[];
  /** Why it has no checkpoint. */
  problem?: Problem;
}

/** The revisions that were built on this host. */
export class Revisions {
  readonly #dir: string;
  readonly #records = new Map<string, RevisionRecord>();

  constructor(dir: string) {
    this.#dir = dir;
  }

  /** Reads what is on disk. A record that cannot be read is left out: its revision is built again. */
  async load(onDamaged: (file: string, error: Error) => void): Promise<void> {
    await mkdir(this.#dir, { recursive: true, mode: 0o700 });
    for (const name of await readdir(this.#dir)) {
      if (!name.endsWith('.json')) continue;
      const file = path.join(this.#dir, name);
      try {
        const record = JSON.parse(await readFile(file, 'utf8')) as RevisionRecord;
        this.#records.set(keyOf(record.service, record.revision), record);
      } catch (error) {
        onDamaged(file, error as Error);
      }
    }
  }

  /** The record of a revision. Errors: NOT_FOUND. */
  get(service: string, revision: string): RevisionRecord {
    const record = this.find(service, revision);
    if (record === undefined)
      throw new InitlessError('NOT_FOUND', `revision ${revision} of ${service} was not built here`);
    return record;
  }

  /** All records. */
  list(): RevisionRecord[] {
    return [...this.#records.values()];
  }

  /** The record of a revision, if it was built here. */
  find(service: string, revision: string): RevisionRecord | undefined {
    return this.#records.get(keyOf(service, revision));
  }

  /** Keeps a record, durably. */
  async put(record: RevisionRecord): Promise<void> {
    const file = this.#fileOf(record.service, record.revision);
    await writeFile(`${file}.new`, JSON.stringify(record), { mode: 0o600 });
    await sync(`${file}.new`);
    await rename(`${file}.new`, file);
    await sync(this.#dir);
    this.#records.set(keyOf(record.service, record.revision), record);
  }

  /** Forgets a service's records but those of the revisions in `keep`, and gives what was forgotten. */
  async remove(service: string, keep: readonly string[]): Promise<RevisionRecord[]> {
    const gone = [...this.#records.values()].filter(
      (record) => record.service === service && !keep.includes(record.revision),
    );
    for (const record of gone) {
      this.#records.delete(keyOf(record.service, record.revision));
      await rm(this.#fileOf(record.service, record.revision), { force: true });
    }
    return gone;
  }

  #fileOf(service: string, revision: string): string {
    return path.join(this.#dir, `${service}@${revision}.json`);
  }
}

function keyOf(service: string, revision: string): string {
  return `${service} ${revision}`;
}
