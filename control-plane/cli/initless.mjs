#!/usr/bin/env node
// The `initless` command before anything is built: plain JavaScript, so that it can say what is missing.
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const MINIMUM_NODE = 20;
const root = fileURLToPath(new URL('../..', import.meta.url));
const program = join(root, 'dist/control-plane/cli/main.js');

function refuse(message, nextStep) {
  process.stderr.write(`initless: ${message}\n  next: ${nextStep}\n`);
  process.exit(1);
}

/** Newest change below a folder, in milliseconds since 1970, of the files that `wanted` takes. */
function newest(folder, wanted) {
  let at = 0;
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) at = Math.max(at, newest(path, wanted));
    else if (wanted(entry.name)) at = Math.max(at, statSync(path).mtimeMs);
  }
  return at;
}

const major = Number(process.versions.node.split('.')[0]);
if (major < MINIMUM_NODE) {
  refuse(
    `Node ${MINIMUM_NODE} or newer is needed, this is ${process.versions.node}`,
    'install a newer Node, then try again',
  );
}
if (!existsSync(join(root, 'node_modules/commander'))) {
  refuse('the npm packages are not installed', `run 'npm run setup' in ${root}`);
}
if (!existsSync(program)) {
  refuse('the sources are not compiled', `run 'npm run setup' in ${root}`);
}
// An installed copy may come without sources. Where they are, what runs should be what they say.
const sources = ['proto', 'control-plane', 'gateway']
  .map((name) => join(root, name))
  .filter((path) => existsSync(path));
const compiledAt = newest(join(root, 'dist'), (name) => name.endsWith('.js') || name === '.built');
if (sources.some((path) => newest(path, (name) => name.endsWith('.ts')) > compiledAt)) {
  process.stderr.write(
    `initless: the sources are newer than what is compiled; 'npm run build' in ${root} compiles them\n`,
  );
}

await import(pathToFileURL(program).href);
