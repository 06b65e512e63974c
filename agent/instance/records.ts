import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import type { MemoryMode, Origin, StageTime } from '../../proto/gen/initless/v1/types.js';
import type { Filler } from '../runtime/lazy.js';
import { isAlive, type ProcessId } from '../runtime/process.js';
import { Instance, isSettled } from './instance.js';
import type { Lease } from './leases.js';
import type { Place } from './place.js';

/** What a restarted agent must know of an instance to go on looking after it. */
interface InstanceRecord {
  id: string;
  assignment: unknown;
  origin: Origin;
  place: Place;
  process: ProcessId;
  checkpointDir: string;
  memory: MemoryMode;
  /** Absent once all of its memory is there. */
  filler?: Filler;
  pooled: boolean;
  parked: boolean;
  /** ISO 8601. */
  createdAt: string;
  stages: StageTime[];
  /** Absent in the records of agents that did not note them. */
  leases?: Lease[];
}

/**
 * The instances that run or are parked, one small file each, on the host's tmpfs: they are worth something only as long
 * as the processes they name, and those end with the host.
 */
export class Records {
  readonly #dir: string;
  /** Instances that have changed since their last write began, by id. */
  readonly #changed = new Map<string, Instance>();
  /** Instances of which a write is under way or about to begin: each has one at a time. */
  readonly #writing = new Set<string>();

  constructor(dir = '/run/initless/instances') {
    this.#dir = dir;
  }

  /**
   * Notes an instance as it is and who holds it; one that is not settled, or gone, has no record. It is written once
   * what is being done now is done, together with whatever else changes until then. Errors of the disk go to `onError`.
   */
  note(instance: Instance, onError: (error: unknown) => void): void {
    const { id } = instance;
    this.#changed.set(id, instance);
    if (this.#writing.has(id)) return;
    this.#writing.add(id);
    setImmediate(() => void this.#writeChanges(id, onError));
  }

  async #writeChanges(id: string, onError: (error: unknown) => void): Promise<void> {
    for (let instance = this.#changed.get(id); instance !== undefined; instance = this.#changed.get(id)) {
      this.#changed.delete(id);
      try {
        if (isSettled(instance)) await this.#write(recordOf(instance));
        else await rm(this.#fileOf(id), { force: true });
      } catch (error) {
        onError(error);
      }
    }
    this.#writing.delete(id);
  }

  async #write(record: InstanceRecord): Promise<void> {
    await mkdir(this.#dir, { recursive: true, mode: 0o700 });
    const file = this.#fileOf(record.id);
    await writeFile(`${file}.new`, JSON.stringify(record), { mode: 0o600 });
    await rename(`${file}.new`, file);
  }

  #fileOf(id: string): string {
    return path.join(this.#dir, `${id}.json`);
  }

  /** The instances of an earlier agent whose processes still live; the records of all others are removed. */
  async load(onDamaged: (file: string, error: unknown) => void): Promise<Instance[]> {
    await mkdir(this.#dir, { recursive: true, mode: 0o700 });
    const found: Instance[] = [];
    for (const name of await readdir(this.#dir)) {
      const file = path.join(this.#dir, name);
      try {
        const record = JSON.parse(await readFile(file, 'utf8')) as InstanceRecord;
        if (name.endsWith('.json') && isAlive(record.process)) {
          found.push(instanceOf(record));
          continue;
        }
      } catch (error) {
        onDamaged(file, error);
      }
      await rm(file, { force: true });
    }
    return found;
  }
}

function recordOf(instance: Instance): InstanceRecord {
  return {
    id: instance.id,
    assignment: ServiceAssignment.toJSON(instance.assignment),
    origin: instance.origin,
    place: instance.place as Place,
    process: instance.process as ProcessId,
    checkpointDir: instance.checkpointDir,
    memory: instance.memory,
    filler: instance.filler,
    pooled: instance.pooled,
    parked: instance.state === 'parked',
    createdAt: instance.createdAt.toISOString(),
    stages: instance.stages,
    leases: [...instance.leases.values()],
  };
}

function instanceOf(record: InstanceRecord): Instance {
  const createdAt = new Date(record.createdAt);
  const instance = new Instance(record.id, ServiceAssignment.fromJSON(record.assignment), record.origin, createdAt);
  instance.place = record.place;
  instance.process = record.process;
  instance.checkpointDir = record.checkpointDir;
  instance.memory = record.memory;
  instance.filler = record.filler;
  instance.pooled = record.pooled;
  instance.stages.push(...record.stages);
  instance.apply({ type: 'start' });
  instance.apply({ type: 'healthy' });
  if (record.parked) instance.apply({ type: 'park' });
  for (const lease of record.leases ?? []) instance.leases.set(lease.id, lease);
  return instance;
}
