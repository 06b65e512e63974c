import { stat } from 'node:fs/promises';
import { type LoadedSettings, loadSettings, type SettingsSource } from './settings-source.js';

/** How often the file is looked at. Editors replace files; a look at its times finds that on every file system. */
const LOOK_MS = 1_000;

/** What a new reading came to. */
export type Reading = { kind: 'loaded'; settings: LoadedSettings } | { kind: 'refused'; error: unknown };

/** The settings in force, read again when their file changes or somebody asks. */
export class SettingsWatch {
  #current: LoadedSettings;
  readonly #source: SettingsSource;
  #onReading: (reading: Reading) => Promise<void> = async () => {};
  #seen: string;
  #timer: NodeJS.Timeout | undefined;
  #work: Promise<void> = Promise.resolve();

  private constructor(source: SettingsSource, current: LoadedSettings, seen: string) {
    this.#source = source;
    this.#current = current;
    this.#seen = seen;
  }

  /** Reads the settings for the first time. Errors: those of `loadSettings`. */
  static async open(source: SettingsSource): Promise<SettingsWatch> {
    const current = await loadSettings(source);
    return new SettingsWatch(source, current, await mark(current.file));
  }

  /** The settings in force. */
  get current(): LoadedSettings {
    return this.#current;
  }

  /**
   * Looks for changes from now on.
   *
   * @param onReading told of each new reading, one after the other; a refused one leaves the settings as they are.
   */
  start(onReading: (reading: Reading) => Promise<void>): void {
    this.#onReading = onReading;
    this.#timer = setInterval(() => void this.#look(), LOOK_MS);
  }

  /** Reads the settings again. */
  reload(): Promise<void> {
    this.#work = this.#work.then(async () => {
      let reading: Reading;
      try {
        const settings = await loadSettings(this.#source);
        this.#current = settings;
        this.#seen = await mark(settings.file);
        reading = { kind: 'loaded', settings };
      } catch (error) {
        reading = { kind: 'refused', error };
      }
      await this.#onReading(reading);
    });
    return this.#work;
  }

  /** Looks no more. */
  async stop(): Promise<void> {
    clearInterval(this.#timer);
    await this.#work;
  }

  async #look(): Promise<void> {
    const now = await mark(this.#current.file);
    if (now === this.#seen) return;
    this.#seen = now;
    await this.reload();
  }
}

/** What changes when a file does. */
async function mark(path: string): Promise<string> {
  if (path === '') return '';
  const found = await stat(path).catch(() => undefined);
  return found === undefined ? 'gone' : `${found.ino} ${found.size} ${found.mtimeMs}`;
}
