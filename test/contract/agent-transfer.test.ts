import { execFileSync } from 'node:child_process';
import { appendFile, lstat, mkdtemp, open, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Manifest } from '../../agent/checkpoint/manifest.js';
import { readTree } from '../../agent/checkpoint/tree.js';
import { faultOf } from '../../agent/transfer/assemble.js';
import { packTree, unpackTree } from '../../agent/transfer/tree-archive.js';
import { type TransferPart, TransferPartKind } from '../../proto/gen/initless/v1/transfer.js';
import { Fingerprint } from '../../proto/gen/initless/v1/types.js';
import { InitlessError, toInitlessError } from '../../proto/rpc/errors.js';
import { FINGERPRINT, layersOf, REVISION, TransferHost } from './transfer-world.js';

const signal = () => new AbortController().signal;
const failure = (work: Promise<unknown>) => work.then(() => undefined, toInitlessError);

describe('a revision that is copied from another host', () => {
  let folder: string;
  let a: TransferHost;
  let b: TransferHost;
  let c: TransferHost;
  let image: string;
  let layers: Buffer[];
  let hosts: TransferHost[];

  const open_ = async (name: string, here?: Fingerprint) => {
    const host = new TransferHost(path.join(folder, name), name, here);
    hosts.push(host);
    await host.start();
    return host;
  };

  beforeEach(async () => {
    folder = await mkdtemp(path.join(tmpdir(), 'initless-transfer-'));
    hosts = [];
    [a, b, c] = [await open_('a'), await open_('b'), await open_('c')];
    layers = layersOf(3);
    image = a.engine.add(layers);
    await a.holdImage(image);
    await a.holdCheckpoint(image);
  });
  afterEach(async () => {
    for (const host of hosts) await host.stop();
    await rm(folder, { recursive: true, force: true });
  });

  /** Gives a third host the same revision, byte for byte. */
  const secondSource = async () => {
    await c.copy(image, [a]);
    a.faults.asked.bytes = 0;
    c.faults.asked.bytes = 0;
  };

  it('can be used, with everything that its folder held, and without its holes', async () => {
    const { prepared, how, from, stages } = await b.copy(image, [a]);
    expect([how, from, prepared.imageId]).toEqual(['copied', 'a', image]);
    expect(stages.map(({ stage }) => stage)).toContain('assemble');
    const [of, copy] = [await a.checkpoints.use('web', REVISION), await b.checkpoints.use('web', REVISION)];
    expect(copy.manifest).toEqual(of.manifest);
    expect(await readTree(copy.dir)).toEqual(await readTree(of.dir));
    const layer = path.join(copy.dir, 'rootfs');
    expect((await lstat(path.join(layer, 'app.sock'))).isSocket()).toBe(true);
    expect((await stat(path.join(layer, 'second'))).ino).toBe((await stat(path.join(layer, 'var/lib/data'))).ino);
    const attribute = (dir: string) =>
      execFileSync('sh', ['-c', 'getfattr -m - -d rootfs/var/lib 2>/dev/null || true'], { cwd: dir, encoding: 'utf8' });
    expect(attribute(copy.dir)).toBe(attribute(of.dir));
    for (const file of ['memory/.initless/mem-1', 'rootfs/sparse']) {
      expect((await stat(path.join(copy.dir, file))).blocks * 512).toBeLessThan(12 * 2 ** 20);
    }
    expect(a.faults.asked.bytes).toBeLessThan(20 * 2 ** 20);
    expect(b.revisions.get('web', REVISION).imageId).toBe(image);
    expect(b.engine.names.get('web:checkpoint')).toBe(image);
    expect(await b.parts()).toEqual([]);
  });

  it('of a service without volumes can be used', async () => {
    await a.holdCheckpoint(image, false);
    expect((await b.copy(image, [a])).how).toBe('copied');
    await b.checkpoints.inspect('web', REVISION, true);
  });

  it('is not fetched again when it is there', async () => {
    await b.copy(image, [a]);
    b.dialled.length = 0;
    expect((await b.copy(image, [a])).how).toBe('there');
    expect(b.dialled).toEqual([]);
  });

  it('leaves those layers out that this host has over the same ones', async () => {
    b.engine.add([layers[0] as Buffer, layers[1] as Buffer]);
    // The third one is there, but not over the first two.
    b.engine.add([layers[2] as Buffer]);
    await b.copy(image, [a]);
    const [config, layer] = b.engine.loaded;
    expect(b.engine.loaded).toHaveLength(2);
    expect(config).toBe(image);
    expect(layer).toBe((await a.engine.image(image)).layers[2]);
  });

  it('goes on where it was cut, and hashes what is there instead of trusting it', async () => {
    const stop = new AbortController();
    let pieces = 0;
    a.faults.piece = (data) => {
      if (++pieces === 40) stop.abort(new Error('the link is cut'));
      return data;
    };
    await expect(b.copy(image, [a], {}, stop.signal)).rejects.toThrow('the link is cut');
    const parts = await b.parts();
    expect(parts.length).toBeGreaterThan(0);
    a.faults.piece = undefined;
    await c.copy(image, [a]);
    const whole = (await c.checkpoints.inspect('web', REVISION, false)).size;
    a.faults.asked.bytes = 0;
    await b.copy(image, [a]);
    const gone = a.faults.asked.bytes;
    expect(gone).toBeLessThan(whole);

    // Again, with one byte of what has come altered in between.
    const d = await open_('d');
    const late = new AbortController();
    pieces = 0;
    a.faults.piece = (data) => {
      if (++pieces === 40) late.abort(new Error('the link is cut'));
      return data;
    };
    await expect(d.copy(image, [a], {}, late.signal)).rejects.toThrow('the link is cut');
    a.faults.piece = undefined;
    for (const file of await d.parts()) {
      const handle = await open(file, 'r+');
      const { size } = await handle.stat();
      if (size > 0) await handle.write(Buffer.from([1, 2, 3, 4, 5, 6, 7, 8]), 0, 8, 0);
      await handle.close();
    }
    expect((await d.copy(image, [a])).how).toBe('copied');
    await d.checkpoints.inspect('web', REVISION, true);
  });

  it('comes from the next host when the first one sends other bytes than it named', async () => {
    await secondSource();
    a.faults.piece = (data) => Buffer.alloc(data.length);
    const { from } = await b.copy(image, [a, c]);
    expect(from).toBe('c');
    // It was asked anew a few times, and no more.
    expect(b.dialled).toEqual(['a', 'a', 'a', 'c']);
    await b.checkpoints.inspect('web', REVISION, true);
  });

  it('goes on with another host from what the first one gave', async () => {
    await secondSource();
    let pieces = 0;
    a.faults.piece = (data) => {
      if (++pieces > 40) throw new InitlessError('DISK_FULL', 'no room at the source');
      return data;
    };
    expect((await b.copy(image, [a, c])).from).toBe('c');
    expect(b.dialled).toEqual(['a', 'c']);
    // The image and a part of the checkpoint were there.
    expect(c.faults.asked.bytes).toBeLessThan(a.faults.asked.bytes * 2);
    expect(c.faults.asked.exports.every((asked) => !asked.image)).toBe(true);
  });

  it('is asked for again when its host has given up what it had made ready', async () => {
    let dropped = false;
    a.faults.piece = (data) => {
      if (!dropped) {
        dropped = true;
        void a.exports.start();
        throw new InitlessError('NOT_FOUND', 'that part is not ready');
      }
      return data;
    };
    expect((await b.copy(image, [a])).from).toBe('a');
    expect(b.dialled).toEqual(['a', 'a', 'a']);
  });

  it('names every host and why when none gives it, and keeps what has come', async () => {
    await c.stop();
    let pieces = 0;
    a.faults.piece = (data) => {
      if (++pieces > 40) throw new InitlessError('BUSY', 'too much to do');
      return data;
    };
    const error = await failure(b.copy(image, [c, a]));
    expect(error).toMatchObject({ code: 'COPY_FAILED' });
    expect(error?.message).toMatch(/c: .*; a: .*too much to do/);
    expect((await b.parts()).length).toBeGreaterThan(0);
    expect(b.checkpoints.has('web', REVISION)).toBe(false);
  });

  it('is not sought elsewhere when this host has no room for it, and nothing of it stays', async () => {
    await secondSource();
    b.engine.refuse = new InitlessError('DISK_FULL', 'no room here');
    expect(await failure(b.copy(image, [a, c]))).toMatchObject({ code: 'DISK_FULL' });
    expect(b.dialled).toEqual(['a']);
    expect(await b.parts()).toEqual([]);
  });

  it('gets a checkpoint of its own where the other does not fit, of which nothing is fetched', async () => {
    const other = await open_('other', Fingerprint.fromPartial({ ...FINGERPRINT, kernel: '6.2' }));
    const { how, from } = await other.copy(image, [a]);
    expect([how, from, other.made]).toEqual(['made', 'a', [REVISION]]);
    expect(a.faults.asked.exports.map(({ manifest }) => manifest)).toEqual(['']);
    expect(other.revisions.get('web', REVISION).imageId).toBe(image);
  });

  it('is taken from a host with a checkpoint that fits before one is made', async () => {
    const bare = await open_('bare');
    await bare.copy(image, [a], { imageOnly: true });
    const record = bare.revisions.get('web', REVISION);
    await bare.revisions.put({ ...record, problem: undefined });
    expect((await b.copy(image, [bare, a])).from).toBe('a');
    const d = await open_('d');
    expect((await d.copy(image, [bare])).how).toBe('made');
  });

  it('is the image alone where the service cannot be checkpointed, and says why', async () => {
    const problem = { code: 'DUMP_FAILED', message: 'io_uring', nextStep: '', outputTail: [] };
    a.checkpoints.remove('web', []);
    await a.revisions.put({ ...a.revisions.get('web', REVISION), problem });
    const { prepared, how } = await b.copy(image, [a], { imageOnly: true });
    expect([how, prepared.problem, b.made]).toEqual(['image', problem, []]);
    expect((await b.copy(image, [a], { imageOnly: true })).how).toBe('there');
  });

  it('is refused when it is another image than the one that was asked for', async () => {
    const error = await failure(b.copy(`sha256:${'0'.repeat(64)}`, [a]));
    expect(error?.message).toContain('it has the image');
    expect(a.faults.asked.exports).toEqual([]);
  });

  it('is not removed while it is read, and after that it is', async () => {
    const { dir } = await a.checkpoints.use('web', REVISION);
    await b.copy(image, [a]);
    a.checkpoints.remove('web', []);
    await a.checkpoints.sweep(new Set());
    expect(await readFile(path.join(dir, 'spec.json'), 'utf8')).toContain('app');
    a.now = 59_000;
    await a.exports.sweep();
    await a.checkpoints.sweep(new Set());
    await stat(dir);
    a.now = 3_600_000;
    await a.exports.sweep();
    await a.checkpoints.sweep(new Set());
    await expect(stat(dir)).rejects.toThrow('ENOENT');
  });

  it('damaged where it comes from is not taken', async () => {
    const { dir } = await a.checkpoints.use('web', REVISION);
    execFileSync('chmod', ['600', path.join(dir, 'criu/pages-1.img')]);
    await appendFile(path.join(dir, 'criu/pages-1.img'), 'x');
    const { how } = await b.copy(image, [a]);
    expect(how).toBe('made');
    expect(a.checkpoints.has('web', REVISION)).toBe(false);
  });
});

