import { createReadStream, existsSync } from 'node:fs';
import { readdir, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { pipeline } from 'node:stream';
import { createGunzip } from 'node:zlib';
import { extract, type Header } from 'tar-stream';
import { MountEntry } from '../../proto/gen/criu/mounts.js';
import { decodeEntry, writeImage } from '../memory/image-file.js';
import { readImage } from '../memory/images.js';
import { TMPFS_FILE, type TmpfsEntry, type TmpfsPlan } from '../runtime/tmpfs.js';
import { damaged } from './manifest.js';

/** CRIU's number of the file system. */
const TMPFS = 5;
/** MS_RDONLY. */
const READ_ONLY = 1;
/** A tmpfs with more in it than this is left to CRIU. */
const MAX_ENTRIES = 64;

/**
 * Takes those tmpfs out of a dump that a restore can make with a few system calls: see {@link TmpfsPlan}. A tmpfs with
 * files in it, or mounted in a way that is not the usual one, stays as it is, and CRIU restores it. What is there is read
 * from the dump itself, so it is what was there when the process was frozen.
 * Errors: CHECKPOINT_DAMAGED where an image cannot be read, and those of the disk; the dump is of no use then.
 */
export async function takeOutTmpfs(images: string): Promise<void> {
  const plans: TmpfsPlan[] = [];
  const names = await readdir(images);
  for (const name of names.filter((each) => /^mountpoints-\d+\.img$/.test(each))) {
    const file = path.join(images, name);
    const mounts = (await readImage(images, name, 'mounts')).map((entry) => ({
      bytes: entry.bytes,
      message: decodeEntry(MountEntry, entry, file),
    }));
    const own = mounts.filter(({ message }) => message.fstype === TMPFS && !message.extKey);
    for (const device of new Set(own.map(({ message }) => message.rootDev))) {
      const content = path.join(images, `tmpfs-dev-${device}.tar.gz.img`);
      const alike = own.filter(({ message }) => message.rootDev === device);
      const [first] = alike;
      if (first === undefined || !alike.every(({ message }) => isPlain(message)) || !existsSync(content)) continue;
      const entries = await entriesOf(content);
      if (entries === undefined) continue;
      const { source = '', options = '', sbFlags = 0 } = first.message;
      const key = `initless-tmpfs-${device}`;
      plans.push({ key, source, options, readOnly: (sbFlags & READ_ONLY) !== 0, entries });
      for (const mount of alike) mount.bytes = MountEntry.encode({ ...mount.message, extKey: key }).finish();
      await rm(content);
    }
    await writeFile(
      file,
      writeImage(
        'mounts',
        mounts.map(({ bytes }) => bytes),
      ),
    );
  }
  await writeFile(path.join(images, TMPFS_FILE), JSON.stringify(plans), { mode: 0o600 });
}

/** Whether it is all of its file system, and no mount elsewhere follows what is mounted below it. */
function isPlain({ root, sharedId, masterId, deleted }: MountEntry): boolean {
  return root === '/' && !sharedId && !masterId && !deleted;
}

/** What an archive of CRIU's holds; undefined where some of it is no folder, link or device. */
async function entriesOf(file: string): Promise<TmpfsEntry[] | undefined> {
  const archive = extract();
  pipeline(createReadStream(file), createGunzip(), archive, () => {
    // What goes wrong ends the loop below with the error.
  });
  const entries: TmpfsEntry[] = [];
  try {
    for await (const entry of archive) {
      const plain = entryOf(entry.header);
      if (plain === undefined || entries.length === MAX_ENTRIES) return undefined;
      entries.push(plain);
      entry.resume();
    }
  } catch (cause) {
    throw damaged(`${file} cannot be read: ${(cause as Error).message}`, file, cause);
  }
  return entries;
}

function entryOf({
  name,
  type,
  mode = 0,
  uid = 0,
  gid = 0,
  linkname,
  devmajor,
  devminor,
}: Header): TmpfsEntry | undefined {
  const common = { path: path.posix.normalize(name).replace(/(.)\/$/, '$1'), uid, gid };
  switch (type) {
    case 'directory':
      return { ...common, type, mode };
    case 'symlink':
      return { ...common, type: 'link', target: linkname ?? '' };
    case 'character-device':
    case 'block-device':
      return { ...common, type: type === 'block-device' ? 'b' : 'c', mode, major: devmajor ?? 0, minor: devminor ?? 0 };
    default:
      return undefined;
  }
}
