import { posix } from 'node:path';
import { z } from 'zod';
import { SETTINGS_DEFAULTS } from './defaults.js';
import { badConfig, type Fault } from './faults.js';
import { line, optional, port, positive, validate, whole } from './keys.js';
import { parseYamlText, type YamlText } from './yaml-text.js';

/** Most minutes that a timer of ours is set to: 30 days, well inside the 32 bits of milliseconds on the wire. */
const MAX_MINUTES = 30 * 24 * 60;

/** Keys of `settings.yaml` that `config.yaml` may have too, for its service alone. */
export const POOL_KEYS = {
  pre_start_pool_size: optional(
    'a whole number of instances from 0 to 10000, or "auto"',
    z.union([whole(0, 10_000), z.literal('auto')]),
  ),
  max_pool_size: optional('a whole number of instances from 1 to 10000', whole(1, 10_000)),
  pre_start_timeout: optional(
    'minutes above 0 and below 1440 (24*60); fractions are allowed',
    z
      .number()
      .positive()
      .lt(24 * 60),
  ),
  idle_timeout: optional(`minutes above 0, ${MAX_MINUTES} at most; fractions are allowed`, positive(MAX_MINUTES)),
  health_check_timeout: optional('seconds above 0, 3600 at most; fractions are allowed', positive(3_600)),
  start_timeout: optional('seconds above 0, 3600 at most; fractions are allowed', positive(3_600)),
  hang_timeout: optional('seconds from 0 (never) to 3600; fractions are allowed', z.number().min(0).max(3_600)),
  max_concurrency: optional('a whole number of requests from 1 to 100000', whole(1, 100_000)),
  queue_timeout: optional('seconds above 0, 3600 at most; fractions are allowed', positive(3_600)),
  queue_limit: optional('a whole number of requests from 1 to 1000000', whole(1, 1_000_000)),
  spread: optional('a whole number of hosts from 1 to 1000', whole(1, 1_000)),
};

/** Ports that the agent itself listens on in a host; leasing them to instances could not work. */
const AGENT_PORTS = [7072, 7073];

const PORT_RANGE = 'two ports, the first below the second, as [20000, 20999] or "20000-20999", without 7072 and 7073';

const portRange = z
  .union([
    z.tuple([z.number(), z.number()]),
    z
      .string()
      .regex(/^\s*\d+\s*-\s*\d+\s*$/)
      .transform((text) => text.split('-').map(Number)),
  ])
  .pipe(z.tuple([port, port]))
  .refine(([first, last]) => first < last && AGENT_PORTS.every((own) => own < first || own > last));

const SCHEMA = z.strictObject({
  redis_port: optional('a port from 1 to 65535', port),
  redis_host: optional('a host name or address', line),
  runc_watchdog_host: optional('a host name or address', line),
  runc_watchdog_port_base: optional('a whole number from 0 to 65535', whole(0, 65_535)),
  reserved_ports: optional(PORT_RANGE, portRange),
  code_dir: optional('a folder', line),
  checkpoint_dir: optional(
    'an absolute folder on a host, without ".."',
    line.refine((path) => path.startsWith('/') && path !== '/' && !path.split('/').includes('..')),
  ),
  recycle_workers: optional('a whole number from 1 to 64', whole(1, 64)),
  host_timeout: optional('seconds from 8 to 3600; fractions are allowed', z.number().min(8).max(3_600)),
  keep_revisions: optional('a whole number of revisions from 0 to 100', whole(0, 100)),
  copy_rate: optional('megabytes per second from 1 to 100000', z.number().min(1).max(100_000)),
  ...POOL_KEYS,
});

/** Keys of `settings.yaml`. */
export const SETTINGS_KEYS = Object.keys(SCHEMA.shape);

/** Values of {@link POOL_KEYS}. */
export type PoolSettings = {
  [Key in keyof typeof POOL_KEYS]: Key extends 'pre_start_pool_size' ? number | 'auto' : number;
};

