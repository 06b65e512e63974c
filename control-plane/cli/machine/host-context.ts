import { existsSync } from 'node:fs';
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pack } from 'tar-stream';
import { InitlessError } from '../../../proto/rpc/errors.js';

/** A file of the host image's build context. */
export interface ContextFile {
  /** Path in the context. */
  name: string;
  /** Path on the machine. */
  path: string;
}

/** What the Dockerfile takes besides the built code. */
const FIXED = [
  'agent/Dockerfile',
  'agent/entrypoint.sh',
  'agent/runtime/enter.c',
  'agent/runtime/pause.c',
  'agent/runtime/reaper.c',
  'agent/runtime/prlimit-shim.c',
  'package.json',
];

/** The parts of dist that run in a host; a change to the others must not replace hosts. */
const BUILT = ['dist/agent', 'dist/proto'];

/** The fields of package-lock.json (lockfileVersion 2 and 3) that matter here. */
interface Lock {
  packages?: Record<string, { dev?: boolean; devOptional?: boolean; link?: boolean }>;
}

/** Folders below the project's of the packages that run in production, as npm's lock file lists them. */
export function productionPackages(lock: Lock): string[] {
  return Object.entries(lock.packages ?? {})
    .filter(([path, entry]) => path.startsWith('node_modules/') && !entry.dev && !entry.devOptional && !entry.link)
    .map(([path]) => path)
    .sort();
}

/** Files that change with the project itself. Throws SETUP_FAILED when the project is not built. */
export async function projectFiles(root: string): Promise<ContextFile[]> {
  const names = [...FIXED];
  for (const folder of BUILT) {
    if (!existsSync(join(root, folder))) {
      throw new InitlessError('SETUP_FAILED', `${folder} is missing: the project is not built`, {
        subject: join(root, folder),
        nextStep: "run 'npm run setup'",
      });
    }
    names.push(...(await filesBelow(root, folder)).filter((name) => !name.endsWith('.d.ts')));
  }
  return names.map((name) => ({ name, path: join(root, name) }));
}

/** The lock file stands for the installed packages: the set-up keeps both in step. */
export function lockFile(root: string): ContextFile {
  return { name: 'package-lock.json', path: join(root, 'package-lock.json') };
}

/** Files of the packages that run in production; what only compilers and debuggers read is left out. */
export async function packageFiles(root: string): Promise<ContextFile[]> {
  const lock = JSON.parse(await readFile(lockFile(root).path, 'utf8')) as Lock;
  const files: ContextFile[] = [];
  for (const folder of productionPackages(lock)) {
    if (!existsSync(join(root, folder))) continue; // Optional, and not for this platform.
    for (const name of await filesBelow(root, folder)) {
      if (!/\.(d\.[cm]?ts|map)$/.test(name)) files.push({ name, path: join(root, name) });
    }
  }
  return files;
}

/** Regular files below a folder, sorted; packages in packages are listed on their own, links (.bin) are not needed. */
async function filesBelow(root: string, folder: string): Promise<string[]> {
  const names: string[] = [];
  for (const entry of await readdir(join(root, folder), { withFileTypes: true })) {
    const name = `${folder}/${entry.name}`;
    if (entry.isDirectory()) {
      if (entry.name !== 'node_modules') names.push(...(await filesBelow(root, name)));
    } else if (entry.isFile()) names.push(name);
  }
  return names.sort();
}

/**
 * The files as a tar archive, written as it is read. Times and owners are left out, so that the same content gives the
 * same layers. A file that cannot be read destroys the stream with its error.
 */
export function tarOf(files: readonly ContextFile[], signal: AbortSignal): Readable {
  const archive = pack();
  const write = async () => {
    for (const file of files) {
      signal.throwIfAborted();
      const mode = (await stat(file.path)).mode & 0o111 ? 0o755 : 0o644;
      const content = await readFile(file.path);
      await new Promise<void>((resolve, reject) => {
        archive.entry({ name: file.name, mode, mtime: new Date(0) }, content, (error) =>
          error ? reject(error) : resolve(),
        );
      });
    }
    archive.finalize();
  };
  write().catch((error: unknown) => archive.destroy(error instanceof Error ? error : new Error(String(error))));
  return Readable.from(archive);
}
