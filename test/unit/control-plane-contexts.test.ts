import { execFile } from 'node:child_process';
import {
  chmod,
  link,
  mkdir,
  mkdtemp,
  readdir,
  readlink,
  rm,
  symlink,
  truncate,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { extract, pack } from 'tar-stream';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ContextStore } from '../../control-plane/contexts/context-store.js';
import { packFolder, readFolder } from '../../control-plane/contexts/folder.js';
import { packTree, type TreeDigests } from '../../control-plane/contexts/pack.js';
import { leadsOutside } from '../../control-plane/contexts/paths.js';
import type { Tree } from '../../control-plane/contexts/tree.js';
import { type ErrorCode, toInitlessError } from '../../proto/rpc/errors.js';

const run = promisify(execFile);
const LEAST = { 'config.yaml': 'service_name: a\n', Dockerfile: 'FROM scratch\n' };

let root: string;
let folder: string;
let store: ContextStore;
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'initless-contexts-'));
  folder = join(root, 'service');
  store = await ContextStore.open(join(root, 'contexts'));
  await write(folder, LEAST);
});
afterEach(() => rm(root, { recursive: true }));

async function write(into: string, files: Record<string, string>): Promise<void> {
  for (const [path, text] of Object.entries(files)) {
    await mkdir(dirname(join(into, path)), { recursive: true });
    await writeFile(join(into, path), text);
  }
}

async function digests(tree: Tree): Promise<TreeDigests> {
  let made: TreeDigests | undefined;
  for await (const _ of packTree(tree, (digest) => {
    made = digest;
  }));
  return made!;
}

async function* chunked(bytes: Uint8Array, size = 1_000): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

async function collect(pieces: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const all: Uint8Array[] = [];
  for await (const piece of pieces) all.push(piece);
  return Buffer.concat(all);
}

type Header = Parameters<ReturnType<typeof pack>['entry']>[0];

/** An archive with these entries after the least there must be. */
async function archive(...entries: (Header & { body?: string })[]): Promise<Buffer> {
  const tar = pack();
  for (const [name, body] of Object.entries(LEAST)) tar.entry({ name }, body);
  for (const { body, ...header } of entries) tar.entry(header, body ?? '');
  tar.finalize();
  return await collect(tar as AsyncIterable<Buffer>);
}

async function upload(bytes: Uint8Array, size?: number): Promise<TreeDigests> {
  const staged = await store.stage('the archive', chunked(bytes, size));
  try {
    return await store.put(staged.tree);
  } finally {
    await staged.dispose();
  }
}

async function refusal(work: Promise<unknown>): Promise<{ code: ErrorCode; message: string }> {
  return await work.then(
    () => ({ code: 'INTERNAL' as const, message: 'it was taken' }),
    (error: unknown) => toInitlessError(error),
  );
}

