import { randomBytes } from 'node:crypto';
import path from 'node:path';
import { MemoryMode, type MemoryTrial, type ServiceConfig } from '../../proto/gen/initless/v1/types.js';
import { withDeadline } from '../../proto/rpc/deadline.js';
import { InitlessError, problemOf, toInitlessError } from '../../proto/rpc/errors.js';
import { configured, type Place, type Places } from '../instance/place.js';
import { type Restorer, resume } from '../instance/restorer.js';
import { callOnce, isHosts } from '../instance/starter.js';
import { compareMemory, differenceError } from '../memory/compare.js';
import { readDump, rseqAreas } from '../memory/images.js';
import { treeOf } from '../memory/kernel-view.js';
import { type TouchedFile, touchedPages } from '../memory/touched.js';
import { lastLines } from '../runtime/exec.js';
import { readIfThere } from '../runtime/files.js';
import { untilHealthy } from '../runtime/health.js';
import type { Filler } from '../runtime/lazy.js';
import { ownMemory } from '../runtime/memory.js';
import { identify, isAlive } from '../runtime/process.js';
import type { OciSpec } from '../runtime/spec.js';
import { restoreTimeoutMs, VOLUMES } from './manifest.js';
import { type Progress, warmUp } from './start.js';
import { bytesIn } from './tree.js';

/** What trials need. */
export interface TrialParts {
  places: Places;
  restorer: Restorer;
}

/** A dump that is to be tried in one mode. */
export interface Tried {
  mode: MemoryMode;
  config: ServiceConfig;
  spec: OciSpec;
  hostname: string;
  /** Folder of the checkpoint that is being made. */
  dir: string;
  /** CRIU's images as they are restored in this mode. */
  images: string;
  /** CRIU's images as they were dumped. */
  dump: string;
  /** Layers of the root file system, topmost first. */
  lowers: readonly string[];
}

/** What a trial showed. */
export interface TrialResult {
  trial: MemoryTrial;
  /** What its requests touched of the memory files. */
  touched: TouchedFile[];
}

/** Bound on comparing: memory is compared at 500 MB/s or more. */
const COMPARE_TIMEOUT_MS = 300_000;
/** Of a path's warm-up requests, so many show that it is right, and what it touches. */
const MOST_REQUESTS = 20;

/**
 * Restores a dump twice. The first instance is stopped before its first instruction, and every page of it compared with the
 * dump; then it runs, and answers the health check and the warm-up requests. The second one is timed, and tells what its
 * requests touched. What is found wrong is in the result; nothing of either instance is left.
 * Errors: of the host (PORTS_EXHAUSTED, DISK_FULL ...), the signal's reason.
 */
export async function tryMode(
  parts: TrialParts,
  tried: Tried,
  progress: Progress,
  signal: AbortSignal,
): Promise<TrialResult> {
  const trial: MemoryTrial = { ...NOTHING, mode: tried.mode };
  const result: TrialResult = { trial, touched: [] };
  try {
    await inPlace(parts, tried, signal, (place) => compared(parts, tried, place, trial, signal));
    await inPlace(parts, tried, signal, async (place) => {
      result.touched = await timed(parts, tried, place, trial, signal);
    });
  } catch (error) {
    if (signal.aborted) throw signal.reason;
    if (!(error instanceof TrialFailed)) throw error;
    trial.problem = problemOf(error.failure);
    progress('trial', error.failure.message);
  }
  return result;
}

/** The failure of a trial's instance. What goes wrong outside of it says nothing of the checkpoint, and is thrown as it is. */
class TrialFailed extends Error {
  readonly failure: InitlessError;

  constructor(failure: InitlessError) {
    super(failure.message);
    this.failure = failure;
  }
}

const NOTHING = { problem: undefined, restoreMs: 0, firstAnswerMs: 0, comparedBytes: 0, ownBytes: 0 };

/** Makes a place for one trial, and clears it whatever happens. */
async function inPlace(
  { places }: TrialParts,
  { config, spec, hostname, dir, lowers }: Tried,
  signal: AbortSignal,
  work: (place: Place) => Promise<void>,
): Promise<void> {
  const place = await places.make(
    {
      id: `${config.serviceName}-trial-${randomBytes(4).toString('hex')}`,
      servicePort: config.servicePort,
      hostname,
      spec,
      lowers,
      volume: (index) => path.join(dir, VOLUMES, String(index)),
      ...configured(config),
    },
    signal,
  );
  try {
    await work(place);
  } catch (error) {
    if (signal.aborted) throw error;
    const failure = await withOutput(error, place);
    throw isHosts(failure) ? failure : new TrialFailed(failure);
  } finally {
    await places.clear(place);
  }
}

