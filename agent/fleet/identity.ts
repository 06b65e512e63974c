import { randomUUID } from 'node:crypto';
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { sync } from '../checkpoint/tree.js';

/**
 * What tells this host from another one of its name: made at the first start and kept with the host's files, so that a host
 * whose volume is gone is another one.
 *
 * @param dir the agent's state folder.
 */
export async function readIdentity(dir: string): Promise<string> {
  const file = path.join(dir, 'identity');
  const text = await readFile(file, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return '';
    throw error;
  });
  const known = text.trim();
  if (known !== '') return known;
  const made = randomUUID();
  await mkdir(dir, { recursive: true, mode: 0o700 });
  await writeFile(`${file}.new`, `${made}\n`, { mode: 0o600 });
  await sync(`${file}.new`);
  await rename(`${file}.new`, file);
  return made;
}