/** A `settings.yaml`, validated, with every default filled in; in the units of the file. */
export interface Settings {
  /** First and last port of a host that instances lease. */
  reservedPorts: readonly [number, number];
  /** Redis that holds the state. Empty: it is in the embedded store. */
  redisHost: string;
  redisPort: number;
  /** Folder that services are read from. Empty: none. */
  codeDir: string;
  /** Folder on a host that holds checkpoints. */
  checkpointDir: string;
  /** Removals of instances at a time. */
  recycleWorkers: number;
  /** Seconds that a host may be away before what it had is replaced on others. */
  hostTimeout: number;
  /** Revisions that served before and are kept for a rollback. */
  keepRevisions: number;
  /** Megabytes (10^6) per second at which a host sends revisions to others. */
  copyRate: number;
  /** What a service has whose `config.yaml` does not say otherwise. */
  pool: Readonly<PoolSettings>;
}

/** Settings, and what is odd in them. */
export interface ParsedSettings {
  settings: Settings;
  warnings: string[];
}

/** Parses the text of a `settings.yaml`. Errors: BAD_CONFIG with every fault. Without a text: the defaults. */
export function parseSettings(text: string | undefined, file: string): ParsedSettings {
  const yaml: YamlText =
    text === undefined ? parseYamlText('{}', file) : parseYamlText(onlyComments(text) ? '{}' : text, file);
  const { output, faults } =
    yaml.faults.length > 0 && Object.keys(yaml.values).length === 0
      ? { output: undefined, faults: [] as Fault[] }
      : validate(SCHEMA, yaml, file, () => SETTINGS_KEYS);
  const all = [...yaml.faults, ...faults];
  if (output === undefined || all.length > 0) throw badConfig(file, all);

  const warnings: string[] = [];
  const warn = (key: keyof typeof output, text: string) => {
    if (output[key] !== undefined) warnings.push(`${file}:${yaml.lineOf([key])}: ${key}: ${text}`);
  };
  if (output.redis_host === undefined)
    warn('redis_port', 'has no effect without redis_host: the embedded store is used');
  warn('runc_watchdog_host', 'has no effect: no patched runc is needed');
  warn('runc_watchdog_port_base', 'has no effect: no patched runc is needed');
  const checkpointDir = posix.normalize(output.checkpoint_dir ?? SETTINGS_DEFAULTS.checkpoint_dir);
  if (!checkpointDir.startsWith('/var/lib/docker/')) {
    warn('checkpoint_dir', 'is not below /var/lib/docker, so checkpoints are lost with the host that made them');
  }

  const pool = Object.fromEntries(
    (Object.keys(POOL_KEYS) as (keyof typeof POOL_KEYS)[]).map((key) => [key, output[key] ?? SETTINGS_DEFAULTS[key]]),
  ) as PoolSettings;
  return {
    settings: {
      reservedPorts: output.reserved_ports ?? SETTINGS_DEFAULTS.reserved_ports,
      redisHost: output.redis_host ?? '',
      redisPort: output.redis_port ?? SETTINGS_DEFAULTS.redis_port,
      codeDir: output.code_dir ?? '',
      checkpointDir: checkpointDir.replace(/\/$/, ''),
      recycleWorkers: output.recycle_workers ?? SETTINGS_DEFAULTS.recycle_workers,
      hostTimeout: output.host_timeout ?? SETTINGS_DEFAULTS.host_timeout,
      keepRevisions: output.keep_revisions ?? SETTINGS_DEFAULTS.keep_revisions,
      copyRate: output.copy_rate ?? SETTINGS_DEFAULTS.copy_rate,
      pool,
    },
    warnings,
  };
}

/** A settings file in which every key is commented out, or nothing is written, is one that sets nothing. */
function onlyComments(text: string): boolean {
  return text.split('\n').every((row) => /^\s*(#.*)?$/.test(row));
}
