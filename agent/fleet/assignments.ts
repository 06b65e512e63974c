import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import { sync } from '../checkpoint/tree.js';

/** What this host was last told to serve; it goes on serving that while the control plane is away, also after a restart. */
export class Assignments {
  readonly #file: string;
  readonly #services = new Map<string, ServiceAssignment>();
  /** One write at a time. */
  #saving: Promise<void> = Promise.resolve();

  constructor(dir: string) {
    this.#file = path.join(dir, 'assignments.json');
  }

  /** Reads what is on disk. A damaged file counts as empty, since the control plane sends all of it again; `onDamaged` is told. */
  async load(onDamaged: (error: Error) => void): Promise<void> {
    await mkdir(path.dirname(this.#file), { recursive: true, mode: 0o700 });
    try {
      const list = JSON.parse(await readFile(this.#file, 'utf8')) as unknown[];
      for (const entry of list) this.#keep(ServiceAssignment.fromJSON(entry));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') onDamaged(error as Error);
    }
  }

  #keep(assignment: ServiceAssignment): void {
    if (assignment.config) this.#services.set(assignment.config.serviceName, assignment);
  }

  /** All of them. */
  list(): ServiceAssignment[] {
    return [...this.#services.values()];
  }

  /** One of them. */
  find(service: string): ServiceAssignment | undefined {
    return this.#services.get(service);
  }

  /** Serves a service from now on, durably. */
  async put(assignment: ServiceAssignment): Promise<void> {
    this.#keep(assignment);
    await this.#save();
  }

  /** Stops serving a service, durably. */
  async remove(service: string): Promise<void> {
    if (this.#services.delete(service)) await this.#save();
  }

  #save(): Promise<void> {
    const saved = this.#saving.then(() => this.#write());
    // Whoever asked for a write is told of its failure; the next one is tried all the same.
    this.#saving = saved.catch(() => {});
    return saved;
  }

  async #write(): Promise<void> {
    const text = JSON.stringify(this.list().map((assignment) => ServiceAssignment.toJSON(assignment)));
    await writeFile(`${this.#file}.new`, text, { mode: 0o600 });
    await sync(`${this.#file}.new`);
    await rename(`${this.#file}.new`, this.#file);
  }
}
