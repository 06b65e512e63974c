import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The project's folder, from the sources as well as from dist: the nearest one upwards that holds agent/Dockerfile. */
export function projectRoot(): string {
  const start = dirname(fileURLToPath(import.meta.url));
  for (let folder = start; ; folder = dirname(folder)) {
    if (existsSync(join(folder, 'agent', 'Dockerfile'))) return folder;
    if (folder === dirname(folder)) throw new Error(`no folder above ${start} holds agent/Dockerfile`);
  }
}
