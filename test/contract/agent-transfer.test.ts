import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, open, readFile, rm, stat, symlink, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { readTree } from '../../agent/checkpoint/tree.js';
import { pack, unpack } from '../../agent/transfer/archive.js';
import { CHUNK, chunksOf, sha256 } from '../../agent/transfer/chunks.js';
import { fetchPart } from '../../agent/transfer/fetching.js';
import { Rate } from '../../agent/transfer/rate.js';
import { TransferService } from '../../agent/transfer/transfer-service.js';
import {
  type FetchPartRequest,
  RevisionPart,
  TransferServiceDefinition,
} from '../../proto/gen/initless/v1/transfer.js';
import { connect, createRpcClient } from '../../proto/rpc/client.js';
import { fromGrpcError, InitlessError, toInitlessError } from '../../proto/rpc/errors.js';
import { createRpcServer, type RpcServer } from '../../proto/rpc/server.js';

const IMAGE = 'sha256:abc';
const signal = () => new AbortController().signal;
const codeOf = (work: Promise<unknown>) =>
  work.then(
    () => 'none',
    (error: unknown) => (error instanceof InitlessError ? error : fromGrpcError(error, 'test')).code,
  );

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'initless-transfer-'));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

describe('a part that is fetched from another agent', () => {
  const content = randomBytes(3 * CHUNK + 1_234);
  let server: RpcServer;
  let channel: ReturnType<typeof connect>;
  let client: ReturnType<typeof createRpcClient<typeof TransferServiceDefinition>>;
  let asked: FetchPartRequest[];
  let released: number;
  let save: () => AsyncIterable<Buffer>;
  const rate = new Rate();

  beforeEach(async () => {
    asked = [];
    released = 0;
    save = () => Readable.from([content.subarray(0, 700_000), content.subarray(700_000)]);
    const dir = join(folder, 'checkpoint');
    await mkdir(dir);
    await writeFile(join(dir, 'file'), 'text');
    const service = new TransferService({
      docker: { save: async () => save() as Readable },
      checkpoints: {
        manifestText: async () => 'manifest',
        pin: () => ({ dir, release: () => (released += 1) }),
      },
      revisions: {
        get: (name: string) => {
          if (name !== 'web') throw new InitlessError('NOT_FOUND', 'not built here');
          return { imageId: IMAGE } as ReturnType<(typeof TransferService.prototype)['describeRevision']> & never;
        },
      },
      rate,
      log: pino({ level: 'silent' }),
    });
    server = createRpcServer(['initless.v1.TransferService'], () => {});
    server.add(TransferServiceDefinition, {
      describeRevision: (request) => service.describeRevision(request),
      fetchPart: (request, context) => {
        asked.push(request);
        return service.fetchPart(request, context);
      },
    });
    const port = await server.listen('127.0.0.1:0');
    channel = connect(`127.0.0.1:${port}`);
    client = createRpcClient(TransferServiceDefinition, channel);
  });
  afterEach(async () => {
    channel.close();
    await server.stop(100);
  });

  const wanted = { service: 'web', revision: '1', part: RevisionPart.REVISION_PART_IMAGE, version: IMAGE };
  const target = () => join(folder, 'staged/image.tar');
  const fetch = (onBytes: (bytes: number) => void = () => {}, stop = signal()) =>
    fetchPart(client, wanted, target(), onBytes, stop);

  it('arrives whole', async () => {
    await fetch();
    expect(content.equals(await readFile(target()))).toBe(true);
    await fetch();
    expect(asked).toHaveLength(1);
  });

  it('goes on after a cut with the chunks that are there', async () => {
    const stop = new AbortController();
    await expect(fetch((bytes) => bytes >= 2 * CHUNK && stop.abort(new Error('cut')), stop.signal)).rejects.toThrow();
    const before = (await stat(`${target()}.part`)).size;
    expect(before).toBeGreaterThanOrEqual(2 * CHUNK);
    // As after a crash in the middle of a write.
    await truncate(`${target()}.part`, 2 * CHUNK + 5);
    await fetch();
    expect(asked.map(({ offset }) => offset)).toEqual([0, 2 * CHUNK]);
    expect(content.equals(await readFile(target()))).toBe(true);
  });

  it('that is not what was described is refused', async () => {
    expect(await codeOf(fetchPart(client, { ...wanted, version: 'sha256:other' }, target(), () => {}, signal()))).toBe(
      'BUSY',
    );
    expect(await codeOf(fetchPart(client, { ...wanted, service: 'x' }, target(), () => {}, signal()))).toBe(
      'NOT_FOUND',
    );
  });

  it('whose bytes do not have their digest is not taken', async () => {
    const lying = {
      fetchPart: async function* () {
        yield { data: Buffer.from('a'), sha256: sha256(Buffer.from('b')) };
      },
    } as unknown as typeof client;
    expect(await codeOf(fetchPart(lying, wanted, target(), () => {}, signal()))).toBe('COPY_FAILED');
    await expect(stat(target())).rejects.toThrow();
  });

  it('is not given to more than a few at a time, and what was pinned for it is released', async () => {
    let go = () => {};
    const held = new Promise<void>((resolve) => {
      go = resolve;
    });
    save = async function* () {
      await held;
      yield content;
    };
    const files = [1, 2, 3, 4, 5].map((n) => join(folder, `staged/${n}.tar`));
    const all = files.map((file) => fetchPart(client, wanted, file, () => {}, signal()));
    const codes = Promise.all(all.map(codeOf));
    setTimeout(() => go(), 500);
    expect((await codes).filter((code) => code === 'EXHAUSTED')).toHaveLength(1);
    const version = sha256(Buffer.from('manifest')).toString('hex');
    const part = RevisionPart.REVISION_PART_CHECKPOINT;
    await fetchPart(client, { ...wanted, part, version }, join(folder, 'staged/c.tar'), () => {}, signal());
    expect(released).toBe(1);
  });
});