describe("an archive of a checkpoint's tree", () => {
  let folder: string;
  let from: string;
  let to: string;
  let archive: string;
  beforeEach(async () => {
    folder = await mkdtemp(path.join(tmpdir(), 'initless-tree-'));
    [from, to, archive] = ['from', 'to', 'tree.tar'].map((name) => path.join(folder, name)) as [string, string, string];
    execFileSync('sh', ['-c', 'mkdir -p from/rootfs/etc from/volumes to && echo text > from/rootfs/etc/file'], {
      cwd: folder,
    });
  });
  afterEach(() => rm(folder, { recursive: true, force: true }));
  const unpack = async (entries: Manifest['entries']) => failure(unpackTree(archive, to, entries, signal()));

  it('is the same each time', async () => {
    await packTree(from, archive, signal());
    const first = await readFile(archive);
    await packTree(from, archive, signal());
    expect(first.equals(await readFile(archive))).toBe(true);
  });

  it.each([
    ['a file that the manifest does not name', 'echo x > from/rootfs/more'],
    ['a file of another size', 'truncate -s 5G from/rootfs/etc/file'],
    ['a link in place of a folder', 'mv from/rootfs/etc from/rootfs/x && ln -s /etc from/rootfs/etc'],
    ['a device in place of a file', 'rm from/rootfs/etc/file && mknod from/rootfs/etc/file c 1 3'],
  ])('with %s is refused, and nothing of it is written', async (_, change) => {
    const entries = await readTree(from);
    execFileSync('sh', ['-c', change], { cwd: folder });
    await packTree(from, archive, signal());
    expect(await unpack(entries)).toMatchObject({ code: 'BAD_ARCHIVE' });
    expect(await readTree(to)).toEqual([]);
  });

  it.each(['../outside', '/tmp/initless-outside', 'rootfs/../../outside'])(
    'that would write %s is refused',
    async (name) => {
      const entries = await readTree(from);
      await writeFile(path.join(folder, 'payload'), 'payload');
      execFileSync('tar', ['-cPf', archive, '--transform', `s|.*payload|${name}|`, path.join(folder, 'payload')]);
      expect(await unpack(entries)).toMatchObject({ code: 'BAD_ARCHIVE' });
      await expect(stat(path.join(to, name))).rejects.toThrow();
    },
  );

  it('with two members of one name is refused: the second could lie behind a link that the first made', async () => {
    const entries = await readTree(from);
    await packTree(from, archive, signal());
    execFileSync('tar', ['-rf', archive, '-C', from, 'rootfs/etc/file']);
    expect(await unpack(entries)).toMatchObject({ code: 'BAD_ARCHIVE' });
  });

  it('that is no archive is refused', async () => {
    await writeFile(archive, Buffer.alloc(4096, 'x'));
    expect(await unpack(await readTree(from))).toMatchObject({ code: 'BAD_ARCHIVE' });
  });
});