describe('a build context', () => {
  it('is the same whatever times, owners and order its folder has, and however it came', async () => {
    await write(folder, { 'b/deep/file.txt': 'x', 'a.txt': 'y', [`long/${'n'.repeat(120)}`]: 'z' });
    await mkdir(join(folder, 'empty'));
    await symlink('a.txt', join(folder, 'link'));
    await chmod(join(folder, 'a.txt'), 0o4751);
    const first = await digests(await readFolder(folder));

    const copy = join(root, 'copy');
    await run('cp', ['-a', folder, copy]);
    await utimes(join(copy, 'a.txt'), 1, 1);
    await chmod(join(copy, 'a.txt'), 0o700);
    await chmod(join(copy, 'b'), 0o700);
    expect(await digests(await readFolder(copy))).toEqual(first);

    const plain = await run('tar', ['-C', folder, '-c', '.'], { encoding: 'buffer', maxBuffer: 1e8 });
    expect(await upload(plain.stdout)).toEqual(first);
    const reversed = (await readdir(folder)).sort().reverse();
    const gnu = await run('tar', ['--format=gnu', '-C', folder, '-c', ...reversed], {
      encoding: 'buffer',
      maxBuffer: 1e8,
    });
    expect(await upload(gnu.stdout, 7)).toEqual(first);
    expect(await upload(await collect(packFolder(folder)), 65_536)).toEqual(first);

    await chmod(join(folder, 'a.txt'), 0o644);
    expect((await digests(await readFolder(folder))).context).not.toBe(first.context);
  });

  it('is known apart from its config.yaml too', async () => {
    const first = await digests(await readFolder(folder));
    await writeFile(join(folder, 'config.yaml'), 'service_name: a\nidle_timeout: 1\n');
    const second = await digests(await readFolder(folder));
    expect(second.context).not.toBe(first.context);
    expect(second.content).toBe(first.content);
    await writeFile(join(folder, 'Dockerfile'), 'FROM scratch\nENV A=1\n');
    expect((await digests(await readFolder(folder))).content).not.toBe(first.content);
  });

  it('honours .dockerignore, but keeps its configuration and its Dockerfile', async () => {
    await write(folder, {
      '.dockerignore': '# all of this\n*\n!src\nsrc/*.log\n',
      'src/app.py': '1',
      'src/debug.log': '2',
      'node_modules/x/index.js': '3',
    });
    const { entries } = await readFolder(folder);
    const paths = ['Dockerfile', 'config.yaml', 'src', 'src/app.py'];
    expect(entries.map((entry) => entry.path)).toEqual(paths);
    const plain = await run('tar', ['-C', folder, '-c', '.'], { encoding: 'buffer' });
    const staged = await store.stage('x', chunked(plain.stdout));
    expect(staged.tree.entries.map((entry) => entry.path)).toEqual(paths);
    await staged.dispose();
  });

  it('is not disturbed by what .dockerignore leaves out: sockets, links to elsewhere', async () => {
    await write(folder, { '.dockerignore': 'run\n' });
    await mkdir(join(folder, 'run'));
    await symlink('/etc/passwd', join(folder, 'run', 'link'));
    await run('mkfifo', [join(folder, 'run', 'pipe')]);
    expect((await readFolder(folder)).entries.map((entry) => entry.path)).toEqual([
      '.dockerignore',
      'Dockerfile',
      'config.yaml',
    ]);
  });

  it('names the line of a .dockerignore pattern that cannot be read', async () => {
    await write(folder, { '.dockerignore': 'a\n[b\n' });
    const { code, message } = await refusal(readFolder(folder));
    expect(code).toBe('BAD_CONFIG');
    expect(message).toContain('.dockerignore:2');
  });

  it('takes a dockerfile in lower case when there is no other', async () => {
    await rm(join(folder, 'Dockerfile'));
    expect((await refusal(readFolder(folder))).code).toBe('NO_DOCKERFILE');
    await write(folder, { dockerfile: 'FROM scratch\n' });
    expect((await readFolder(folder)).dockerfile).toBe('dockerfile');
    await write(folder, { Dockerfile: 'FROM scratch\n' });
    expect((await readFolder(folder)).dockerfile).toBe('Dockerfile');
  });

  it('needs a config.yaml, and a folder', async () => {
    await rm(join(folder, 'config.yaml'));
    expect((await refusal(readFolder(folder))).code).toBe('BAD_CONFIG');
    expect((await refusal(readFolder(join(root, 'missing')))).code).toBe('NOT_FOUND');
  });

  it('of a folder refuses a link to elsewhere and a pipe', async () => {
    await symlink('../../etc/passwd', join(folder, 'link'));
    expect((await refusal(readFolder(folder))).message).toContain('leads outside');
    await rm(join(folder, 'link'));
    await run('mkfifo', [join(folder, 'pipe')]);
    expect((await refusal(readFolder(folder))).message).toContain('a pipe');
  });

  it('that is given up halfway leaves no file open', async () => {
    await write(folder, { big: 'x'.repeat(2_000_000) });
    const open = async () => {
      const fds = await readdir('/proc/self/fd');
      const targets = await Promise.all(fds.map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => '')));
      return targets.filter((target) => target.startsWith(folder));
    };
    for (let round = 0; round < 5; round++) {
      for await (const piece of packFolder(folder)) {
        if (piece.length > 10_000) break;
      }
    }
    expect(await open()).toEqual([]);
  });

  it('is refused when a file changes while it is read', async () => {
    await write(folder, { big: 'x'.repeat(200_000) });
    const tree = await readFolder(folder);
    await truncate(join(folder, 'big'), 100);
    expect((await refusal(store.put(tree))).code).toBe('BUSY');
    expect(await store.list()).toEqual([]);
  });
});

