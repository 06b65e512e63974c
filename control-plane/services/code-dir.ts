import { readdir, stat } from 'node:fs/promises';
import { join, relative, sep } from 'node:path';
import { type FSWatcher, watch } from 'chokidar';
import { problemOf, toInitlessError } from '../../proto/rpc/errors.js';
import { CONFIG_FILE } from '../contexts/limits.js';
import { folderVanished } from '../core/intake.js';
import type { EventLog } from '../events.js';
import type { Intake } from './intake.js';
import type { Registry } from './registry.js';

/** A folder is taken in when nothing in it has changed for this long. */
const DEBOUNCE_MS = 300;
/** How often all is looked at anew where changes cannot be watched. */
const POLL_MS = 5_000;
/** How often it is looked whether an event was missed: a watcher that is just being set up tells nothing. */
const LOOK_MS = 2_000;

/** What watching `code_dir` needs of the rest. */
export interface CodeDirParts {
  registry: Registry;
  intake: Intake;
  events: EventLog;
}

/** Keeps the services in step with the folders below `code_dir`: each that has a `config.yaml` is one. */
export class CodeDir {
  readonly #parts: CodeDirParts;
  #path = '';
  #watcher: FSWatcher | undefined;
  #timer: NodeJS.Timeout | undefined;
  #poll: NodeJS.Timeout | undefined;
  #look: NodeJS.Timeout | undefined;
  /** What `config.yaml` of each folder was when it was last read. */
  #seen = new Map<string, string>();
  readonly #dirty = new Set<string>();
  readonly #faults = new Map<string, string>();
  #work: Promise<void> = Promise.resolve();

  constructor(parts: CodeDirParts) {
    this.#parts = parts;
  }

