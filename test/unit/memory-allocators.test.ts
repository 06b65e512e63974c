import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type Allocator,
  AllocatorFinder,
  type Found,
  openFile,
  type ProcessFiles,
  recognise,
  verdict,
} from '../../agent/memory/allocators.js';
import { type Mapping, readMaps } from '../../agent/memory/kernel-view.js';
import { elf, type FixtureElf, fileOf } from './memory-elf.js';

const recogniseFixture = async (fixture: FixtureElf, name = '/usr/bin/app') =>
  (await recognise(name, fileOf(elf(fixture)))).allocators;

describe('recognising what manages memory', () => {
  it.each<[string, Allocator, FixtureElf]>([
    ['jemalloc', 'jemalloc', { dynamic: [{ name: 'malloc' }, { name: 'mallctl' }] }],
    ['jemalloc with a prefix', 'jemalloc', { dynamic: [{ name: '_rjem_mallctl' }] }],
    ['jemalloc linked into a program', 'jemalloc', { full: [{ name: 'main' }, { name: 'je_mallctl' }] }],
    ['jemalloc in a stripped program', 'jemalloc', { constants: 'usage\0<jemalloc>: Error in %s\0' }],
    ['V8', 'V8', { dynamic: [{ name: '_ZN2v82V87DisposeEv' }] }],
    ['V8 in a stripped program', 'V8', { constants: 'x\0Ineffective mark-compacts near heap limit\0' }],
    ['tcmalloc', 'tcmalloc', { dynamic: [{ name: 'tc_malloc' }] }],
    ['mimalloc', 'mimalloc', { full: [{ name: 'mi_malloc' }] }],
    ['glibc', 'glibc', { dynamic: [{ name: 'gnu_get_libc_version' }] }],
    ['glibc in a static program', 'glibc', { constants: 'malloc_consolidate(): invalid chunk size\0' }],
    ['a Go program', 'Go', { sections: ['.go.buildinfo'] }],
    ['a Go program without build information', 'Go', { sections: ['.gopclntab'] }],
    ['HotSpot', 'HotSpot', { dynamic: [{ name: 'JNI_CreateJavaVM' }, { name: 'gHotSpotVMStructs' }] }],
    ['CPython', 'CPython', { dynamic: [{ name: 'Py_Initialize' }] }],
    ['Ruby', 'Ruby', { dynamic: [{ name: 'ruby_init' }] }],
    ['PHP', 'PHP', { dynamic: [{ name: 'php_module_startup' }] }],
  ])('knows %s', async (_, allocator, fixture) => {
    expect(await recogniseFixture(fixture)).toEqual([allocator]);
  });

  it.each<[string, Allocator]>([
    ['/usr/lib/x86_64-linux-gnu/libjemalloc.so.2', 'jemalloc'],
    ['/usr/lib/libtcmalloc_minimal.so.4', 'tcmalloc'],
    ['/usr/lib/libmimalloc.so.2.1', 'mimalloc'],
    ['/lib/ld-musl-x86_64.so.1', 'musl'],
  ])('knows %s by its name', async (name, allocator) => {
    expect(await recogniseFixture({}, name)).toEqual([allocator]);
  });

  it('finds a symbol whose name is the end of another one', async () => {
    const both = [{ name: 'not_really_mallctl', defined: false }, { name: 'mallctl' }];
    expect(await recogniseFixture({ dynamic: both })).toEqual(['jemalloc']);
  });

  it('finds several in one file, each once', async () => {
    const fixture = { dynamic: [{ name: 'Py_Initialize' }, { name: 'mi_malloc' }], constants: 'mimalloc: error: x' };
    expect(new Set(await recogniseFixture(fixture))).toEqual(new Set(['CPython', 'mimalloc']));
    expect(await recogniseFixture(fixture)).toHaveLength(2);
  });

  it('does not take a program that only calls an allocator, or speaks of one, for the allocator', async () => {
    expect(await recogniseFixture({ dynamic: [{ name: 'mallctl', defined: false }] })).toEqual([]);
    expect(await recogniseFixture({ dynamic: [{ name: 'mallctlbymib' }, { name: 'xmi_malloc' }] })).toEqual([]);
    expect(await recogniseFixture({ code: '<jemalloc>: ' })).toEqual([]);
    expect((await recognise('/x/libjemalloc.so.2', fileOf(Buffer.from('not a library')))).allocators).toEqual([]);
  });

  it('finds texts across the borders of what is read at once', async () => {
    for (let cut = 1; cut < 12; cut++) {
      const constants = `${'x'.repeat(1024 * 1024 - cut - 64)}<jemalloc>: ${'y'.repeat(5000)}`;
      expect(await recogniseFixture({ constants }), `${cut}`).toEqual(['jemalloc']);
    }
  });

  it('searches all of a program whose table of sections is missing', async () => {
    const bytes = elf({ constants: '<jemalloc>: ' });
    bytes.writeBigUInt64LE(0n, 0x28);
    expect((await recognise('/usr/bin/app', fileOf(bytes))).allocators).toEqual(['jemalloc']);
  });

  it('comes to an end with every damaged file', async () => {
    const whole = elf({
      dynamic: [{ name: 'mallctl' }],
      full: [{ name: 'a' }],
      constants: 'c',
      sections: ['.gopclntab'],
    });
    const damage = fc.array(fc.tuple(fc.nat(whole.length - 1), fc.nat(255)), { maxLength: 12 });
    await fc.assert(
      fc.asyncProperty(damage, fc.nat(whole.length), async (changes, length) => {
        const bytes = Buffer.from(whole);
        for (const [at, value] of changes) bytes[at] = value;
        const { allocators } = await recognise('/usr/bin/app', fileOf(bytes.subarray(0, length)));
        expect(allocators.length).toBeLessThanOrEqual(2);
      }),
      { numRuns: 500, seed: 5 },
    );
  });

  it('says so when a file has more constants than are searched', async () => {
    const bytes = elf({ dynamic: [{ name: 'mi_malloc' }] });
    const table = Number(bytes.readBigUInt64LE(0x28));
    bytes.writeBigUInt64LE(2n ** 40n, table + 2 * 64 + 0x20);
    const recognised = await recognise('/usr/bin/app', fileOf(bytes));
    expect(recognised.allocators).toEqual(['mimalloc']);
    expect(recognised.unknown).toContain('constants');
  });
});

