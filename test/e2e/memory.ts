import { expect } from 'vitest';
import { crcOfHeap, type HeapKind, type Mode, PAGE, type Part } from './heaps.js';
import { getJson } from './support.js';

/** What must be true of the services in `heaps.ts`, however their memory was filled. */

/** Every heap is what it was at the dump, read from its beginning to its end. */
export async function expectWholeHeap(url: string, { heapMb }: Pick<HeapKind, 'heapMb'>): Promise<void> {
  const parts = await getJson<Part[]>(`${url}/sum`);
  expect(parts).toEqual(heapMb.map((mb) => ({ pages: (mb * 2 ** 20) / PAGE, crc: crcOfHeap(mb) })));
}

/** Nothing that a service has is other than it must be. */
export async function expectNothingWrong(url: string): Promise<void> {
  const parts = await getJson<Part[]>(`${url}/check`);
  expect(parts.length).toBeGreaterThan(0);
  expect(parts).toEqual(parts.map(() => ({ wrong: 0 })));
}

/**
 * Has an instance collect, grow and release memory in turns, so that memory that is older than the dump is given back and
 * taken again, and looks at all of it in between.
 */
export async function expectRightAllAlong(url: string, kind: Pick<HeapKind, 'heapMb'>): Promise<void> {
  await expectWholeHeap(url, kind);
  await expectNothingWrong(url);
  await getJson(`${url}/gc`);
  await expectNothingWrong(url);
  await expectFreshMemory(url, 8);
  await getJson(`${url}/release`);
  await expectWholeHeap(url, kind);
  // What was spared is older than the dump: this takes it again.
  await expectFreshMemory(url, 24);
  await expectFreshMemory(url, 4);
  await getJson(`${url}/release`);
  await getJson(`${url}/gc`);
  await expectNothingWrong(url);
  await expectWholeHeap(url, kind);
}

async function expectFreshMemory(url: string, mb: number): Promise<void> {
  const parts = await getJson<Part[]>(`${url}/grow?mb=${mb}`);
  expect(parts.filter(({ dirty = 0 }) => dirty !== 0)).toEqual([]);
  await expectNothingWrong(url);
}

/** What one operation of the service "areas" came to. */
interface Operation {
  op: string;
  /** Name of the errno with which it was refused; empty: it was done. */
  error: string;
  /** Pages that are not what Linux promises. */
  wrong: number;
}

/** What may be refused of any memory: it is not for this kind, or the machine has it switched off. */
const ALWAYS = /^madvise (REMOVE|COLLAPSE|HUGEPAGE|MERGEABLE)$|^mlock$/;
/** Whether the kernel makes one area of alike neighbours is its own affair; after a lazy restore it does not. */
const MERGED = 'mremap, merged neighbours longer';
/** What is refused of mapped memory, and how: most of it by the guard. */
const MAPPED = [
  { ops: /^madvise (DONTNEED|DONTNEED_LOCKED|GUARD_INSTALL)\b/, error: 'EINVAL' },
  { ops: /^mremap, /, error: 'ENOMEM' },
  // The kernel itself does: they are for memory without a file.
  { ops: /^madvise (FREE|WIPEONFORK)$/, error: 'EINVAL' },
];

/**
 * Has an instance of "areas" do to memory that is older than the dump all that can be done to it. An operation that is done
 * leaves what Linux promises, byte by byte; one that is refused, nothing; and none is refused without need.
 */
export async function expectOperationsRight(url: string, mode: Mode): Promise<void> {
  const done = await getJson<Operation[]>(`${url}/operations`);
  expect(done.length).toBeGreaterThan(40);
  expect(done.filter(({ wrong }) => wrong !== 0)).toEqual([]);
  for (const { op, error } of done) {
    if (ALWAYS.test(op) || (op === MERGED && error === 'EFAULT')) continue;
    const refused = mode === 'mapped' ? MAPPED.find(({ ops }) => ops.test(op)) : undefined;
    expect({ op, error }).toEqual({ op, error: refused?.error ?? '' });
  }
  await expectNothingWrong(url);
}
