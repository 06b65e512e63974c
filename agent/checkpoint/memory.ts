import { rename, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import {
  type CheckpointMemory,
  MemoryMode,
  type MemoryShare,
  type MemoryTrial,
  type ProcessMemory,
  type ServiceConfig,
} from '../../proto/gen/initless/v1/types.js';
import { withDeadline } from '../../proto/rpc/deadline.js';
import { InitlessError, toInitlessError } from '../../proto/rpc/errors.js';
import type { Verdict } from '../memory/allocators.js';
import { isGuarded } from '../memory/guard.js';
import { PAGE } from '../memory/model.js';
import { wantedFiles } from '../memory/prefetch.js';
import { type RewrittenProcess, rewriteDump } from '../memory/rewrite.js';
import { type SparseIndex, writeIndex } from '../memory/sparse.js';
import { type TouchedFile, writeTouched } from '../memory/touched.js';
import type { OciSpec } from '../runtime/spec.js';
import { EXTENTS, IMAGES, LAYER, MEMORY, TOUCHED } from './manifest.js';
import { chooseMode, modesToTry, nameOf } from './modes.js';
import type { RevisionRecord } from './revisions.js';
import type { Progress } from './start.js';
import { bytesIn } from './tree.js';
import { type TrialParts, type TrialResult, tryMode } from './trial.js';

/** A service that was dumped into a checkpoint's folder. */
export interface Dumped {
  config: ServiceConfig;
  record: RevisionRecord;
  /** Folder of the checkpoint that is being made. */
  dir: string;
  /** Specification that it was started with. */
  spec: OciSpec;
  /** Whether its memory may be mapped. Undefined: another mode is configured. */
  verdict: Verdict | undefined;
}

/** Folder, beside that of CRIU's images, of the same rewritten for mapped memory, until one of the two is taken. */
const REWRITTEN = 'rewritten';
/** Bound on rewriting a dump: that is copying it, at 100 MB/s or more. */
const REWRITE_TIMEOUT_MS = 300_000;
const MAPPED = MemoryMode.MEMORY_MODE_MAPPED;

/**
 * Finds the best way to fill the memory of instances, and leaves in the checkpoint's folder what that way needs.
 * Errors: RESTORE_FAILED when no mode is right, DISK_FULL and others of the host, the signal's reason.
 */
export async function settleMemory(
  parts: TrialParts,
  { config, record, dir, spec, verdict }: Dumped,
  progress: Progress,
  signal: AbortSignal,
): Promise<CheckpointMemory> {
  const dump = path.join(dir, IMAGES);
  const rewritten = path.join(dir, REWRITTEN);
  const layer = path.join(dir, MEMORY);
  const processes = verdict && verdict.guard !== 'never-mapped' ? await rewrite(dir, progress, signal) : undefined;
  const mapped = processes?.some(({ index }) => index !== undefined)
    ? processes.reduce((sum, process) => sum + process.mapped.bytes, 0)
    : undefined;
  const facts = { wanted: config.memory, verdict, bytes: await bytesIn(dump), mapped };
  const lowers = [path.join(dir, LAYER), ...record.layers];
  const results: TrialResult[] = [];
  for (const mode of modesToTry(facts)) {
    progress('trial', `restoring it with its memory ${nameOf(mode)}`);
    const byMode = mode === MAPPED ? { images: rewritten, lowers: [layer, ...lowers] } : { images: dump, lowers };
    const tried = { mode, config, spec, hostname: record.hostname, dir, dump, ...byMode };
    let result = await tryMode(parts, tried, progress, signal);
    // As a restore has: a busy host is not to decide how a revision is served.
    if (result.trial.problem) result = await tryMode(parts, tried, progress, signal);
    results.push(result);
    const { problem, restoreMs, firstAnswerMs } = result.trial;
    if (problem === undefined) {
      progress('trial', `right: restored in ${restoreMs} ms, answered after ${firstAnswerMs} ms`);
      // What was asked for by name needs nothing to compare with.
      if (mode === config.memory) break;
    }
  }
  const trials = results.map(({ trial }) => trial);
  const choice = chooseMode(facts, trials);
  if (choice === undefined) throw notRestorable(config, trials);
  progress('trial', `memory is ${nameOf(choice.mode)}: ${choice.reason}`);
  const memory = { ...choice, guarded: isGuarded(spec), trials, processes: [], prefetchedBytes: 0 };
  if (choice.mode !== MAPPED || processes === undefined) {
    await Promise.all([rewritten, layer].map((folder) => rm(folder, { recursive: true, force: true })));
    return memory;
  }
  await rm(dump, { recursive: true });
  await rename(rewritten, dump);
  const index = processes.flatMap((process) => process.index ?? []);
  const touched = results.find(({ trial }) => trial.mode === MAPPED)?.touched ?? [];
  await writeFile(path.join(dir, EXTENTS), writeIndex(index), { mode: 0o400 });
  await writeFile(path.join(dir, TOUCHED), writeTouched(touched), { mode: 0o400 });
  return {
    ...memory,
    processes: processes.map(sharesOf),
    prefetchedBytes: bytesToPrefetch(touched, index),
  };
}

/** Undefined where the dump is one that cannot be rewritten. */
async function rewrite(dir: string, progress: Progress, signal: AbortSignal): Promise<RewrittenProcess[] | undefined> {
  try {
    const folders = { from: path.join(dir, IMAGES), out: path.join(dir, REWRITTEN), layer: path.join(dir, MEMORY) };
    return await withDeadline(REWRITE_TIMEOUT_MS, 'rewriting the dump', signal, (signal) =>
      rewriteDump(folders, signal),
    );
  } catch (error) {
    if (signal.aborted) throw error;
    // Nothing is left of it, and the dump itself is whole.
    progress('trial', `its memory cannot be mapped: ${toInitlessError(error).message}`);
    return undefined;
  }
}

/** The error of a dump of which no instance can be restored; the service is served by cold starts. */
function notRestorable(config: ServiceConfig, trials: readonly MemoryTrial[]): InitlessError {
  const last = trials.at(-1)?.problem;
  return new InitlessError(
    'RESTORE_FAILED',
    `${config.serviceName} was dumped, but its trial restore failed: ${last?.message ?? 'no mode was tried'}`,
    {
      subject: config.serviceName,
      nextStep: last?.nextStep || "the service is served by cold starts; see README, 'What can be checkpointed'",
      outputTail: last?.outputTail ?? [],
    },
  );
}

/** What becomes of a process's memory, its copied areas by reason, largest first. */
function sharesOf({ pid, mapped, copiedAreas }: RewrittenProcess): ProcessMemory {
  const byReason = new Map<string, MemoryShare>();
  for (const { pages, reason } of copiedAreas) {
    if (pages === 0) continue;
    const share = byReason.get(reason) ?? { areas: 0, bytes: 0, reason };
    byReason.set(reason, share);
    share.areas++;
    share.bytes += pages * PAGE;
  }
  const copied = [...byReason.values()].sort((a, b) => b.bytes - a.bytes);
  return { pid, mapped: mapped.areas === 0 ? undefined : { ...mapped, reason: '' }, copied };
}

/** Bytes of the list that are data. */
function bytesToPrefetch(touched: readonly TouchedFile[], index: readonly SparseIndex[]): number {
  return wantedFiles('', touched, index)
    .flatMap(({ ranges }) => ranges)
    .reduce((sum, { length }) => sum + length, 0);
}