describe('recognising the program that runs this test', () => {
  it('finds V8 in it, and the C library in what it maps', async () => {
    const node = await openFile(process.execPath);
    expect((await recognise(process.execPath, node!)).allocators).toContain('V8');
    await node?.close();
    const libc = (await readMaps(process.pid)).find(({ path }) => /\/(libc\.so|libc-2|ld-musl|libc\.musl)/.test(path));
    const opened = await openFile(libc!.path);
    const { allocators } = await recognise(libc!.path, opened!);
    await opened?.close();
    expect(['glibc', 'musl']).toContain(allocators[0]);
  });

  it.skipIf(process.getuid?.() !== 0)('finds them through /proc, where only root may open mapped files', async () => {
    const { allocators, unknown } = await new AllocatorFinder().find([process.pid], AbortSignal.timeout(20_000));
    expect(allocators.get('V8')).toBe(
      (await readMaps(process.pid)).find(({ path }) => path === allocators.get('V8'))?.path,
    );
    expect(allocators.has('glibc') || allocators.has('musl')).toBe(true);
    expect(unknown).toEqual([]);
  });
});

describe('looking for allocators in processes', () => {
  const mapping = (path: string, inode: bigint, start = inode * 4096n): Mapping => ({
    start,
    end: start + 4096n,
    permissions: 'r-xp',
    offset: 0,
    inode,
    path,
    deleted: false,
  });

  function world(maps: Record<number, Mapping[]>, files: Record<string, FixtureElf | Error>) {
    const opened: string[] = [];
    const fakes: ProcessFiles = {
      maps: async (pid) => maps[pid],
      open: async (_, { path, start }) => {
        const file = files[`${path}@${start}`] ?? files[path];
        opened.push(path);
        if (file instanceof Error) throw file;
        if (file === undefined) return undefined;
        return { ...fileOf(elf(file)), identity: path, close: async () => {} };
      },
    };
    return { finder: new AllocatorFinder(fakes), opened };
  }
  const signal = new AbortController().signal;

  it('adds up what all processes have, and names the file of each', async () => {
    const { finder } = world(
      { 7: [mapping('/bin/node', 1n), mapping('[heap]', 0n)], 8: [mapping('/lib/libjemalloc.so.2', 2n)], 9: [] },
      { '/bin/node': { dynamic: [{ name: '_ZN2v82V87DisposeEv' }] }, '/lib/libjemalloc.so.2': {} },
    );
    const { allocators } = await finder.find([7, 8, 9, 10], signal);
    expect([...allocators]).toEqual([
      ['V8', '/bin/node'],
      ['jemalloc', '/lib/libjemalloc.so.2'],
    ]);
  });

  it('opens no devices, and looks into each file once', async () => {
    const again = [mapping('/bin/app', 1n), mapping('/bin/app', 1n, 99n), mapping('/dev/gpu0', 2n)];
    const { finder, opened } = world({ 7: [...again, mapping('/SYSV00000000', 3n)], 8: again }, { '/bin/app': {} });
    await finder.find([7, 8], signal);
    expect(opened).toEqual(['/bin/app']);
  });

  it('names files that it could not open', async () => {
    const { finder } = world({ 7: [mapping('/bin/app', 1n)] }, { '/bin/app': new Error('EACCES: permission denied') });
    const { unknown } = await finder.find([7], signal);
    expect(unknown).toEqual([{ file: '/bin/app', reason: 'it cannot be read: EACCES: permission denied' }]);
  });

  it('tries another mapping of the same file where one has gone in between', async () => {
    const { finder } = world(
      { 7: [mapping('/bin/app', 1n, 4096n), mapping('/bin/app', 1n, 8192n)] },
      { '/bin/app@4096': new Error('ENOENT'), '/bin/app@8192': { dynamic: [{ name: 'mallctl' }] } },
    );
    const { allocators, unknown } = await finder.find([7], signal);
    expect(allocators.has('jemalloc')).toBe(true);
    expect(unknown).toEqual([]);
  });

  it('stops when told to', async () => {
    const { finder } = world({ 7: [mapping('/bin/app', 1n)] }, { '/bin/app': {} });
    await expect(finder.find([7], AbortSignal.abort(new Error('enough')))).rejects.toThrow('enough');
  });
});

