import { basename, join } from 'node:path';
import { withDeadline } from '../../proto/rpc/deadline.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { badConfig } from '../config/faults.js';
import { parseServiceConfig } from '../config/service.js';
import type { Settings } from '../config/settings.js';
import { parseYamlText } from '../config/yaml-text.js';
import type { ContextStore } from '../contexts/context-store.js';
import { readFolder } from '../contexts/folder.js';
import { CONFIG_FILE } from '../contexts/limits.js';
import { packTree, type TreeDigests } from '../contexts/pack.js';
import type { Tree } from '../contexts/tree.js';
import { accept } from '../core/intake.js';
import type { RevisionRecord, ServiceRecord } from '../core/model.js';
import { sameConfig } from '../core/revision.js';
import type { EventLog } from '../events.js';
import type { Registry } from './registry.js';
import { checkAgainstOthers } from './rules.js';

/** Reading a folder of the largest size that is taken, and writing it down, takes a fraction of this. */
const TAKING_MS = 60_000;

/** What taking services in needs of the rest. */
export interface IntakeParts {
  registry: Registry;
  contexts: ContextStore;
  events: EventLog;
  /** The settings in force. */
  settings: () => Settings;
  /** Ports of our own. */
  ownPorts: () => readonly number[];
}

/** A service was taken in. */
export interface Taken {
  record: ServiceRecord;
  changed: boolean;
}

/** Takes services in: checks them, keeps their build context, and changes their record. */
export class Intake {
  readonly #parts: IntakeParts;
  /** Services that are being taken in: whether a person asked for it, and when it is over. */
  readonly #taking = new Map<string, { explicit: boolean; over: Promise<void> }>();
  #underWay = 0;
  #collecting: Promise<void> = Promise.resolve();

  constructor(parts: IntakeParts) {
    this.#parts = parts;
  }