describe('a checkpoint as another host describes it', () => {
  const common = { mode: 0o644, uid: 0, gid: 0 };
  const folderOf = (name: string) => ({ ...common, path: name, type: 'directory' as const });
  const fileOf = (name: string, size = 1) => ({ ...common, path: name, type: 'file' as const, size });
  const part = (name: string, size = 1): TransferPart => ({
    kind: TransferPartKind.TRANSFER_PART_KIND_FILE,
    ...{ name, size, chunks: [] },
  });
  const tree: TransferPart = { kind: TransferPartKind.TRANSFER_PART_KIND_TREE, name: '', size: 1024, chunks: [] };
  const fault = (entries: Manifest['entries'], parts: TransferPart[]) => faultOf({ entries } as Manifest, parts);
  const good = [folderOf('criu'), fileOf('criu/a'), folderOf('rootfs'), fileOf('rootfs/b')];

  it('is taken when every file has a part', () => {
    expect(fault(good, [part('criu/a'), tree])).toBeUndefined();
  });

  it.each([
    ['an entry above its folder', [...good, fileOf('../x')], [part('criu/a'), part('../x'), tree], 'outside'],
    ['an absolute entry', [...good, fileOf('/etc/x')], [part('criu/a'), part('/etc/x'), tree], 'outside'],
    [
      'a file behind a link',
      [...good, { ...common, path: 'l', type: 'link' as const, target: '/' }, fileOf('l/x')],
      [part('criu/a'), part('l/x'), tree],
      'in no folder',
    ],
    ['an entry twice', [...good, fileOf('criu/a')], [part('criu/a'), tree], 'twice'],
    ['a file larger than its entry', good, [part('criu/a', 1e12), tree], 'not the one'],
    ['a part that the manifest does not name', good, [part('criu/a'), part('criu/z'), tree], 'not the one'],
    ['a file without a part', good, [tree], 'missing'],
    ['an archive far larger than what is in it', good, [part('criu/a'), { ...tree, size: 1e12 }], 'more than'],
    ['no archive', good, [part('criu/a')], 'no archive'],
  ])('is refused for %s', (_, entries, parts, why) => {
    expect(fault(entries, parts)).toContain(why);
  });
});