describe('an archive of a checkpoint', () => {
  async function make(): Promise<string> {
    const dir = join(folder, 'from');
    await mkdir(join(dir, 'rootfs/sub'), { recursive: true });
    await writeFile(join(dir, 'rootfs/sub/file'), 'content', { mode: 0o640 });
    await symlink('../file', join(dir, 'rootfs/link'));
    execFileSync('mknod', [join(dir, 'rootfs/whiteout'), 'c', '0', '0']);
    execFileSync('chown', ['12:34', join(dir, 'rootfs/sub/file')]);
    await mkdir(join(dir, 'memory'));
    const memory = await open(join(dir, 'memory/1'), 'w');
    await memory.truncate(64 * 2 ** 20);
    await memory.write(Buffer.alloc(4_096, 7), 0, 4_096, 32 * 2 ** 20);
    await memory.close();
    return dir;
  }

  async function packed(dir: string): Promise<string> {
    const file = join(folder, `${Math.random()}.tar`);
    const pieces: Buffer[] = [];
    for await (const piece of pack(dir, signal())) pieces.push(piece as Buffer);
    await writeFile(file, Buffer.concat(pieces));
    return file;
  }

  it('keeps whiteouts, links, owners, modes and holes, and is small', async () => {
    const from = await make();
    const entries = await readTree(from);
    const file = await packed(from);
    expect((await stat(file)).size).toBeLessThan(200_000);
    const to = join(folder, 'to');
    await mkdir(to);
    await unpack(file, to, entries, [], signal());
    expect(await readTree(to)).toEqual(entries);
    const memory = await stat(join(to, 'memory/1'));
    expect(memory.size).toBe(64 * 2 ** 20);
    expect(memory.blocks * 512).toBeLessThan(2 ** 20);
  });

  it('is the same each time', async () => {
    const from = await make();
    const [first, second] = [await readFile(await packed(from)), await readFile(await packed(from))];
    expect(first.equals(second)).toBe(true);
  });

  it('with something in it that its manifest does not name is not unpacked', async () => {
    const from = await make();
    const entries = (await readTree(from)).filter((entry) => entry.path !== 'rootfs/link');
    const to = join(folder, 'to');
    await mkdir(to);
    const failure = await unpack(await packed(from), to, entries, [], signal()).catch(toInitlessError);
    expect(failure).toMatchObject({ code: 'COPY_FAILED', message: expect.stringContaining('rootfs/link') });
    expect(await readTree(to)).toEqual([]);
  });
});

describe('chunks', () => {
  it.each([0, CHUNK, 3 * CHUNK])(
    'from %s on hold the rest of the stream, each but the last of one size',
    async (offset) => {
      const content = randomBytes(3 * CHUNK + 17);
      const chunks: Buffer[] = [];
      for await (const chunk of chunksOf(
        Readable.from([content.subarray(0, 5), content.subarray(5, CHUNK), content.subarray(CHUNK)]),
        offset,
      )) {
        chunks.push(chunk);
      }
      expect(Buffer.concat(chunks).equals(content.subarray(offset))).toBe(true);
      expect(chunks.slice(0, -1).every((chunk) => chunk.length === CHUNK)).toBe(true);
    },
  );
});

describe('a rate', () => {
  it('lets a first piece through at once, and makes the next ones wait in turn', async () => {
    const rate = new Rate();
    rate.set(1_000_000);
    const order: number[] = [];
    await Promise.all(
      [1, 2, 3].map(async (n) => {
        await rate.take(50_000, signal());
        order.push(n);
      }),
    );
    expect(order).toEqual([1, 2, 3]);
    const stop = new AbortController();
    const waiting = rate.take(10_000_000, stop.signal);
    stop.abort(new Error('enough'));
    await expect(waiting).rejects.toThrow('enough');
  });
});
