import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';

/** SHA-256, in hexadecimal, over named parts in the order given; names and contents cannot run into each other. */
export async function digestOfFiles(files: readonly { name: string; path: string }[], seed: string): Promise<string> {
  const hash = createHash('sha256').update(seed);
  for (const file of files) {
    const content = await readFile(file.path);
    hash.update(`\0${file.name}\0${content.length}\0`).update(content);
  }
  return hash.digest('hex');
}

/** SHA-256, in hexadecimal, of a value's JSON. */
export function digestOfJson(value: unknown): string {
  return createHash('sha256').update(JSON.stringify(value)).digest('hex');
}
