import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { gzipSync } from 'node:zlib';
import { type Header, pack } from 'tar-stream';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { takeOutTmpfs } from '../../agent/checkpoint/tmpfs.js';
import { decodeEntry, parseImage, writeImage } from '../../agent/memory/image-file.js';
import { readTmpfsPlans, tmpfsSteps } from '../../agent/runtime/tmpfs.js';
import { MountEntry } from '../../proto/gen/criu/mounts.js';

/** One entry of an archive. */
type Entry = Partial<Header> & { name: string; text?: string };

const TMPFS = 5;
const PROC = 1;
const DEV = { fstype: TMPFS, rootDev: 79, root: '/', mountpoint: '/dev', source: 'tmpfs', options: 'mode=755' };
const SHM = { fstype: TMPFS, rootDev: 84, root: '/', mountpoint: '/dev/shm', source: 'shm', options: 'size=64k' };
const ROOT: Entry = { name: './', type: 'directory', mode: 0o1777, uid: 0, gid: 0 };

let images = '';

beforeEach(async () => {
  images = await mkdtemp(path.join(tmpdir(), 'initless-tmpfs-'));
});

afterEach(() => rm(images, { recursive: true, force: true }));

/** Writes a dump's mounts. */
async function mounts(...entries: Partial<MountEntry>[]): Promise<void> {
  const bytes = entries.map((entry) => MountEntry.encode(MountEntry.fromPartial(entry)).finish());
  await writeFile(path.join(images, 'mountpoints-13.img'), writeImage('mounts', bytes));
}

/** Writes what a dump holds of the tmpfs with a device number. */
async function content(device: number, ...headers: Entry[]): Promise<void> {
  const archive = pack();
  for (const { text: inside = '', ...header } of headers) archive.entry(header, inside);
  archive.finalize();
  const packed: Buffer[] = [];
  for await (const chunk of archive) packed.push(chunk as Buffer);
  await writeFile(archiveOf(device), gzipSync(Buffer.concat(packed)));
}

const archiveOf = (device: number) => path.join(images, `tmpfs-dev-${device}.tar.gz.img`);

/** The names by which a restore is told where each mount comes from, by its place. */
async function keys(): Promise<Record<string, string | undefined>> {
  const file = path.join(images, 'mountpoints-13.img');
  const entries = parseImage(await readFile(file), 'mounts', file).map((entry) => decodeEntry(MountEntry, entry, file));
  return Object.fromEntries(entries.map(({ mountpoint = '', extKey }) => [mountpoint, extKey || undefined]));
}

describe('a tmpfs of a dump', () => {
  it('that holds folders, links and devices is made by the restore, with all of them', async () => {
    await mounts({ fstype: PROC, rootDev: 77, root: '/', mountpoint: '/proc' }, DEV);
    await content(
      79,
      { ...ROOT, mode: 0o755 },
      { name: './shm/', type: 'directory', mode: 0o1777, uid: 1, gid: 2 },
      { name: './stdin', type: 'symlink', linkname: '/proc/self/fd/0', uid: 3, gid: 4 },
      { name: './null', type: 'character-device', devmajor: 1, devminor: 3, mode: 0o666, uid: 5, gid: 6 },
    );
    await takeOutTmpfs(images);
    const [plan] = await readTmpfsPlans(images);
    expect(plan).toEqual({
      key: 'initless-tmpfs-79',
      source: 'tmpfs',
      options: 'mode=755',
      readOnly: false,
      entries: [
        { path: '.', type: 'directory', mode: 0o755, uid: 0, gid: 0 },
        { path: 'shm', type: 'directory', mode: 0o1777, uid: 1, gid: 2 },
        { path: 'stdin', type: 'link', target: '/proc/self/fd/0', uid: 3, gid: 4 },
        { path: 'null', type: 'c', major: 1, minor: 3, mode: 0o666, uid: 5, gid: 6 },
      ],
    });
    expect(await keys()).toEqual({ '/proc': undefined, '/dev': 'initless-tmpfs-79' });
    expect(existsSync(archiveOf(79))).toBe(false);
  });

  it('that holds a file is left to CRIU, as it is', async () => {
    await mounts(DEV, SHM);
    await content(79, ROOT, { name: './data', type: 'file', text: 'kept' });
    await content(84, ROOT);
    await takeOutTmpfs(images);
    expect(await keys()).toEqual({ '/dev': undefined, '/dev/shm': 'initless-tmpfs-84' });
    expect([existsSync(archiveOf(79)), existsSync(archiveOf(84))]).toEqual([true, false]);
  });

  it('is one for all places where it is mounted, and read-only where it was', async () => {
    const masked = { fstype: TMPFS, rootDev: 83, root: '/', source: 'tmpfs', options: 'size=4k', sbFlags: 1 };
    await mounts({ ...masked, mountpoint: '/proc/acpi' }, { ...masked, mountpoint: '/sys/firmware' });
    await content(83, ROOT);
    await takeOutTmpfs(images);
    expect(await readTmpfsPlans(images)).toMatchObject([{ key: 'initless-tmpfs-83', readOnly: true }]);
    expect(await keys()).toEqual({ '/proc/acpi': 'initless-tmpfs-83', '/sys/firmware': 'initless-tmpfs-83' });
  });

  it.each([
    { what: 'a part of it is mounted alone', mount: { ...DEV, root: '/part' } },
    { what: 'its mount is in a peer group', mount: { ...DEV, sharedId: 7 } },
    { what: 'its mount follows another', mount: { ...DEV, masterId: 7 } },
    { what: 'it comes from outside already', mount: { ...DEV, extKey: '/dev' } },
  ])('is left to CRIU where $what', async ({ mount }) => {
    await mounts(mount);
    await content(79, ROOT);
    const before = await keys();
    await takeOutTmpfs(images);
    expect(await readTmpfsPlans(images)).toEqual([]);
    expect(await keys()).toEqual(before);
    expect(existsSync(archiveOf(79))).toBe(true);
  });

  it('whose archive cannot be read makes the dump a damaged one', async () => {
    await mounts(DEV);
    await writeFile(archiveOf(79), 'no archive');
    await expect(takeOutTmpfs(images)).rejects.toMatchObject({ code: 'CHECKPOINT_DAMAGED' });
  });
});

describe('a dump without such a list', () => {
  it('is restored as CRIU wrote it', async () => {
    expect(await readTmpfsPlans(images)).toEqual([]);
  });
});

describe('the steps that make a tmpfs', () => {
  it('name each entry by its place, its owner and its mode', () => {
    const plan = {
      key: 'k',
      source: 'tmpfs',
      options: 'size=4k',
      readOnly: true,
      entries: [
        { path: '.', type: 'directory' as const, mode: 0o755, uid: 0, gid: 0 },
        { path: 'fd', type: 'link' as const, target: '/proc/self/fd', uid: 0, gid: 0 },
        { path: 'disk', type: 'b' as const, mode: 0o660, major: 8, minor: 1, uid: 0, gid: 6 },
      ],
    };
    expect(tmpfsSteps(plan, '/work/k').join(' ')).toBe(
      'tmpfs /work/k tmpfs size=4k folder /work/k 0 0 755 link /work/k/fd 0 0 /proc/self/fd ' +
        'device /work/k/disk 0 6 660 b 8 1 read-only /work/k',
    );
  });
});
