import { chmod, mkdtemp, open, readdir, readFile, rm, stat, truncate } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { PAGE } from '../../agent/memory/model.js';
import {
  copyByExtents,
  digestOf,
  MAX_EXTENT,
  readIndex,
  type SparseIndex,
  SparseWriter,
  verifyMemoryFile,
  writeIndex,
} from '../../agent/memory/sparse.js';

const GIB = 2 ** 30;

describe('a sparse file with an index', () => {
  let root: string;
  let file: string;
  let index: SparseIndex;
  beforeEach(async () => {
    root = await mkdtemp(path.join(tmpdir(), 'initless-sparse-'));
    file = path.join(root, 'mem-1');
    const writer = await SparseWriter.create(file);
    await writer.write(PAGE, Buffer.alloc(2 * PAGE, 1));
    await writer.write(3 * PAGE, Buffer.alloc(PAGE, 2));
    await writer.write(4 * GIB, Buffer.alloc(MAX_EXTENT + PAGE, 3));
    index = { path: 'mem-1', ...(await writer.finish(12 * GIB)) };
  });
  afterEach(() => rm(root, { recursive: true, force: true }));
  const overwrite = async (offset: number, byte: number) => {
    await chmod(file, 0o600);
    const handle = await open(file, 'r+');
    await handle.write(Buffer.from([byte]), 0, 1, offset);
    await handle.close();
  };

  it('lists its data in pieces of bounded size, and takes only their room on the disk', async () => {
    expect(index.extents.map(({ offset, length }) => [offset, length])).toEqual([
      [PAGE, 3 * PAGE],
      [4 * GIB, MAX_EXTENT],
      [4 * GIB + MAX_EXTENT, PAGE],
    ]);
    const { size, blocks } = await stat(file);
    expect(size).toBe(12 * GIB);
    expect(blocks * 512).toBeLessThan(2 * MAX_EXTENT);
  });

  it('is what it was as long as nobody touched it', async () => {
    await expect(verifyMemoryFile(file, index)).resolves.toBeUndefined();
  });

  it('is refused, with its name and the offset, when a byte of its data is another', async () => {
    await overwrite(4 * GIB + MAX_EXTENT + 5, 9);
    await expect(verifyMemoryFile(file, index)).rejects.toThrow(
      `${file} was altered since it was sealed: not its ${PAGE} bytes at offset ${4 * GIB + MAX_EXTENT}`,
    );
  });

  it('is refused, with its name and the offset, when something was written into a hole', async () => {
    await overwrite(5 * GIB, 0);
    await overwrite(9 * GIB + 17, 9);
    await expect(verifyMemoryFile(file, index)).rejects.toMatchObject({
      code: 'CHECKPOINT_DAMAGED',
      subject: file,
      message: `${file} was altered since it was sealed: it was empty at offset ${9 * GIB + 17}`,
    });
    await overwrite(9 * GIB + 17, 0);
    await expect(verifyMemoryFile(file, index)).resolves.toBeUndefined();
  });

  it('is refused when it was cut short, or is gone', async () => {
    await chmod(file, 0o600);
    await truncate(file, 4 * GIB + PAGE);
    await expect(verifyMemoryFile(file, index)).rejects.toThrow(
      `${file} had ${12 * GIB} bytes and has ${4 * GIB + PAGE}`,
    );
    await truncate(file, 12 * GIB);
    await expect(verifyMemoryFile(file, index)).rejects.toThrow(`at offset ${4 * GIB}`);
    await rm(file);
    await expect(verifyMemoryFile(file, index)).rejects.toMatchObject({ code: 'CHECKPOINT_DAMAGED', subject: file });
  });

  it('is copied by its data, into a file that only root may read', async () => {
    const to = path.join(root, 'copy');
    await copyByExtents(file, to, index);
    await expect(verifyMemoryFile(to, index)).resolves.toBeUndefined();
    const { size, blocks, mode } = await stat(to);
    expect(size).toBe(12 * GIB);
    expect(blocks * 512).toBeLessThan(2 * MAX_EXTENT);
    expect(mode & 0o777).toBe(0o400);
  });

  it('is not copied when it is not what it was, and nothing of the copy stays', async () => {
    await overwrite(PAGE, 9);
    await expect(copyByExtents(file, path.join(root, 'copy'), index)).rejects.toThrow(`at offset ${PAGE}`);
    expect(await readdir(root)).toEqual(['mem-1']);
    const stop = AbortSignal.abort(new Error('no longer wanted'));
    await expect(copyByExtents(file, path.join(root, 'copy'), index, stop)).rejects.toThrow('no longer wanted');
    expect(await readdir(root)).toEqual(['mem-1']);
    await expect(copyByExtents(file, file, index)).rejects.toMatchObject({ code: 'EEXIST' });
    expect((await stat(file)).size).toBe(12 * GIB);
  });

  it('has a digest that changes with what it holds, where it holds it, and its size', () => {
    const [first, ...rest] = index.extents as [SparseIndex['extents'][0]];
    const others: SparseIndex[] = [
      { ...index, size: 13 * GIB },
      { ...index, extents: rest },
      { ...index, extents: [{ ...first, offset: 2 * PAGE }, ...rest] },
      {
        ...index,
        extents: [{ ...first, sha256: first.sha256.replace(/^./, (c) => (c === '0' ? '1' : '0')) }, ...rest],
      },
    ];
    expect(new Set([index, ...others].map(digestOf)).size).toBe(5);
    expect(digestOf({ ...index, path: 'elsewhere' })).toBe(digestOf(index));
  });

  it('is read back from its index, and an index that is not right is refused', () => {
    const text = writeIndex([index]);
    expect(readIndex(text, 'extents.json')).toEqual([index]);
    const [first, second] = index.extents as [SparseIndex['extents'][0], SparseIndex['extents'][0]];
    for (const wrong of [
      text.slice(0, -10),
      '{}',
      writeIndex([{ ...index, extents: [second, first] }]),
      writeIndex([{ ...index, size: 4 * GIB }]),
      writeIndex([{ ...index, extents: [{ ...first, offset: 1 }] }]),
      writeIndex([{ ...index, extents: [{ ...first, length: MAX_EXTENT + PAGE }] }]),
    ]) {
      expect(() => readIndex(wrong, 'extents.json')).toThrow(
        expect.objectContaining({ code: 'CHECKPOINT_DAMAGED', subject: 'extents.json' }),
      );
    }
  });

  it('leaves zeros out where they fill whole pieces of 64 KiB, wherever a write begins', async () => {
    const other = path.join(root, 'mem-2');
    const writer = await SparseWriter.create(other);
    const bytes = Buffer.alloc(100 * PAGE);
    bytes.fill(1, 0, PAGE).fill(2, 60 * PAGE, 61 * PAGE);
    await writer.write(7 * PAGE, bytes);
    const { extents } = await writer.finish(200 * PAGE);
    expect(extents.map(({ offset, length }) => [offset / PAGE, length / PAGE])).toEqual([
      [7, 9],
      [64, 16],
      [96, 11],
    ]);
    const read = await readFile(other);
    expect(read.subarray(7 * PAGE, 107 * PAGE).equals(bytes)).toBe(true);
  });
});
