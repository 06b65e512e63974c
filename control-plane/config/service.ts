import { z } from 'zod';
import { MemoryMode, type ServiceConfig } from '../../proto/gen/initless/v1/types.js';
import { canonicalJson } from '../core/canonical.js';
import { DOCKERFILE_NAMES, SERVICE_DEFAULTS } from './defaults.js';
import { badConfig, type Fault } from './faults.js';
import {
  line,
  memoryLimit,
  optional,
  port,
  requestPath,
  SERVICE_NAME,
  scalar,
  validate,
  value,
  whole,
} from './keys.js';
import { POOL_KEYS, type Settings } from './settings.js';
import { volumes } from './volumes.js';
import { parseYamlText, type YamlText } from './yaml-text.js';

const PATH = 'a path that starts with "/", without spaces';
const NAME = 'lower-case letters, digits, "-", "_" and ".", 1 to 63 of them, without ".."';
const TAG = 'a tag: letters, digits, "_", "." and "-", 128 at most, not starting with "." or "-"';
const tag = z.string().regex(/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/);
const imageName = z
  .string()
  .max(200)
  .regex(/^[a-z0-9]+(?:[._:/-]+[a-z0-9]+)*$/)
  .refine((name) => !/:(?!\d+\/)/.test(name));

const HEALTH_CHECK = z.strictObject(
  {
    path: optional(PATH, requestPath),
    wanted: optional(
      'the text, or the JSON, of a healthy answer; 64 KiB at most',
      z.unknown().refine((wanted) => wanted !== null && Buffer.byteLength(JSON.stringify(wanted)) <= 65_536),
    ),
    timeout: optional('milliseconds from 10 to 600000 (the bound on one attempt)', z.number().min(10).max(600_000)),
  },
  { error: (issue) => (issue.code === 'invalid_type' ? 'a map with path, wanted and timeout' : undefined) },
);

const SCHEMA = z.strictObject({
  service_name: value(NAME, z.string().regex(SERVICE_NAME)),
  is_enabled: optional('true or false', z.boolean()),
  image_name: optional('an image name in lower case, without a tag', imageName),
  tag_name: optional(TAG, tag),
  checkpoint_tag_name: optional(TAG, tag),
  checkpoint_name: optional(
    'the name of one folder: letters, digits, "-", "_" and ".", 1 to 128 of them, without ".."',
    z.string().regex(/^(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/),
  ),
  start_cmd: optional(
    'a list with the program and its arguments, such as ["python", "app.py"]',
    z.array(scalar.refine((word) => !String(word).includes('\0'))).min(1),
  ),
  service_port: value('a port from 1 to 65535', port),
  host_port: value('a port from 1 to 65535', port),
  health_check: HEALTH_CHECK.optional(),
  msg_checkpoint: optional('a line of text', line),
  warmup: optional(
    'a list of paths, or of maps with a path and a count from 1 to 100000',
    z
      .array(z.union([requestPath, z.strictObject({ path: requestPath, count: whole(1, 100_000).optional() })]))
      .max(1_000),
  ),
  before_checkpoint: optional(PATH, requestPath),
  after_restore: optional(PATH, requestPath),
  env: optional(
    'a map of names (letters, digits and "_") to values',
    z.record(
      z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*$/),
      scalar.refine((text) => !String(text).includes('\0')),
    ),
  ),
  protocol: optional('"http" ("tcp" is not supported yet)', z.literal('http')),
  volumes,
  memory_limit: optional('bytes, or a number with the unit k, m or g, such as "512m"; 6m at least', memoryLimit),
  cpus: optional('a number of CPUs, 0.01 at least; fractions are allowed', z.number().min(0.01).max(4_096)),
  memory: optional('"auto", "mapped", "copied" or "lazy"', z.enum(['auto', 'mapped', 'copied', 'lazy'])),
  reuse: optional('true or false', z.boolean()),
  ...POOL_KEYS,
});

/** Keys of `config.yaml`. */
export const SERVICE_KEYS = Object.keys(SCHEMA.shape);

/** What `memory` means on the wire. */
const MEMORY_MODES = {
  auto: MemoryMode.MEMORY_MODE_UNSPECIFIED,
  mapped: MemoryMode.MEMORY_MODE_MAPPED,
  copied: MemoryMode.MEMORY_MODE_COPIED,
  lazy: MemoryMode.MEMORY_MODE_LAZY,
} as const;

/**
 * Parses the text of a `config.yaml`.
 *
 * @param file its name in messages.
 * @param settings what holds where it says nothing.
 * @param dockerfile name of the build file in its folder.
 * Errors: BAD_CONFIG with every fault.
 */