  /**
   * Takes a folder below `code_dir` in.
   *
   * @param explicit a person asked for it, so that what failed is tried again.
   * Errors: BAD_CONFIG (code_dir is not set, the configuration), BAD_NAME, NOT_FOUND, BUSY, PORT_TAKEN, BAD_ARCHIVE,
   * NO_DOCKERFILE, TOO_LARGE, those of the store.
   */
  async takeFolder(folder: string, explicit: boolean): Promise<Taken> {
    return await this.#during(async () => {
      const tree = await readFolder(this.#folderPath(folder), folder);
      return await this.#take(tree, { label: folder, folder, explicit });
    });
  }

  /** Takes an uploaded archive in. Errors: those of {@link takeFolder}, and NOT_ALLOWED for a service of `code_dir`. */
  async takeUpload(origin: string, chunks: AsyncIterable<Uint8Array>): Promise<Taken> {
    const label = origin === '' ? 'the archive' : origin.slice(0, 200);
    return await this.#during(async () => {
      const upload = await this.#parts.contexts.stage(label, chunks);
      try {
        return await this.#take(upload.tree, { label, folder: '', explicit: true });
      } finally {
        await upload.dispose();
      }
    });
  }

  /** Applies new settings to every service; one whose file they make invalid keeps what it has. */
  async applySettings(onRefused: (service: string, error: unknown) => void): Promise<void> {
    const { registry, settings } = this.#parts;
    for (const { name } of registry.list()) {
      try {
        await registry.change(name, (record) => {
          const { text, dockerfile } = record.source;
          const config = parseServiceConfig(text, `${name}/${CONFIG_FILE}`, settings(), dockerfile);
          return sameConfig(config, record.config) ? record : { ...record, config };
        });
      } catch (error) {
        onRefused(name, error);
      }
    }
  }

  /** Removes the build contexts that no revision refers to; does nothing while a service is being taken in. */
  async collect(): Promise<void> {
    if (this.#underWay > 0) return;
    const keep = new Set(
      this.#parts.registry
        .list()
        .flatMap(({ current, pending, previous }): (RevisionRecord | undefined)[] => {
          return [current, pending, ...previous.slice(0, this.#parts.settings().keepRevisions)];
        })
        .flatMap((revision) => (revision === undefined ? [] : [revision.contextDigest])),
    );
    this.#collecting = this.#parts.contexts.keepOnly(keep);
    await this.#collecting;
  }

  /** Counts what is being taken in, and waits until contexts are not being removed. */
  async #during<T>(work: () => Promise<T>): Promise<T> {
    this.#underWay += 1;
    try {
      await this.#collecting.catch(() => undefined);
      return await work();
    } finally {
      this.#underWay -= 1;
    }
  }

  #folderPath(folder: string): string {
    const { codeDir } = this.#parts.settings();
    if (codeDir === '') {
      throw new InitlessError('BAD_CONFIG', `there is no code_dir in which to look for ${JSON.stringify(folder)}`, {
        nextStep: 'set code_dir in settings.yaml, or upload the folder: initless service apply PATH',
      });
    }
    if (folder === '' || folder !== basename(folder) || folder === '.' || folder === '..' || /\p{Cc}/u.test(folder)) {
      throw new InitlessError('BAD_NAME', `${JSON.stringify(folder.slice(0, 200))} is not the name of a folder`, {
        nextStep: `give the name of a folder in ${codeDir}, without slashes`,
      });
    }
    return join(codeDir, folder);
  }

  async #take(tree: Tree, from: { label: string; folder: string; explicit: boolean }): Promise<Taken> {
    const { registry, contexts, events, settings, ownPorts } = this.#parts;
    const file = `${from.label}/${CONFIG_FILE}`;
    const config = parseServiceConfig(tree.configText, file, settings(), tree.dockerfile);
    const name = config.serviceName;
    const lines = parseYamlText(tree.configText, file);
    return await this.#exclusively(name, from.explicit, async () => {
      const digests = await contexts.put(tree);
      const folder = await this.#sourceOf(name, from.folder, digests);
      let taken: Taken | undefined;
      await registry.update(name, (existing) => {
        checkFolder(existing, folder, file, lines.lineOf(['service_name']));
        const lineOf = (key: string) => lines.lineOf([key]);
        // A service that this folder was before gives way to it.
        const others = registry.all().filter((other) => folder === '' || other.folder !== folder);
        checkAgainstOthers(config, { others, ownPorts: ownPorts(), file, lineOf });
        const source = { text: tree.configText, dockerfile: tree.dockerfile };
        const { context: contextDigest, content: contentDigest } = digests;
        const incoming = { source, config, folder, contextDigest, contentDigest };
        taken = accept(existing, incoming, from.explicit, Date.now());
        return taken.changed || existing === undefined ? taken.record : existing;
      });
      if (taken!.changed) {
        const revision = taken!.record.pending?.id ?? taken!.record.current?.id ?? '';
        events.add({ kind: 'service.applied', service: name, revision, message: `${name} was taken in` });
      }
      return taken!;
    });
  }

  /**
   * One at a time for each service. A person who asks while `code_dir` is being read waits for that: nobody could know of
   * it. Errors: BUSY when somebody else asked, DEADLINE.
   */
  async #exclusively<T>(name: string, explicit: boolean, work: () => Promise<T>): Promise<T> {
    let other = this.#taking.get(name);
    if (explicit && other?.explicit === false) {
      const { over } = other;
      await withDeadline(TAKING_MS, `${name} being taken in from code_dir`, undefined, () => over);
      other = this.#taking.get(name);
    }
    if (other !== undefined) {
      throw new InitlessError('BUSY', `${name} is being taken in at this moment`, {
        subject: name,
        nextStep: 'try again in a moment',
      });
    }
    let end = () => {};
    const over = new Promise<void>((resolve) => {
      end = resolve;
    });
    this.#taking.set(name, { explicit, over });
    try {
      return await work();
    } finally {
      this.#taking.delete(name);
      end();
    }
  }

  /**
   * The folder that a service belongs to. It has one source: an upload may repeat what its folder below `code_dir` holds,
   * but not differ from it. Errors: NOT_ALLOWED.
   */
  async #sourceOf(name: string, folder: string, digests: TreeDigests): Promise<string> {
    const existing = this.#parts.registry.find(name);
    if (folder !== '' || existing === undefined || existing.folder === '' || existing.folderGone) return folder;
    let there: TreeDigests | undefined;
    for await (const _ of packTree(await readFolder(this.#folderPath(existing.folder), existing.folder), (made) => {
      there = made;
    })) {
      // Only its digests are of interest.
    }
    if (there?.context === digests.context) return existing.folder;
    throw new InitlessError('NOT_ALLOWED', `${name} comes from the folder ${existing.folder} of code_dir`, {
      subject: name,
      nextStep: `change the files in ${this.#folderPath(existing.folder)}: what is saved there is taken in by itself`,
    });
  }
}

/** Two folders cannot be one service. Errors: BAD_CONFIG. */
function checkFolder(existing: ServiceRecord | undefined, folder: string, file: string, line: number): void {
  if (folder === '' || existing === undefined || existing.removed || existing.folderGone) return;
  if (existing.folder === '' || existing.folder === folder) return;
  const expected = `a name that the folder ${existing.folder} does not have`;
  throw badConfig(file, [{ file, line, key: 'service_name', found: existing.name, expected }]);
}