  /** What is wrong with folders now; their services keep what they had. */
  warnings(): string[] {
    return [...this.#faults.values()];
  }

  /** Reads all folders of `path` and watches them from now on, in place of an earlier one. Empty: none. */
  async use(path: string): Promise<void> {
    if (path !== this.#path) {
      await this.stop();
      this.#path = path;
      if (path !== '') this.#watch(path);
    }
    await this.rescan();
  }

  /** Reads all folders now. */
  async rescan(): Promise<void> {
    await this.#enqueue(() => this.#scan());
  }

  /** Watches no more. */
  async stop(): Promise<void> {
    clearTimeout(this.#timer);
    clearInterval(this.#poll);
    clearInterval(this.#look);
    this.#dirty.clear();
    await this.#watcher?.close();
    this.#watcher = undefined;
    await this.#work;
  }

  #watch(path: string): void {
    // The parent's events tell when code_dir itself comes or goes; chokidar follows a path that is not there yet.
    this.#watcher = watch(path, { ignoreInitial: true, followSymlinks: false });
    this.#watcher.on('all', (_event, changed) => this.#touch(relative(path, changed).split(sep)[0] ?? ''));
    this.#watcher.on('error', (error) => this.#pollInstead(path, error));
    // What came after the first reading but before the watcher saw everything is told by no event. Debounced, since a
    // folder that was being written then had its files come without events too.
    this.#watcher.on('ready', () => this.#touch(''));
    this.#look = setInterval(() => void this.#enqueue(() => this.#touchMissed()), LOOK_MS);
  }

  /** Takes folders for changed that came, went or have another `config.yaml` than when they were last read. */
  async #touchMissed(): Promise<void> {
    const before = this.#seen;
    const now = await this.#configs();
    const folders = new Set([...before.keys(), ...now.keys()]);
    for (const folder of folders) if (before.get(folder) !== now.get(folder)) this.#touch(folder);
  }

  /** Too many files to watch, say: then all is looked at every few seconds instead. */
  #pollInstead(path: string, error: unknown): void {
    if (this.#poll !== undefined) return;
    const { message } = toInitlessError(error);
    this.#say('code_dir.not_watched', '', `${path} cannot be watched (${message}); it is read every 5 s instead`);
    this.#poll = setInterval(() => void this.rescan(), POLL_MS);
  }

  #touch(folder: string): void {
    this.#dirty.add(folder);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.#enqueue(() => this.#scan(new Set(this.#dirty))), DEBOUNCE_MS);
  }

  #enqueue(work: () => Promise<void>): Promise<void> {
    this.#work = this.#work.then(work).catch((error: unknown) => {
      this.#say('code_dir.failed', '', `reading ${this.#path} failed: ${toInitlessError(error).message}`, error);
    });
    return this.#work;
  }

  /** @param only just these folders changed. Without: all may have. */
  async #scan(only?: ReadonlySet<string>): Promise<void> {
    for (const folder of only ?? []) this.#dirty.delete(folder);
    const now = await this.#configs();
    const folders = [...now.keys()];
    // A folder's own name is empty when code_dir itself came or went.
    const isMeant = (folder: string) => only === undefined || only.has('') || only.has(folder);
    const changed = folders.filter(isMeant);
    // What changed of the others is still to be noticed.
    const others = [...this.#seen].filter(([folder]) => !isMeant(folder));
    this.#seen = new Map([...others, ...[...now].filter(([folder]) => isMeant(folder))]);
    const provided = new Map<string, string>();
    for (const folder of changed) {
      const name = await this.#takeIn(folder);
      if (name !== undefined) provided.set(folder, name);
    }
    for (const folder of this.#faults.keys()) if (!folders.includes(folder)) this.#faults.delete(folder);
    await this.#disableVanished(folders, provided);
  }

  /** The folders with a `config.yaml`, sorted, each with what changes whenever that file does. */
  async #configs(): Promise<Map<string, string>> {
    const found = new Map<string, string>();
    if (this.#path === '') return found;
    const names = await readdir(this.#path).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw error;
      return [];
    });
    for (const name of names.sort()) {
      const config = await stat(join(this.#path, name, CONFIG_FILE)).catch(() => undefined);
      if (config?.isFile()) found.set(name, `${config.ino} ${config.size} ${config.ctimeMs}`);
    }
    return found;
  }

  /** The service that a folder is, or undefined when it cannot be taken in; then it keeps what it had. */
  async #takeIn(folder: string): Promise<string | undefined> {
    try {
      const { record } = await this.#parts.intake.takeFolder(folder, false);
      if (this.#faults.delete(folder)) this.#say('code_dir.repaired', record.name, `${folder} is right again`);
      return record.name;
    } catch (thrown) {
      const error = toInitlessError(thrown);
      if (error.code === 'BUSY') this.#touch(folder);
      else if (this.#faults.get(folder) !== error.message) {
        this.#faults.set(folder, error.message);
        const service = this.#parts.registry.list().find((record) => record.folder === folder)?.name ?? '';
        this.#say('code_dir.refused', service, `${folder} was not taken in: ${error.message}`, error);
      }
      return undefined;
    }
  }

  /** @param provided services by folder, of the folders that were just taken in. */
  async #disableVanished(folders: readonly string[], provided: ReadonlyMap<string, string>): Promise<void> {
    for (const record of this.#parts.registry.list()) {
      if (record.folder === '' || record.folderGone) continue;
      const now = provided.get(record.folder);
      if (folders.includes(record.folder) && (now === undefined || now === record.name)) continue;
      await this.#parts.registry.change(record.name, (before) =>
        before.folder === record.folder ? folderVanished(before, Date.now()) : before,
      );
      const message = `${record.name} is disabled: the folder ${record.folder} is gone, or is not ${record.name} any more`;
      this.#say('service.disabled', record.name, message);
    }
  }

  #say(kind: string, service: string, message: string, error?: unknown): void {
    this.#parts.events.add({ kind, service, message, problem: error === undefined ? undefined : problemOf(error) });
  }
}