export function parseServiceConfig(
  text: string,
  file: string,
  settings: Settings,
  dockerfile: string = DOCKERFILE_NAMES[0],
): ServiceConfig {
  const yaml = parseYamlText(text, file);
  if (yaml.faults.length > 0 && Object.keys(yaml.values).length === 0) throw badConfig(file, yaml.faults);
  const { output, faults } = validate(SCHEMA, yaml, file, knownKeys);
  const all: Fault[] = [...yaml.faults, ...faults];
  if (output === undefined || all.length > 0) throw badConfig(file, all);

  const pool = (key: Exclude<keyof typeof POOL_KEYS, 'pre_start_pool_size'>) => output[key] ?? settings.pool[key];
  const parked = output.pre_start_pool_size ?? settings.pool.pre_start_pool_size;
  const check = output.health_check;
  const config: ServiceConfig = {
    serviceName: output.service_name,
    isEnabled: output.is_enabled ?? SERVICE_DEFAULTS.is_enabled,
    imageName: output.image_name ?? output.service_name,
    tagName: output.tag_name ?? SERVICE_DEFAULTS.tag_name,
    checkpointTagName: output.checkpoint_tag_name ?? SERVICE_DEFAULTS.checkpoint_tag_name,
    checkpointName: output.checkpoint_name ?? output.service_name,
    startCmd: (output.start_cmd ?? []).map((word, index) => asWritten(word, yaml, ['start_cmd', index])),
    servicePort: output.service_port,
    hostPort: output.host_port,
    healthCheck: {
      path: check?.path ?? SERVICE_DEFAULTS.health_check.path,
      wanted: canonicalWanted(check?.wanted, yaml),
      timeoutMs: Math.round(check?.timeout ?? SERVICE_DEFAULTS.health_check.timeout),
    },
    msgCheckpoint: output.msg_checkpoint ?? '',
    warmup: (output.warmup ?? []).map((step) =>
      typeof step === 'string'
        ? { path: step, count: SERVICE_DEFAULTS.warmup_count }
        : { path: step.path, count: step.count ?? SERVICE_DEFAULTS.warmup_count },
    ),
    beforeCheckpoint: output.before_checkpoint ?? '',
    afterRestore: output.after_restore ?? '',
    env: Object.fromEntries(
      Object.entries(output.env ?? {}).map(([name, text]) => [name, asWritten(text, yaml, ['env', name])]),
    ),
    startTimeoutMs: seconds(pool('start_timeout')),
    healthCheckTimeoutMs: seconds(pool('health_check_timeout')),
    hangTimeoutMs: Math.round(pool('hang_timeout') * 1_000),
    idleTimeoutMs: minutes(pool('idle_timeout')),
    maxConcurrency: pool('max_concurrency'),
    maxPoolSize: pool('max_pool_size'),
    preStartPoolSize: parked === 'auto' ? 0 : parked,
    preStartPoolAuto: parked === 'auto',
    preStartTimeoutMs: minutes(pool('pre_start_timeout')),
    queueTimeoutMs: seconds(pool('queue_timeout')),
    queueLimit: pool('queue_limit'),
    dockerfile,
    reuse: output.reuse ?? SERVICE_DEFAULTS.reuse,
    volumes: output.volumes ?? [],
    memory: MEMORY_MODES[output.memory ?? SERVICE_DEFAULTS.memory],
    memoryLimit: output.memory_limit ?? 0,
    cpus: output.cpus ?? 0,
    spread: pool('spread'),
  };
  return config;
}

function knownKeys(path: readonly PropertyKey[]): readonly string[] {
  return path[0] === 'health_check' ? Object.keys(HEALTH_CHECK.shape) : SERVICE_KEYS;
}

const seconds = (count: number) => Math.max(1, Math.round(count * 1_000));
const minutes = (count: number) => Math.max(1, Math.round(count * 60_000));

/** A plain value as its author wrote it: YAML makes the number 3.1 of 3.10, and a command or a variable wants "3.10". */
function asWritten(parsed: string | number | boolean, yaml: YamlText, path: readonly (string | number)[]): string {
  return typeof parsed === 'string' ? parsed : (yaml.sourceOf(path) ?? String(parsed));
}

/**
 * The wanted answer as agents compare it: a JSON object or list, given as YAML or as a text, as canonical JSON, which is
 * compared as JSON; anything else as a trimmed text, which the answer must contain.
 */
function canonicalWanted(wanted: unknown, yaml: YamlText): string {
  if (wanted === undefined) return '';
  if (typeof wanted === 'object') return canonicalJson(wanted);
  const text = asWritten(wanted as string | number | boolean, yaml, ['health_check', 'wanted']).trim();
  if (!/^[{[]/.test(text)) return text;
  try {
    return canonicalJson(JSON.parse(text));
  } catch {
    return text;
  }
}
