import { z } from 'zod';
import { describeValue, type Fault, nearest } from './faults.js';
import type { YamlText } from './yaml-text.js';

/**
 * Kinds of values that keys have. Each says in words what it expects; whatever is wrong with a value, or within it, is
 * told in these words, so that every fault reads "found X, expected Y".
 */

/** A schema whose every fault is told as `expected`. */
export function value<T>(expected: string, schema: z.ZodType<T>) {
  return z.unknown().transform((found, context): T => {
    const result = schema.safeParse(found);
    if (result.success) return result.data;
    // One fault for each place, whatever number of rules it breaks.
    const places = new Map(result.error.issues.map((issue) => [JSON.stringify(issue.path), issue.path]));
    for (const path of places.values()) context.addIssue({ code: 'custom', path, message: expected });
    return z.NEVER;
  });
}

/** The same, for a key that may be left out. */
export function optional<T>(expected: string, schema: z.ZodType<T>) {
  return value(expected, schema).optional();
}

/** A whole number in a range. */
export function whole(min: number, max: number) {
  return z.number().int().min(min).max(max);
}

/** A number above 0 and up to `max`, fractions allowed. */
export function positive(max: number) {
  return z.number().positive().max(max);
}

const UNITS = { '': 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40 };

/** Bytes, as a number or in Docker's form: "512m", "1.5g", "65536k". At least 6 MiB, below which Docker starts nothing. */
export const memoryLimit = z
  .union([
    z.number().int(),
    z
      .string()
      .regex(/^\d+(?:\.\d+)? ?(?:b|[kmgt](?:i?b)?)?$/i)
      .transform((text) => {
        const unit = (/[kmgt]/i.exec(text)?.[0] ?? '').toLowerCase() as keyof typeof UNITS;
        return Math.floor(Number.parseFloat(text) * UNITS[unit]);
      }),
  ])
  .pipe(whole(6 * 2 ** 20, Number.MAX_SAFE_INTEGER));

/** A TCP port. */
export const port = whole(1, 65_535);

/** No control characters, NUL among them. */
const NO_CONTROL = /^[^\p{Cc}]*$/u;

/** A non-empty line of text. */
export const line = z.string().min(1).max(4096).regex(NO_CONTROL);

/** A path, with query if any, that a request can ask for. */
export const requestPath = z
  .string()
  .max(2048)
  .regex(/^\/[\x21-\x7e]*$/);

/** A name of a service; it is also that of folders, so "." is none. */
export const SERVICE_NAME = /^(?!\.$|.*\.\.)[a-z0-9._-]{1,63}$/;

/** A value that stands for a text: YAML reads 8080 as a number and true as a boolean. */
export const scalar = z.union([z.string(), z.number(), z.boolean()]);

/** What a map schema says of a YAML text: its output, or faults. `known` are the keys at the top, for suggestions. */
export function validate<Schema extends z.ZodObject>(
  schema: Schema,
  yaml: YamlText,
  file: string,
  known: (path: readonly PropertyKey[]) => readonly string[],
): { output: z.output<Schema> | undefined; faults: Fault[] } {
  const result = schema.safeParse(yaml.values);
  if (result.success) return { output: result.data, faults: [] };
  const faults = result.error.issues.flatMap((issue): Fault[] => {
    const path = issue.path.map((step) => (typeof step === 'symbol' ? String(step) : step));
    if (issue.code === 'unrecognized_keys') {
      return issue.keys.map((key) => {
        const meant = nearest(key, known(path));
        return {
          file,
          line: yaml.lineOf([...path, key]),
          key: formatPath([...path, key]),
          found: 'a key that is not known',
          expected: meant === undefined ? `one of ${known(path).join(', ')}` : `"${meant}", perhaps`,
        };
      });
    }
    const found = valueAt(yaml.values, path);
    const missing = found === undefined;
    return [
      {
        file,
        line: yaml.lineOf(path),
        key: formatPath(path),
        found: missing ? 'nothing' : describeValue(found),
        expected: issue.message,
      },
    ];
  });
  return { output: undefined, faults };
}

function formatPath(path: readonly (string | number)[]): string {
  return path.reduce<string>(
    (text, step) => (typeof step === 'number' ? `${text}[${step}]` : text === '' ? step : `${text}.${step}`),
    '',
  );
}

function valueAt(values: unknown, path: readonly (string | number)[]): unknown {
  let at = values;
  for (const step of path) {
    if (typeof at !== 'object' || at === null) return undefined;
    at = (at as Record<string | number, unknown>)[step];
  }
  return at;
}
