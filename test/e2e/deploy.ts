import { cp, readFile, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { parseDocument } from 'yaml';
import { initless, inspect, type Ran, ROOT, until, WORKSPACE } from './support.js';

/** Keys of `config.yaml` that a copy has otherwise than the original; undefined: it has not the key. */
export type Changes = Record<string, unknown>;

/** Copies a folder of `test/e2e/services` or, as "sample/NAME", one of the samples, and changes keys of its `config.yaml`. */
export async function copyOf(source: string, changes: Changes = {}, to?: string): Promise<string> {
  const from = source.startsWith('sample/') ? path.join(ROOT, source) : path.join(ROOT, 'test/e2e/services', source);
  const folder = to ?? path.join(WORKSPACE, 'services', String(changes.service_name ?? path.basename(source)));
  await rm(folder, { recursive: true, force: true });
  await cp(from, folder, { recursive: true });
  await change(folder, changes);
  return folder;
}

/** Changes keys of a folder's `config.yaml`. */
export async function change(folder: string, changes: Changes): Promise<void> {
  const file = path.join(folder, 'config.yaml');
  const config = parseDocument(await readFile(file, 'utf8'));
  for (const [key, value] of Object.entries(changes)) {
    if (value === undefined) config.delete(key);
    else config.set(key, value);
  }
  await writeFile(file, config.toString());
}

/** `initless service apply FOLDER --wait`. */
export function apply(folder: string): Promise<Ran> {
  return initless('service', 'apply', folder, '--wait');
}

/** Applies a folder and waits until its service is ready and the gateway listens for it. Rejects when it is not to be. */
export async function deploy(folder: string): Promise<void> {
  const ran = await apply(folder);
  if (ran.code !== 0) throw new Error(`applying ${folder} ended with ${ran.code}\n${ran.stderr}`);
  await untilListening(await serviceNameOf(folder));
}

/** Waits until the gateway listens for a service. */
export async function untilListening(service: string): Promise<void> {
  await until(`the gateway to listen for ${service}`, async () =>
    (await inspect(service)).listeners?.some((listener) => listener.listening),
  );
}

async function serviceNameOf(folder: string): Promise<string> {
  return String(parseDocument(await readFile(path.join(folder, 'config.yaml'), 'utf8')).get('service_name'));
}
