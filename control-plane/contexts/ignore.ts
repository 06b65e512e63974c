import dockerignore from '@balena/dockerignore';
import { badConfig } from '../config/faults.js';

/** Longest pattern taken: a pattern becomes a regular expression, and a long one of "**" would take very long to match. */
const MAX_PATTERN = 512;

/** The rules of a `.dockerignore`. */
export interface Filter {
  /** Whether a path stays. */
  keeps: (path: string) => boolean;
  /** Whether a rule begins with "!", so that something below an ignored folder may stay. */
  bringsBack: boolean;
}

/**
 * A filter that answers whether a path stays, by the rules of a `.dockerignore`.
 *
 * @param always paths that stay whatever the rules say.
 * Errors: BAD_CONFIG with the lines whose pattern cannot be read.
 */
export function createFilter(origin: string, text: string, always: readonly string[]): Filter {
  const file = `${origin}/.dockerignore`;
  const rules = dockerignore.default({ ignorecase: false });
  const faults = text.split(/\r?\n/).flatMap((pattern, index) => {
    const expected = 'a pattern as Docker has them';
    const fault = { file, line: index + 1, key: '', found: JSON.stringify(pattern.slice(0, 80)), expected };
    if (pattern.length > MAX_PATTERN || (pattern.match(/\*\*/g)?.length ?? 0) > 4) return [fault];
    try {
      // A pattern is only compiled when it is first matched.
      dockerignore.default({ ignorecase: false }).add(pattern).ignores('a/b/c');
      rules.add(pattern);
      return [];
    } catch {
      return [fault];
    }
  });
  if (faults.length > 0) throw badConfig(file, faults);
  return {
    keeps: (path) => always.includes(path) || !rules.ignores(path),
    bringsBack: /^\s*!/m.test(text),
  };
}
