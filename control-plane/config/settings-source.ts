import { readFile } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { InitlessError } from '../../proto/rpc/errors.js';
import { SETTINGS_SEARCH } from './defaults.js';
import { type ParsedSettings, parseSettings, SETTINGS_KEYS } from './settings.js';

/** Where settings come from, the strongest first: flags, `INITLESS_*`, the file, the defaults. */
export interface SettingsSource {
  /** `--settings`. */
  settingsPath?: string;
  /** `--code-dir`. */
  codeDir?: string;
  /** The environment. */
  env: NodeJS.ProcessEnv;
  /** Folder that relative paths of flags and environment start from. */
  cwd: string;
}

/** Settings in force, and the file they come from. */
export interface LoadedSettings extends ParsedSettings {
  /** Absolute path. Empty: no file. */
  file: string;
}

/**
 * Reads the settings. Errors: NOT_FOUND (a file that was named is not there), BAD_CONFIG (the file, or a variable).
 */
export async function loadSettings(source: SettingsSource): Promise<LoadedSettings> {
  const found = await findFile(source);
  const parsed = parseSettings(found?.text, found?.path ?? 'defaults');
  const settings = { ...parsed.settings };
  if (settings.codeDir !== '') settings.codeDir = resolve(dirname(found!.path), settings.codeDir);
  applyEnvironment(settings, source);
  if (source.codeDir !== undefined) settings.codeDir = source.codeDir === '' ? '' : resolve(source.cwd, source.codeDir);
  return { settings, warnings: parsed.warnings, file: found?.path ?? '' };
}

async function findFile(source: SettingsSource): Promise<{ path: string; text: string } | undefined> {
  const named = source.settingsPath || source.env.INITLESS_SETTINGS || undefined;
  for (const candidate of named === undefined ? SETTINGS_SEARCH : [named]) {
    const path = resolve(source.cwd, candidate);
    try {
      return { path, text: await readFile(path, 'utf8') };
    } catch (cause) {
      const code = (cause as NodeJS.ErrnoException).code;
      if (named === undefined && (code === 'ENOENT' || code === 'ENOTDIR')) continue;
      throw new InitlessError(
        code === 'ENOENT' ? 'NOT_FOUND' : 'BAD_CONFIG',
        `cannot read the settings file ${path}: ${(cause as Error).message}`,
        { subject: path, nextStep: 'name a file that is there with --settings, or leave it out', cause },
      );
    }
  }
  return undefined;
}

/** Each key `some_key` can be given as `INITLESS_SOME_KEY`; it is checked as in the file. */
function applyEnvironment(settings: ParsedSettings['settings'], source: SettingsSource): void {
  for (const key of SETTINGS_KEYS) {
    const name = `INITLESS_${key.toUpperCase()}`;
    const text = source.env[name];
    if (text === undefined || text === '') continue;
    // A folder is taken as it is; everything else has the form that it has in the file.
    const row = key === 'code_dir' || key === 'checkpoint_dir' ? `${key}: ${JSON.stringify(text)}` : `${key}: ${text}`;
    const given = parseSettings(row, `environment variable ${name}`).settings;
    if (key === 'code_dir') settings.codeDir = resolve(source.cwd, given.codeDir);
    else if (key === 'checkpoint_dir') settings.checkpointDir = given.checkpointDir;
    else if (key === 'reserved_ports') settings.reservedPorts = given.reservedPorts;
    else if (key === 'redis_host') settings.redisHost = given.redisHost;
    else if (key === 'redis_port') settings.redisPort = given.redisPort;
    else if (key === 'recycle_workers') settings.recycleWorkers = given.recycleWorkers;
    else if (key === 'host_timeout') settings.hostTimeout = given.hostTimeout;
    else if (key === 'keep_revisions') settings.keepRevisions = given.keepRevisions;
    else if (key === 'copy_rate') settings.copyRate = given.copyRate;
    else if (key in settings.pool) {
      settings.pool = { ...settings.pool, [key]: given.pool[key as keyof typeof given.pool] };
    }
  }
}
