import { InitlessError } from '../../proto/rpc/errors.js';

/** One fault in a configuration file. */
export interface Fault {
  /** The file, as its user knows it. */
  file: string;
  /** Line, from 1. 0: the source has no lines (an environment variable). */
  line: number;
  /** Key with its path, such as "health_check.path". Empty: the file as a whole. */
  key: string;
  /** What is there. */
  found: string;
  /** What should be there. */
  expected: string;
}

/** A fault as one line: `FILE:LINE: KEY: found X, expected Y`. */
export function formatFault(fault: Fault): string {
  const place = fault.line > 0 ? `${fault.file}:${fault.line}` : fault.file;
  const key = fault.key === '' ? '' : ` ${fault.key}:`;
  return `${place}:${key} found ${fault.found}, expected ${fault.expected}`;
}

/** The error that tells all faults of a file, in the order of their lines. */
export function badConfig(file: string, faults: readonly Fault[]): InitlessError {
  const ordered = [...faults].sort((a, b) => a.line - b.line);
  const lines = ordered.map(formatFault);
  const message = lines.length === 1 ? lines[0]! : `${file} has ${lines.length} faults:\n${lines.join('\n')}`;
  return new InitlessError('BAD_CONFIG', message, {
    subject: file,
    nextStep: 'correct the file, then try again; what was in force before stays in force',
    violations: ordered.map((fault, index) => ({ field: fault.key, description: lines[index]! })),
  });
}

/** A value as it is shown after "found". */
export function describeValue(value: unknown): string {
  if (value === null || value === undefined) return 'nothing';
  if (Array.isArray(value)) return value.length === 0 ? 'an empty list' : `a list (${shorten(JSON.stringify(value))})`;
  if (typeof value === 'object') return `a map (${shorten(JSON.stringify(value))})`;
  if (typeof value === 'string') return shorten(JSON.stringify(value));
  return String(value);
}

function shorten(text: string): string {
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

/** The known word nearest to `word`, if one is near enough to be what was meant. */
export function nearest(word: string, known: readonly string[]): string | undefined {
  const limit = Math.max(1, Math.floor(word.length * 0.4));
  let best: { word: string; distance: number } | undefined;
  for (const candidate of known) {
    const distance = editDistance(squeeze(word), squeeze(candidate));
    if (distance <= limit && (best === undefined || distance < best.distance)) best = { word: candidate, distance };
  }
  return best?.word ?? known.find((candidate) => word.length >= 4 && squeeze(candidate).startsWith(squeeze(word)));
}

function squeeze(word: string): string {
  return word.toLowerCase().replace(/[-_ ]/g, '');
}

function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      row[j] = Math.min(previous[j]! + 1, row[j - 1]! + 1, previous[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1));
    }
    previous = row;
  }
  return previous[b.length]!;
}
