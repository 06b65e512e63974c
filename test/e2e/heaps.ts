import { type Changes, copyOf, deploy } from './deploy.js';
import { asJson, getJson, type InstanceRow, instances, sleepService, until } from './support.js';

/**
 * Services whose heaps are known byte by byte.
 *
 * A heap is pages of 4 KiB. The page with the key K begins with K in eight bytes, lowest first; each later byte I of it is
 * the lowest byte of I * 167 + (I >> 8) * 59 + 1. Every service has HEAP_MB (64) megabytes that it keeps, with keys from 0 on,
 * and 16 that it can spare. It answers with a list that has a part for each of its heaps:
 *
 * GET /sum      {pages, crc}  CRC-32 of what it keeps, worked out from memory each time
 * GET /check    {wrong}       everything it has is compared with what it must be, small objects too
 * GET /gc       {}            garbage is collected, and free memory given back
 * GET /grow?mb= {dirty}       new memory is looked at, which must be zeros, and filled with pages of new keys; `dirty` pieces
 *                             were not zeros. It is left out where a program cannot see that
 * GET /release  {}            what it can spare, and all that was grown, is given back
 * GET /write?value=, /read    {value}: kept many times over, in memory that is older than the dump
 */
export interface HeapKind {
  /** Folder below `services`. */
  folder: string;
  /** Keys of its config.yaml that are otherwise. */
  changes: Changes;
  /** Megabytes that each of its heaps keeps. */
  heapMb: readonly number[];
}

const FORKED = { HEAP_MB: '16' };

/** All of them, by the name that tests give them. */
export const HEAPS = {
  areas: { folder: 'areas', changes: {}, heapMb: [64] },
  python: { folder: 'heap_python', changes: {}, heapMb: [64] },
  forking: {
    folder: 'heap_python',
    changes: { start_cmd: ['python3', '/forking.py'], env: FORKED },
    // Each of four workers has its parent's and one of its own.
    heapMb: [16, 8, 16, 8, 16, 8, 16, 8],
  },
  go: { folder: 'heap_go', changes: {}, heapMb: [64] },
  node: { folder: 'heap_node', changes: {}, heapMb: [64] },
  'node-jemalloc': { folder: 'heap_node', changes: { env: { LD_PRELOAD: 'libjemalloc.so.2' } }, heapMb: [64] },
  jvm: { folder: 'heap_jvm', changes: {}, heapMb: [64] },
  redis: { folder: 'heap_redis', changes: {}, heapMb: [64] },
} satisfies Record<string, HeapKind>;

/** What `memory` can be set to, but for auto. */
export type Mode = 'mapped' | 'copied' | 'lazy';

/** A mode as it stands in answers of the control plane. */
export function onWire(mode: Mode): string {
  return `MEMORY_MODE_${mode.toUpperCase()}`;
}

/** A heap service that was deployed. */
export interface Deployed {
  name: string;
  url: string;
  kind: HeapKind;
}

/** Deploys a kind of heap service under the name KIND-MODE, unless `changes` name it otherwise. */
export async function deployHeap(
  kind: keyof typeof HEAPS,
  mode: Mode,
  port: number,
  changes: Changes = {},
): Promise<Deployed> {
  const name = String(changes.service_name ?? `${kind}-${mode}`);
  const common = { service_name: name, host_port: port, memory: mode, idle_timeout: 1, ...HEAPS[kind].changes };
  await deploy(await copyOf(HEAPS[kind].folder, { ...common, ...changes }));
  return { name, url: `http://localhost:${port}`, kind: HEAPS[kind] };
}

/** What of a checkpoint is looked at here, as `initless checkpoint inspect -o json` prints it. */
export interface CheckpointRow {
  path: string;
  files: { path: string; size: string }[];
  memory?: {
    mode: string;
    reason: string;
    guarded?: boolean;
    trials?: { mode: string; problem?: { code: string; message: string }; restoreMs?: number }[];
    processes?: { pid: number; mapped?: { areas: number; bytes: string } }[];
  };
}

/** The current checkpoint of a service. */
export function checkpointOf(service: string): Promise<CheckpointRow> {
  return asJson<CheckpointRow>('checkpoint', 'inspect', service);
}

/** One part of an answer. */
export interface Part {
  pages?: number;
  crc?: number;
  wrong?: number;
  dirty?: number;
  value?: string;
}

/**
 * Two restored instances of a service that takes one request at a time, for each to be asked at its own address. Others may
 * be there too.
 */
export async function twoInstances({ name, url }: Deployed): Promise<[InstanceRow, InstanceRow]> {
  await sleepService(name);
  return until(`${name} to have two instances`, async () => {
    await Promise.all([1, 2, 3].map(() => getJson(`${url}/sum`)));
    const [one, other] = (await instances(name)).filter(({ origin }) => origin === 'ORIGIN_RESTORED');
    return one && other && [one, other];
  });
}

/** Bytes. */
export const PAGE = 4096;
const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let rest = byte;
  for (let bit = 0; bit < 8; bit++) rest = rest & 1 ? (rest >>> 1) ^ 0xedb88320 : rest >>> 1;
  return rest;
});

/** CRC-32 of a heap of so many megabytes, from what pages hold. */
export function crcOfHeap(mb: number): number {
  const page = Buffer.from(Array.from({ length: PAGE }, (_, i) => (i * 167 + (i >> 8) * 59 + 1) & 255));
  let crc = 0xffffffff;
  for (let key = 0; key < (mb * 2 ** 20) / PAGE; key++) {
    page.writeBigUInt64LE(BigInt(key));
    for (let i = 0; i < PAGE; i++) crc = (crc >>> 8) ^ (TABLE[(crc ^ (page[i] as number)) & 255] as number);
  }
  return (crc ^ 0xffffffff) >>> 0;
}
