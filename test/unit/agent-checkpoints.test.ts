import {
  appendFile,
  chmod,
  mkdir,
  mkdtemp,
  open as openFile,
  readdir,
  readFile,
  rm,
  symlink,
  truncate,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Checkpoints } from '../../agent/checkpoint/checkpoints.js';
import { readManifest } from '../../agent/checkpoint/manifest.js';
import { PAGE } from '../../agent/memory/model.js';
import { SparseWriter, writeIndex } from '../../agent/memory/sparse.js';
import { writeTouched } from '../../agent/memory/touched.js';
import type { OciSpec } from '../../agent/runtime/spec.js';
import { CheckpointMemory, Fingerprint, MemoryMode } from '../../proto/gen/initless/v1/types.js';
import { toInitlessError } from '../../proto/rpc/errors.js';

const HERE = Fingerprint.fromPartial({ kernel: '6.1', criu: '4.2.1', arch: 'x86_64' });
const SPEC = { process: { args: ['app'], env: [] } } as unknown as OciSpec;
const COPIED = CheckpointMemory.fromPartial({ mode: MemoryMode.MEMORY_MODE_COPIED });
const FACTS = {
  service: 'web',
  revision: 'abc',
  imageId: 'sha256:1',
  hostname: 'web',
  volumes: [],
  stages: [],
  memory: COPIED,
};