describe('an uploaded archive', () => {
  it.each<[string, Header & { body?: string }, string]>([
    ['an absolute path', { name: '/etc/passwd' }, 'absolute path'],
    ['..', { name: 'a/../../b' }, '".."'],
    ['.. at the front', { name: '../b' }, '".."'],
    ['a control character', { name: 'a\u0007b' }, 'control character'],
    ['a line break', { name: 'a\nb' }, 'control character'],
    ['a very long name', { name: `x/${'n'.repeat(300)}` }, '255 bytes'],
    ['a very long path', { name: `${'d/'.repeat(2_100)}f` }, '4096 bytes'],
    ['a name that is not UTF-8', { name: 'a\uFFFDb' }, 'UTF-8'],
    ['a link to an absolute path', { name: 'l', type: 'symlink', linkname: '/etc/passwd' }, 'leads outside'],
    ['a link that climbs out', { name: 'a/l', type: 'symlink', linkname: '../../x' }, 'leads outside'],
    ['a hard link to nothing', { name: 'h', type: 'link', linkname: '/etc/passwd' }, 'hard link'],
    ['a device', { name: 'd', type: 'character-device', devmajor: 1, devminor: 3 }, 'character-device'],
    ['a disk', { name: 'd', type: 'block-device', devmajor: 8, devminor: 0 }, 'block-device'],
    ['a fifo', { name: 'f', type: 'fifo' }, 'fifo'],
    ['an entry twice', { name: './Dockerfile' }, 'twice'],
    ['a file below a file', { name: 'Dockerfile/x' }, 'no folder'],
  ])('with %s is refused, and nothing is left of it', async (_what, entry, fault) => {
    const error = await refusal(upload(await archive(entry)));
    expect(error.code).toBe('BAD_ARCHIVE');
    expect(error.message).toContain(fault);
    expect(error.message).not.toMatch(/\p{Cc}/u);
    expect(await readdir(join(root, 'contexts'))).toEqual([]);
    expect((await readdir(root)).sort()).toEqual(['contexts', 'service']);
  });

  it('with a file below a link is refused', async () => {
    const bytes = await archive({ name: 'd', type: 'symlink', linkname: '.' }, { name: 'd/x', body: '1' });
    expect((await refusal(upload(bytes))).message).toContain('no folder');
  });

  it('may hold hard links, which become files', async () => {
    const bytes = await archive({ name: 'a', body: 'same' }, { name: 'b', type: 'link', linkname: 'a' });
    await writeFile(join(folder, 'a'), 'same');
    await link(join(folder, 'a'), join(folder, 'b'));
    expect(await upload(bytes)).toEqual(await digests(await readFolder(folder)));
  });

  it.each([
    ['that is empty', Buffer.alloc(0), 'empty'],
    ['that is compressed', Buffer.from('1f8b0800000000000003', 'hex'), 'gzip'],
    ['that is text', Buffer.from('hello '.repeat(500)), 'not a whole tar'],
    [
      'of random bytes',
      Buffer.from(Array.from({ length: 4_096 }, (_, n) => (n * 7_919 + 13) % 251)),
      'not a whole tar',
    ],
  ])('%s is refused', async (_what, bytes, fault) => {
    const error = await refusal(upload(bytes));
    expect(error.code).toBe('BAD_ARCHIVE');
    expect(error.message).toContain(fault);
  });

  it('that was cut is refused at every place', async () => {
    const whole = await archive({ name: 'app.py', body: 'x'.repeat(700) });
    for (const length of [100, 512, 600, 1_500, 2_100, 2_900]) {
      expect((await refusal(upload(whole.subarray(0, length)))).code).toMatch(/BAD_ARCHIVE|BAD_CONFIG|NO_DOCKERFILE/);
    }
  });

  it('that claims more than 1 GiB is refused before it is read', async () => {
    const tar = await archive();
    const header = Buffer.alloc(512);
    header.write('big', 0);
    header.write('0000644\0', 100);
    header.write('0000000\0', 108);
    header.write('0000000\0', 116);
    header.write('20000000000\0', 124); // 2 GiB, in octal digits
    header.write('00000000000\0', 136);
    header.write('        ', 148);
    header.write('0', 156);
    header.write('ustar\x0000', 257);
    const sum = header.reduce((total, byte) => total + byte, 0);
    header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
    const error = await refusal(
      upload(Buffer.concat([tar.subarray(0, tar.length - 1_024), header, Buffer.alloc(512)])),
    );
    expect(error.code).toBe('TOO_LARGE');
  });

  it('with more than 100,000 entries is refused', { timeout: 60_000 }, async () => {
    const one = await archive({ name: 'abcdefgh', type: 'directory' });
    const header = one.subarray(one.length - 1_536, one.length - 1_024);
    async function* many(): AsyncGenerator<Uint8Array> {
      for (let block = 0; block < 101; block++) yield Buffer.concat(Array.from({ length: 1_000 }, () => header));
    }
    const error = await refusal(store.stage('x', many()));
    expect(error.code).toBe('TOO_LARGE');
    expect(error.message).toContain('100000 entries');
  });

  it('whose sender gives up leaves nothing', async () => {
    const bytes = await archive();
    async function* broken(): AsyncGenerator<Uint8Array> {
      yield bytes.subarray(0, 700);
      throw new Error('gone');
    }
    await refusal(store.stage('x', broken()));
    expect(await readdir(join(root, 'contexts'))).toEqual([]);
  });
});

