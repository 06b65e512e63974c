import { spawn } from 'node:child_process';
import path from 'node:path';
import type { Readable } from 'node:stream';
import { InitlessError } from '../../proto/rpc/errors.js';
import type { Entry } from '../checkpoint/manifest.js';
import { lastLines, run } from '../runtime/exec.js';

/** Neither times of access nor process ids are in an archive; sparse files' headers of later versions have the latter. */
const PAX = 'exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime';
/** Unpacking, or listing, gigabytes on a slow disk. */
const TAR_MS = 15 * 60_000;

/**
 * A checkpoint's folder as a tar archive: extended attributes, whiteouts and links as they are, holes left out. The same
 * folder gives the same bytes each time: names are sorted, and of its times only those of the last change are in it.
 *
 * Sockets are not: no archive can hold them. {@link unpack} makes them again.
 */
export function pack(dir: string, signal: AbortSignal): Readable {
  const child = spawn(
    'tar',
    [
      ...['--create', '--format=posix', `--pax-option=${PAX}`, '--sort=name'],
      ...[
        '--sparse',
        '--sparse-version=0.0',
        '--hole-detection=seek',
        '--xattrs',
        '--xattrs-include=*',
        '--numeric-owner',
      ],
      ...['-C', dir, '.'],
    ],
    { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, LC_ALL: 'C' } },
  );
  const { stdout } = child;
  let said = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    if (said.length < 10_000) said += text;
  });
  const stop = () => child.kill('SIGKILL');
  signal.addEventListener('abort', stop, { once: true });
  if (signal.aborted) stop();
  stdout.on('close', stop);
  child.on('error', (error) => stdout.destroy(error));
  child.on('exit', (code) => {
    signal.removeEventListener('abort', stop);
    if (code === 0 || stdout.destroyed) return;
    stdout.destroy(new InitlessError('INTERNAL', `packing ${dir} failed: ${lastLines(said, 1)[0] ?? `code ${code}`}`));
  });
  return stdout;
}

/**
 * Unpacks such an archive. Only what the manifest names may be in it.
 *
 * Errors: COPY_FAILED for an archive that holds something else, DISK_FULL, those of tar.
 */
export async function unpack(
  archive: string,
  dir: string,
  entries: readonly Entry[],
  also: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  const env = { LC_ALL: 'C' };
  const options = { signal, timeoutMs: TAR_MS, env, group: true };
  const list = await run('tar', ['--list', '--quoting-style=literal', '-f', archive], {
    ...options,
    label: 'reading a copy',
  });
  const known = new Set([...entries.map((entry) => entry.path), ...also, '.']);
  for (const line of list.stdout.split('\n')) {
    const name = line === '' ? '.' : path.normalize(line).replace(/(.)\/$/, '$1');
    if (known.has(name)) continue;
    throw new InitlessError(
      'COPY_FAILED',
      `the archive holds ${JSON.stringify(line.slice(0, 200))}, which its manifest does not`,
    );
  }
  const args = ['--extract', '--xattrs', '--xattrs-include=*', '--numeric-owner', '--same-permissions', '--same-owner'];
  await run('tar', [...args, '--sparse', '-C', dir, '-f', archive], { ...options, label: 'unpacking a copy' });
}

/** Makes a socket's file, which no archive can hold; who listened on it is told by the checkpoint itself. */
export async function makeSocket(file: string, { mode, uid, gid }: Entry, signal: AbortSignal): Promise<void> {
  const script = `use Socket; socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die $!; bind($s, pack_sockaddr_un($ARGV[0])) or die $!;
    chmod(${mode}, $ARGV[0]) or die $!; chown(${uid}, ${gid}, $ARGV[0]) or die $!;`;
  await run('perl', ['-e', script, file], { signal, label: `making the socket ${file}` });
}
