import type { Writable } from 'node:stream';
import Table from 'cli-table3';
import { Option } from 'commander';
import { stringify } from 'yaml';
import { plainText } from './format.js';

/** How a command that lists or inspects prints. */
export type OutputFormat = 'table' | 'json' | 'yaml';

/** The option `-o table|json|yaml`, the same wherever something is listed or inspected. */
export function outputOption(formats: readonly OutputFormat[] = ['table', 'json', 'yaml']): Option {
  return new Option('-o, --output <format>', 'how to print').choices(formats).default('table');
}

/**
 * A table without borders: one line per row, columns apart by two blanks or more, so that `grep`, `awk` and `cut` can
 * read it. An empty cell is "-"; line ends and other control characters in a cell become blanks.
 */
export function renderTable(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const none = { top: '', bottom: '', left: '', right: '', mid: '', middle: '  ' };
  const table = new Table({
    head: [...head],
    chars: {
      ...none,
      'top-mid': '',
      'top-left': '',
      'top-right': '',
      'bottom-mid': '',
      'bottom-left': '',
      'bottom-right': '',
      'left-mid': '',
      'mid-mid': '',
      'right-mid': '',
    },
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 0 },
  });
  table.push(...rows.map((row) => row.map(cell)));
  return table
    .toString()
    .split('\n')
    .map((line) => line.trimEnd())
    .join('\n');
}

function cell(text: string): string {
  const flat = plainText(text).trim();
  return flat === '' ? '-' : flat;
}

/**
 * Prints `value` as JSON or YAML, or the table. JSON and YAML are the contract's own JSON mapping, as `grpcurl` prints
 * it: names in camelCase, fields that have their default value left out, times as RFC 3339, enumerations by name.
 *
 * @param table made only when it is asked for.
 */
export function printValue(out: Writable, format: OutputFormat, value: unknown, table: () => string): void {
  switch (format) {
    case 'json':
      out.write(`${JSON.stringify(value, null, 2)}\n`);
      return;
    case 'yaml':
      out.write(stringify(value));
      return;
    case 'table':
      out.write(`${table()}\n`);
  }
}

/** A table of names and values, for what is inspected. */
export function renderFields(fields: readonly (readonly [name: string, value: string])[]): string {
  const width = Math.max(...fields.map(([name]) => name.length));
  return fields.map(([name, value]) => `${`${name}:`.padEnd(width + 2)} ${cell(value)}`).join('\n');
}