describe('links', () => {
  it.each<[string, Record<string, string>, boolean]>([
    ['l', { l: 'a/b' }, false],
    ['l', { l: '..' }, true],
    ['a/l', { 'a/l': '..' }, false],
    ['a/l', { 'a/l': '../..' }, true],
    ['l', { l: '/x' }, true],
    ['x', { 'a/b/d': '../..', x: 'a/b/d/../etc' }, true],
    ['x', { d: 'deep/er', x: 'd/../..' }, false],
    ['x', { d: 'deep', x: 'd/../..' }, true],
    ['x', { x: 'y', y: 'x' }, false],
    ['x', { x: 'y', y: '../z' }, true],
  ])('%s of %j: leads outside is %s', (path, links, outside) => {
    expect(leadsOutside(path, new Map(Object.entries(links)))).toBe(outside);
  });
});

describe('the store of contexts', () => {
  it('gives back what was put, in pieces of 64 KiB, and only what is referred to stays', async () => {
    await write(folder, { big: 'x'.repeat(300_000) });
    const { context } = await store.put(await readFolder(folder));
    const pieces: Buffer[] = [];
    for await (const piece of store.read(context)) pieces.push(piece);
    expect(Math.max(...pieces.map((piece) => piece.length))).toBeLessThanOrEqual(65_536);
    const names: string[] = [];
    const reader = extract();
    reader.on('entry', (header, stream, next) => {
      names.push(header.name);
      stream.on('end', next);
      stream.resume();
    });
    const done = new Promise<void>((resolve) => reader.on('finish', () => resolve()));
    reader.end(Buffer.concat(pieces));
    await done;
    expect(names).toEqual(['Dockerfile', 'big', 'config.yaml']);
    await store.keepOnly(new Set([context]));
    expect(await store.list()).toEqual([context]);
    await store.keepOnly(new Set());
    expect(await store.list()).toEqual([]);
    expect((await refusal(collect(store.read(context)))).code).toBe('NOT_FOUND');
    expect((await refusal(collect(store.read('sha256:../../etc/passwd')))).code).toBe('BAD_REQUEST');
  });

  it('notices an archive that was altered, and removes what a crash left', async () => {
    const { context } = await store.put(await readFolder(folder));
    const path = join(root, 'contexts', `${context.slice(7)}.tar`);
    await writeFile(path, 'altered');
    expect((await refusal(collect(store.read(context)))).code).toBe('STORE_DAMAGED');
    await writeFile(join(root, 'contexts', '.incomplete-1'), 'half');
    await ContextStore.open(join(root, 'contexts'));
    expect(await readdir(join(root, 'contexts'))).toEqual([`${context.slice(7)}.tar`]);
  });
});
