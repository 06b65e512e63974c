import { isAlias, isMap, isScalar, isSeq, LineCounter, type Node, type Pair, parseDocument } from 'yaml';
import { describeValue, type Fault } from './faults.js';

/** A path of keys and list positions into a YAML text. */
export type YamlPath = readonly (string | number)[];

/** Configuration files are small; what is larger is something else, given by mistake. */
const MAX_BYTES = 256 * 1024;

/** A parsed YAML text that still knows its lines. */
export interface YamlText {
  /** Its content; a map, or empty when `faults` says why not. */
  values: Record<string, unknown>;
  /** What is wrong with it as YAML: syntax, duplicate keys, not a map. */
  faults: Fault[];
  /** Line of the deepest part of `path` that is there, from 1. */
  lineOf(path: YamlPath): number;
  /** What is written at `path`, as it is written: "3.10" and not 3.1. Undefined where there is no plain value. */
  sourceOf(path: YamlPath): string | undefined;
}

/** Parses YAML 1.2 with one map at its top. Never throws: what is wrong is in `faults`. */
export function parseYamlText(text: string, file: string): YamlText {
  const nothing: YamlText = { values: {}, faults: [], lineOf: () => 1, sourceOf: () => undefined };
  const refuse = (line: number, found: string, expected: string): YamlText => ({
    ...nothing,
    faults: [{ file, line, key: '', found, expected }],
  });
  if (Buffer.byteLength(text) > MAX_BYTES) {
    return refuse(1, `${Buffer.byteLength(text)} bytes`, `a configuration file of at most ${MAX_BYTES} bytes`);
  }
  const counter = new LineCounter();
  const document = parseDocument(text, { lineCounter: counter, uniqueKeys: false, prettyErrors: false });
  const lineAt = (offset: number) => counter.linePos(offset).line;
  if (document.errors.length > 0) {
    return {
      ...nothing,
      faults: document.errors.map((error) => ({
        file,
        line: lineAt(error.pos[0]),
        key: '',
        found: error.message,
        expected: 'valid YAML',
      })),
    };
  }
  const root = document.contents as Node | null;
  if (root === null || (isScalar(root) && root.value === null)) {
    return refuse(1, 'an empty file', 'keys with values, such as "service_port: 8080"');
  }
  if (!isMap(root)) {
    return refuse(1, describeValue(safeValue(document)), 'keys with values, such as "service_port: 8080"');
  }
  const faults = duplicateKeys(root, file, lineAt);
  let values: Record<string, unknown> = {};
  try {
    values = document.toJS({ maxAliasCount: 50 }) as Record<string, unknown>;
  } catch (error) {
    faults.push({ file, line: 1, key: '', found: String(error), expected: 'plain values without many aliases' });
  }
  return {
    values,
    faults,
    lineOf: (path) => lineAt(offsetOf(root, path)),
    sourceOf: (path) => {
      const node = nodeAt(root, path);
      return isScalar(node) ? (node.source ?? String(node.value)) : undefined;
    },
  };
}

function safeValue(document: { toJS: (options: { maxAliasCount: number }) => unknown }): unknown {
  try {
    return document.toJS({ maxAliasCount: 50 });
  } catch {
    return 'YAML with many aliases';
  }
}

/** Where the deepest part of `path` that is there begins: the key of a pair, the item of a list. */
function offsetOf(root: Node, path: YamlPath): number {
  let node: unknown = root;
  let offset = root.range?.[0] ?? 0;
  for (const step of path) {
    if (isMap(node)) {
      const pair: Pair | undefined = node.items.find((item) => keyOf(item) === String(step));
      if (pair === undefined) return offset;
      offset = (pair.key as Node).range?.[0] ?? offset;
      node = pair.value;
    } else if (isSeq(node) && typeof step === 'number') {
      const item: unknown = node.items[step];
      if (item === undefined) return offset;
      offset = (item as Node).range?.[0] ?? offset;
      node = item;
    } else return offset;
  }
  return offset;
}

function nodeAt(root: Node, path: YamlPath): unknown {
  let node: unknown = root;
  for (const step of path) {
    if (isMap(node)) node = node.items.find((item) => keyOf(item) === String(step))?.value;
    else if (isSeq(node) && typeof step === 'number') node = node.items[step];
    else return undefined;
  }
  return node;
}

function keyOf(pair: Pair): string {
  return isScalar(pair.key) ? String(pair.key.value) : String(pair.key);
}

/** Faults for each key that a map has twice, in this map and those within. */
function duplicateKeys(node: unknown, file: string, lineAt: (offset: number) => number, prefix = ''): Fault[] {
  if (isAlias(node)) return [];
  if (isSeq(node)) {
    return node.items.flatMap((item, index) => duplicateKeys(item, file, lineAt, `${prefix}[${index}]`));
  }
  if (!isMap(node)) return [];
  const first = new Map<string, number>();
  const faults: Fault[] = [];
  for (const pair of node.items) {
    const key = keyOf(pair);
    const line = lineAt((pair.key as Node | null)?.range?.[0] ?? 0);
    const path = prefix === '' ? key : `${prefix}.${key}`;
    const seen = first.get(key);
    if (seen === undefined) first.set(key, line);
    else {
      faults.push({
        file,
        line,
        key: path,
        found: `the key a second time (it is on line ${seen} too)`,
        expected: 'it once',
      });
    }
    faults.push(...duplicateKeys(pair.value, file, lineAt, path));
  }
  return faults;
}