describe('the verdict', () => {
  const found = (...allocators: Allocator[]): Found => ({
    allocators: new Map(allocators.map((allocator) => [allocator, `/lib/${allocator}.so`])),
    unknown: [],
  });

  it.each<[string, Found, boolean, string]>([
    ['glibc', found('glibc'), true, 'with'],
    ['jemalloc', found('glibc', 'jemalloc'), true, 'with'],
    ['Go', found('Go'), true, 'with'],
    ['musl and PHP', found('musl', 'PHP'), true, 'with'],
    ['nothing known', found(), true, 'with'],
    ['Node', found('glibc', 'V8'), false, 'without'],
    ['Node that happened to start under the guard', found('glibc', 'V8'), true, 'without'],
    ['Node with CPython beside it', found('V8', 'glibc', 'CPython'), false, 'without'],
    ['Node with jemalloc', found('V8', 'glibc', 'jemalloc'), false, 'never-mapped'],
    ['Node with musl', found('V8', 'musl'), false, 'never-mapped'],
    ['Node with mimalloc', found('V8', 'glibc', 'mimalloc'), false, 'never-mapped'],
    ['glibc that does not start under the guard', found('glibc'), false, 'never-mapped'],
    ['jemalloc that does not start under the guard', found('jemalloc'), false, 'never-mapped'],
  ])('for %s', (_, allocators, startsGuarded, guard) => {
    expect(verdict(allocators, startsGuarded).guard).toBe(guard);
  });

  it('does not leave V8 unguarded beside a library that could not be looked into', () => {
    const dark = { ...found('V8', 'glibc'), unknown: [{ file: '/lib/addon.node', reason: 'it cannot be read' }] };
    expect(verdict(dark, false)).toMatchObject({
      guard: 'never-mapped',
      reason: expect.stringContaining('/lib/addon.node'),
    });
    const other = { ...found('glibc'), unknown: dark.unknown };
    expect(verdict(other, true).guard).toBe('with');
  });

  it('names the files that it is about', () => {
    expect(verdict(found('V8', 'jemalloc'), false).reason).toMatch(/\/lib\/V8\.so.*\/lib\/jemalloc\.so/);
    expect(verdict(found('glibc', 'CPython'), true).reason).toBe(
      'its memory is managed by glibc and CPython, and it starts under the guard',
    );
  });
});