describe('checkpoints on disk', () => {
  let root: string;
  const open = async (here = HERE) => {
    const checkpoints = new Checkpoints(root, 'host1', here, pino({ level: 'silent' }));
    await checkpoints.load();
    return checkpoints;
  };
  const seal = async (checkpoints: Checkpoints, content = 'pages') => {
    const dir = await checkpoints.begin('web', 'web', 'abc');
    await writeFile(path.join(dir, 'criu', 'pages-1.img'), content);
    await mkdir(path.join(dir, 'rootfs'));
    await symlink('/elsewhere', path.join(dir, 'rootfs', 'link'));
    return checkpoints.seal(dir, SPEC, FACTS);
  };

  beforeEach(async () => {
    root = await mkdtemp(path.join(tmpdir(), 'initless-checkpoints-'));
  });
  afterEach(() => rm(root, { recursive: true, force: true }));

  it('can be used once sealed, and again after a restart', async () => {
    await seal(await open());
    const usable = await (await open()).use('web', 'abc');
    expect(usable.spec.process.args).toEqual(['app']);
    expect(await readFile(path.join(usable.source.images, 'pages-1.img'), 'utf8')).toBe('pages');
  });

  describe('with mapped memory', () => {
    const MEMORY_FILE = 'memory/.initless/mem-1';
    const MIB = 2 ** 20;
    const sealMapped = async () => {
      const checkpoints = await open();
      const dir = await checkpoints.begin('web', 'web', 'abc');
      await mkdir(path.join(dir, 'memory/.initless'), { recursive: true });
      await mkdir(path.join(dir, 'rootfs'));
      const writer = await SparseWriter.create(path.join(dir, MEMORY_FILE));
      await writer.write(MIB, Buffer.alloc(4 * PAGE, 'a'));
      const index = { path: '.initless/mem-1', ...(await writer.finish(8 * 1024 * MIB)) };
      const ranges = [{ offset: MIB, length: PAGE }];
      await writeFile(path.join(dir, 'extents.json'), writeIndex([index]));
      await writeFile(path.join(dir, 'touched.json'), writeTouched([{ path: index.path, ranges }]));
      const memory = CheckpointMemory.fromPartial({ mode: MemoryMode.MEMORY_MODE_MAPPED });
      return checkpoints.seal(dir, SPEC, { ...FACTS, memory });
    };
    const refusal = async () =>
      toInitlessError(await (await open()).use('web', 'abc').catch((error: unknown) => error));
    const altered = async (dir: string, change: (file: string) => Promise<void>) => {
      const file = path.join(dir, MEMORY_FILE);
      await chmod(file, 0o600);
      await change(file);
      await chmod(file, 0o400);
    };

    it('has the memory files as its topmost layer, and counts of them what is no hole', async () => {
      const { path: dir, size, files } = await sealMapped();
      const usable = await (await open()).use('web', 'abc');
      expect(usable.layers).toEqual([path.join(dir, 'memory'), path.join(dir, 'rootfs')]);
      expect(usable.source.mapped).toBe(true);
      expect(size).toBeLessThan(MIB);
      const { files: listed } = await (await open()).inspect('web', 'abc', true);
      expect([...files, ...listed].find((file) => file.path === MEMORY_FILE)?.size).toBeLessThan(MIB);
    });

    it('reads ahead what was touched, and refuses a list that is none', async () => {
      const { path: dir } = await sealMapped();
      const checkpoints = await open();
      await checkpoints.readAhead('web', 'abc', AbortSignal.timeout(5_000));
      await writeFile(path.join(dir, 'touched.json'), '{}');
      await expect((await open()).readAhead('web', 'abc', AbortSignal.timeout(5_000))).rejects.toThrow(/touched.json/);
    });

    it.each<[string, (file: string) => Promise<void>, RegExp]>([
      ['cut short', (file) => truncate(file, MIB), /mem-1 had 8589934592 bytes and has 1048576/],
      ['changed', (file) => writeAt(file, 'b', MIB + 10), /mem-1 was altered .* at offset 1048576/],
      ['written to in a hole', (file) => writeAt(file, 'b', 4 * MIB), /mem-1 was altered .* empty at offset 4194304/],
    ])('is refused when the memory file is %s, with its name', async (_, change, message) => {
      const { path: dir } = await sealMapped();
      await altered(dir, change);
      const error = await refusal();
      expect(error.code).toBe('CHECKPOINT_DAMAGED');
      expect(error.message).toMatch(message);
    });

    it('is refused when the memory file is missing, with its name', async () => {
      const { path: dir } = await sealMapped();
      await rm(path.join(dir, MEMORY_FILE));
      expect(await refusal()).toMatchObject({
        code: 'CHECKPOINT_DAMAGED',
        message: expect.stringContaining(`${MEMORY_FILE} is missing`),
      });
    });

    it('is refused as well when that happens while it is in use', async () => {
      const { path: dir } = await sealMapped();
      const checkpoints = await open();
      await checkpoints.use('web', 'abc');
      await altered(dir, (file) => writeAt(file, 'b', MIB));
      await expect(checkpoints.use('web', 'abc')).rejects.toThrow(/mem-1 was altered/);
      expect(checkpoints.has('web', 'abc')).toBe(false);
    });
  });

  it('leaves nothing of one that was never sealed', async () => {
    await (await open()).begin('web', 'web', 'abc');
    await open();
    expect(await readdir(path.join(root, 'web'))).toEqual([]);
  });

  it('refuses one whose file was altered, also when its size and time are as before, and keeps refusing it', async () => {
    const { path: dir } = await seal(await open());
    const file = path.join(dir, 'criu', 'pages-1.img');
    await chmod(file, 0o600);
    await writeFile(file, 'pagez');
    await utimes(file, new Date(0), new Date(0));
    await chmod(file, 0o400);
    const checkpoints = await open();
    await expect(checkpoints.use('web', 'abc')).rejects.toMatchObject({ code: 'CHECKPOINT_DAMAGED' });
    await expect(checkpoints.use('web', 'abc')).rejects.toThrow(/criu\/pages-1.img had the digest/);
    expect(checkpoints.has('web', 'abc')).toBe(false);
  });

  it('notices an alteration while it is in use', async () => {
    const checkpoints = await open();
    const { path: dir } = await seal(checkpoints);
    await checkpoints.use('web', 'abc');
    await chmod(path.join(dir, 'criu', 'pages-1.img'), 0o600);
    await appendFile(path.join(dir, 'criu', 'pages-1.img'), '!');
    await expect(checkpoints.use('web', 'abc')).rejects.toThrow(/had 5 bytes and has 6/);
  });

  it.each(['criu/pages-1.img', 'spec.json', 'rootfs/link'])('refuses one whose %s is missing', async (name) => {
    const { path: dir } = await seal(await open());
    await rm(path.join(dir, name));
    await expect((await open()).use('web', 'abc')).rejects.toThrow(`${name} is missing`);
  });

  it('refuses one from another kernel', async () => {
    await seal(await open());
    const checkpoints = await open({ ...HERE, kernel: '6.2' });
    await expect(checkpoints.use('web', 'abc')).rejects.toMatchObject({ code: 'CHECKPOINT_INCOMPATIBLE' });
  });

  it('refuses a manifest that was cut or altered', async () => {
    const { path: dir } = await seal(await open());
    const file = path.join(dir, 'manifest.json');
    const text = await readFile(file, 'utf8');
    expect(() => readManifest(text.slice(0, -10), file)).toThrow(/is not a manifest/);
    expect(() => readManifest(text.replace('sha256:1', 'sha256:2'), file)).toThrow(/does not have the digest/);
    expect(readManifest(text, file).service).toBe('web');
  });

  it('puts a new one in the place of an old one, and removes the old one when nothing reads from it', async () => {
    const checkpoints = await open();
    const old = await seal(checkpoints, 'old');
    await new Promise((resolve) => setTimeout(resolve, 5));
    const fresh = await seal(checkpoints, 'new');
    expect((await checkpoints.use('web', 'abc')).dir).toBe(fresh.path);
    await checkpoints.sweep(new Set([old.path]));
    expect(await readdir(path.join(root, 'web'))).toHaveLength(2);
    await checkpoints.sweep(new Set());
    expect(await readdir(path.join(root, 'web'))).toEqual([path.basename(fresh.path)]);
    expect((await open()).list()).toHaveLength(1);
  });

  it('gives up on one whose restores fail three times in a row', async () => {
    const checkpoints = await open();
    await seal(checkpoints);
    for (let i = 0; i < 2; i++) checkpoints.restored('web', 'abc', new Error('no'));
    checkpoints.restored('web', 'abc', undefined);
    for (let i = 0; i < 2; i++) checkpoints.restored('web', 'abc', new Error('no'));
    expect(checkpoints.has('web', 'abc')).toBe(true);
    checkpoints.restored('web', 'abc', new Error('no'));
    expect(checkpoints.has('web', 'abc')).toBe(false);
  });

  describe('when they are to be kept in another folder', () => {
    const other = () => path.join(root, 'other', 'disk');
    const here = () => path.join(root, 'here');
    const openHere = async () => {
      const checkpoints = new Checkpoints(here(), 'host1', HERE, pino({ level: 'silent' }));
      await checkpoints.load();
      return checkpoints;
    };

    it('makes that folder and uses what is there only; those of the first are found again on the way back', async () => {
      const checkpoints = await openHere();
      const { path: dir } = await seal(checkpoints);
      await checkpoints.moveTo(other());
      expect(checkpoints.list()).toEqual([]);
      const { path: there } = await seal(checkpoints, 'others');
      expect(path.dirname(there)).toBe(path.join(other(), 'web'));
      await checkpoints.moveTo(here());
      expect((await checkpoints.use('web', 'abc')).dir).toBe(dir);
      await checkpoints.moveTo(other());
      expect((await checkpoints.use('web', 'abc')).dir).toBe(there);
    });

    it('goes on with the first folder when the other one cannot be made', async () => {
      const checkpoints = await openHere();
      const { path: dir } = await seal(checkpoints);
      await writeFile(path.join(root, 'file'), '');
      const below = path.join(root, 'file', 'below');
      const failure = await checkpoints.moveTo(below).catch((error: unknown) => error);
      expect(failure).toMatchObject({ code: 'BAD_CONFIG', message: expect.stringContaining('ENOTDIR') });
      expect(failure).toMatchObject({ message: expect.stringContaining(`checkpoint_dir ${below} cannot be used`) });
      expect((await checkpoints.use('web', 'abc')).dir).toBe(dir);
      expect(path.dirname(await checkpoints.begin('web', 'web', 'abc'))).toBe(path.join(here(), 'web'));
    });

    it('goes on with the first folder when the other one cannot be read', async () => {
      const checkpoints = await openHere();
      const { path: dir } = await seal(checkpoints);
      await mkdir(other(), { recursive: true });
      await writeFile(path.join(other(), 'a file'), '');
      await expect(checkpoints.moveTo(other())).rejects.toMatchObject({ code: 'BAD_CONFIG' });
      expect(checkpoints.list().map((one) => one.path)).toEqual([dir]);
      expect((await checkpoints.use('web', 'abc')).dir).toBe(dir);
    });

    it('seals what is under way where it was begun, and uses it', async () => {
      const checkpoints = await openHere();
      const dir = await checkpoints.begin('web', 'web', 'abc');
      await writeFile(path.join(dir, 'criu', 'pages-1.img'), 'pages');
      await checkpoints.moveTo(other());
      const sealed = await checkpoints.seal(dir, SPEC, FACTS);
      expect(path.dirname(sealed.path)).toBe(path.join(here(), 'web'));
      expect((await checkpoints.use('web', 'abc')).dir).toBe(sealed.path);
      expect(await readdir(other())).toEqual([]);
    });

    it('leaves what is under way alone when its folder is read again, and removes it once it is abandoned', async () => {
      const checkpoints = await openHere();
      const dir = await checkpoints.begin('web', 'web', 'abc');
      await checkpoints.moveTo(other());
      await checkpoints.moveTo(here());
      expect(await readdir(dir)).toEqual(['criu', 'volumes']);
      await checkpoints.abandon(dir);
      expect(await readdir(path.dirname(dir))).toEqual([]);
    });

    it('does not use one again that was removed and that instances still read from', async () => {
      const checkpoints = await openHere();
      const { path: dir } = await seal(checkpoints);
      checkpoints.remove('web', []);
      await checkpoints.moveTo(other());
      await checkpoints.moveTo(here());
      expect(checkpoints.has('web', 'abc')).toBe(false);
      await checkpoints.sweep(new Set([dir]));
      expect(await readdir(path.join(here(), 'web'))).toEqual([path.basename(dir)]);
      await checkpoints.sweep(new Set());
      expect(await readdir(path.join(here(), 'web'))).toEqual([]);
    });
  });
});

async function writeAt(file: string, text: string, position: number): Promise<void> {
  const handle = await openFile(file, 'r+');
  await handle.write(text, position);
  await handle.close();
}
