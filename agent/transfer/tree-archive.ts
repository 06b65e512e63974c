import { createReadStream } from 'node:fs';
import { access, lstat } from 'node:fs/promises';
import path from 'node:path';
import { pipeline } from 'node:stream/promises';
import { extract as createExtract, type Header } from 'tar-stream';
import { InitlessError } from '../../proto/rpc/errors.js';
import { type Entry, LAYER, VOLUMES } from '../checkpoint/manifest.js';
import { run } from '../runtime/exec.js';

/** Folders of a checkpoint that go as an archive: they hold whatever a file system can. */
const FOLDERS = [LAYER, VOLUMES];
/** Bound on packing and unpacking: 200 MB/s of the largest that is sensible. */
const ARCHIVE_TIMEOUT_MS = 300_000;
/**
 * Attributes are only kept in the posix format. The rest makes two archives of the same content equal: names without process
 * ids, no times that reading changes.
 */
const FORMAT = [
  '--format=posix',
  '--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime',
  // Version 0.0 leaves the member's own name where it belongs.
  '--sparse',
  '--sparse-version=0.0',
  '--sort=name',
];
const ATTRIBUTES = ['--numeric-owner', '--xattrs', '--xattrs-include=*'];

/** Whether an entry of a checkpoint goes in the archive. Pure. */
export function inTree({ path: name }: Pick<Entry, 'path'>): boolean {
  return FOLDERS.some((folder) => name === folder || name.startsWith(`${folder}/`));
}

/** Packs what of a checkpoint goes as an archive. Sockets stay out. Errors: DISK_FULL, INTERNAL, DEADLINE, CANCELLED. */
export async function packTree(dir: string, archive: string, signal: AbortSignal): Promise<void> {
  const there: string[] = [];
  for (const folder of FOLDERS) if (await exists(path.join(dir, folder))) there.push(folder);
  await run('tar', ['--create', '-f', archive, ...FORMAT, ...ATTRIBUTES, '-C', dir, '--', ...there], {
    timeoutMs: ARCHIVE_TIMEOUT_MS,
    label: `packing ${dir}`,
    signal,
  });
}

/**
 * Unpacks an archive into a checkpoint's folder, after making sure that all that is in it is in the manifest. What tar cannot
 * carry is made anew: sockets, which no process listens on.
 * Errors: BAD_ARCHIVE for what is not in the manifest; DISK_FULL, INTERNAL, DEADLINE, CANCELLED.
 */
export async function unpackTree(
  archive: string,
  dir: string,
  entries: readonly Entry[],
  signal: AbortSignal,
): Promise<void> {
  const expected = entries.filter(inTree);
  await checkMembers(archive, expected, signal);
  const args = [
    '--extract',
    '-f',
    archive,
    ...ATTRIBUTES,
    '--same-owner',
    '--same-permissions',
    '--delay-directory-restore',
  ];
  await run('tar', [...args, '-C', dir], { timeoutMs: ARCHIVE_TIMEOUT_MS, label: `unpacking into ${dir}`, signal });
  for (const entry of expected) {
    if (entry.type === 'special' && !(await exists(path.join(dir, entry.path)))) await makeSocket(dir, entry, signal);
  }
}

/** Looks at every member before the first is written. */
async function checkMembers(archive: string, entries: readonly Entry[], signal: AbortSignal): Promise<void> {
  const left = new Map(entries.map((entry) => [entry.path, entry]));
  const files = new Set(entries.filter(({ type }) => type === 'file').map((entry) => entry.path));
  const extract = createExtract();
  const reading = pipeline(createReadStream(archive), extract, { signal });
  reading.catch(() => {});
  try {
    for await (const member of extract) {
      const { header } = member;
      const name = header.name.replace(/\/$/, '');
      const entry = left.get(name);
      const fault = entry === undefined ? 'it is not in the manifest' : faultOf(header, entry, files);
      if (fault) throw new InitlessError('BAD_ARCHIVE', `the archive's member ${name} is refused: ${fault}`);
      // Once: a second one of the same name could lie behind a link that the first one made.
      left.delete(name);
      member.resume();
    }
    await reading;
  } catch (cause) {
    if (signal.aborted || cause instanceof InitlessError) throw cause;
    throw new InitlessError('BAD_ARCHIVE', `the archive cannot be read: ${(cause as Error).message}`, { cause });
  } finally {
    extract.destroy();
  }
}

/** What is wrong with a member, as a phrase. Pure. */
function faultOf(header: Header, entry: Entry, files: ReadonlySet<string>): string | undefined {
  switch (header.type) {
    case 'directory':
      return entry.type === 'directory' ? undefined : `it is a folder, and was a ${entry.type}`;
    case 'symlink':
      return entry.type === 'link' && header.linkname === entry.target ? undefined : 'it leads elsewhere';
    case 'link':
      return entry.type === 'file' && files.has(header.linkname ?? '')
        ? undefined
        : 'it is a second name of another file';
    case 'file':
    case 'contiguous-file': {
      const size = Number((header.pax as Record<string, string> | null)?.['GNU.sparse.size'] ?? header.size);
      return entry.type === 'file' && size === entry.size ? undefined : `it is a file of ${size} bytes`;
    }
    case 'character-device':
    case 'block-device':
    case 'fifo':
      return entry.type === 'special' ? undefined : `it is a ${header.type}`;
    default:
      return `it is a ${header.type}`;
  }
}

/** Perl's own modules are enough for a socket; its name is bound from within its folder, since paths of sockets are short. */
const SOCKET = `
use strict;
use Socket;
my ($folder, $name, $mode, $uid, $gid) = @ARGV;
chdir $folder or die "$!\\n";
umask 0;
socket(my $socket, PF_UNIX, SOCK_STREAM, 0) or die "$!\\n";
bind($socket, pack_sockaddr_un($name)) or die "$!\\n";
chown $uid, $gid, $name or die "$!\\n";
chmod $mode, $name or die "$!\\n";`;

async function makeSocket(dir: string, { path: name, mode, uid, gid }: Entry, signal: AbortSignal): Promise<void> {
  const at = path.parse(path.join(dir, name));
  await access(at.dir);
  await run('perl', ['-e', SOCKET, at.dir, `./${at.base}`, `${mode}`, `${uid}`, `${gid}`], {
    label: `making the socket ${name}`,
    signal,
  });
}

async function exists(file: string): Promise<boolean> {
  return lstat(file).then(
    () => true,
    (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return false;
      throw error;
    },
  );
}