async function compared(
  parts: TrialParts,
  tried: Tried,
  place: Place,
  trial: MemoryTrial,
  signal: AbortSignal,
): Promise<void> {
  const { pid, filler } = await restore(parts, tried, place, true, signal);
  if (filler) await parts.restorer.filled(place, filler, signal);
  const hosts = await treeOf(pid);
  const [dumped, ignored] = await Promise.all([readDump(tried.dump), rseqAreas(tried.dump)]);
  const comparison = await withDeadline(COMPARE_TIMEOUT_MS, 'the comparison with the dump', signal, (signal) =>
    compareMemory({ dumped, hosts, ignored }, signal),
  );
  trial.comparedBytes = comparison.bytes;
  const difference = differenceError(comparison, `the trial instance ${place.id}`);
  if (difference) throw difference;
  await resume(pid);
  await requests(place, tried.config, pid, signal);
}

/** Gives what was touched. */
async function timed(
  parts: TrialParts,
  tried: Tried,
  place: Place,
  trial: MemoryTrial,
  signal: AbortSignal,
): Promise<TouchedFile[]> {
  const start = performance.now();
  const { pid, filler } = await restore(parts, tried, place, false, signal);
  trial.restoreMs = tenths(performance.now() - start);
  await requests(place, tried.config, pid, signal, () => {
    trial.firstAnswerMs = tenths(performance.now() - start);
  });
  if (filler) await parts.restorer.filled(place, filler, signal);
  const pids = [...(await treeOf(pid)).values()];
  const touched = await touchedPages(pids, signal);
  trial.ownBytes = await ownMemory(pids);
  return touched;
}

async function restore(
  { restorer }: TrialParts,
  { images, mode }: Tried,
  place: Place,
  stopped: boolean,
  signal: AbortSignal,
): Promise<{ pid: number; filler: Filler | undefined }> {
  const output = path.join(place.folder.work, OUTPUT);
  const timeoutMs = restoreTimeoutMs(await bytesIn(images));
  const mapped = mode === MemoryMode.MEMORY_MODE_MAPPED;
  const lazy = mode === MemoryMode.MEMORY_MODE_LAZY;
  let filler: Filler | undefined;
  const onFiller = (started: Filler) => {
    filler = started;
  };
  const pid = await restorer.restore(
    place,
    { images, mapped, timeoutMs },
    { stdout: output, stderr: output },
    { stopped, lazy, onFiller, signal },
  );
  return { pid, filler };
}

/** What every instance is asked before it serves, and what the one that was dumped was asked. */
async function requests(
  place: Place,
  config: ServiceConfig,
  pid: number,
  signal: AbortSignal,
  onHealthy: () => void = () => {},
): Promise<void> {
  const process = identify(pid);
  const { address } = place.sandbox;
  const { healthCheck, healthCheckTimeoutMs, afterRestore } = config;
  if (healthCheck === undefined) throw new InitlessError('INTERNAL', `${config.serviceName} has no health check`);
  await untilHealthy(address, healthCheck, healthCheckTimeoutMs, undefined, signal).catch((error: unknown) => {
    if (process && isAlive(process)) throw error;
    throw new InitlessError('EXITED_EARLY', 'the restored process ended before it was healthy', { cause: error });
  });
  onHealthy();
  if (afterRestore !== '') await callOnce(address, afterRestore, healthCheckTimeoutMs, signal);
  const until = performance.now() + config.startTimeoutMs;
  const warmup = config.warmup.map(({ path, count }) => ({ path, count: Math.min(count, MOST_REQUESTS) }));
  await warmUp(address, { warmup }, () => Math.max(1, Math.round(until - performance.now())), signal);
}

const OUTPUT = 'output';

/** An error with the last lines that the instance printed, where it has no other output to show. */
async function withOutput(error: unknown, place: Place): Promise<InitlessError> {
  const failure = toInitlessError(error);
  if (failure.outputTail.length > 0) return failure;
  const outputTail = lastLines(await readIfThere(path.join(place.folder.work, OUTPUT)), 20);
  const { code, message, subject, nextStep } = failure;
  return new InitlessError(code, message, { subject, nextStep, outputTail, cause: failure });
}

function tenths(ms: number): number {
  return Math.round(ms * 10) / 10;
}
