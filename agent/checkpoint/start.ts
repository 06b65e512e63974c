import type { ServiceConfig, StageTime } from '../../proto/gen/initless/v1/types.js';
import { withDeadline } from '../../proto/rpc/deadline.js';
import { InitlessError, toInitlessError } from '../../proto/rpc/errors.js';
import type { Place } from '../instance/place.js';
import { callOnce, explain } from '../instance/starter.js';
import { treeOf } from '../memory/kernel-view.js';
import { lastLines } from '../runtime/exec.js';
import { untilHealthy } from '../runtime/health.js';
import { cpuTime, identify } from '../runtime/process.js';
import type { Attached, Ended, Runc } from '../runtime/runc.js';
import { settle } from './settle.js';

/** Told of each line: the step it belongs to, and the line. */
export type Progress = (stage: string, line: string) => void;

/** A process that is to be dumped when it is ready. */
export interface FirstStart {
  config: ServiceConfig;
  place: Place;
  /** Its command. */
  args: readonly string[];
  /** Where the time that each step took is noted. */
  stages: StageTime[];
  progress: Progress;
  /** Looks at the process while it starts, until the signal aborts; what it throws ends the start and is thrown as it is. */
  watch?: (process: Attached, signal: AbortSignal) => Promise<void>;
}

/** Exit code of a process that SIGKILL ended, as the kernel does when its cgroup's memory is used up. */
const KILLED = 128 + 9;
/** Output of a start that is kept for the message of a failure. */
const KEPT_OUTPUT = 64 * 1024;

/**
 * Starts the process and waits until it may be dumped: its message, its health check, the warm-up requests, the last path,
 * and that it has no more to do.
 * Errors: START_FAILED, EXITED_EARLY, MESSAGE_TIMEOUT, HEALTH_MISMATCH, HEALTH_TIMEOUT, NOT_LISTENING, the signal's reason.
 */
export async function startUntilReady(runc: Runc, start: FirstStart, signal: AbortSignal): Promise<Attached> {
  const { config, place, args, stages, progress, watch } = start;
  const until = performance.now() + config.startTimeoutMs;
  const left = () => Math.max(1, Math.round(until - performance.now()));
  let output = '';
  let seen: (() => void) | undefined;
  const message = new Promise<void>((resolve) => {
    seen = resolve;
  });
  const partial = { stdout: '', stderr: '' };
  progress('start', `starting ${args.join(' ')}`);
  const process = runc.attach(place.id, place.folder, (stream, text) => {
    output = (output + text).slice(-KEPT_OUTPUT);
    if (config.msgCheckpoint !== '' && output.includes(config.msgCheckpoint)) seen?.();
    const lines = (partial[stream] + text).split('\n');
    partial[stream] = (lines.pop() ?? '').slice(-KEPT_OUTPUT);
    for (const line of lines) progress('start', line.trimEnd());
  });
  const ready = new AbortController();
  let objection: unknown;
  const ended = new Promise<never>((_, reject) => {
    void process.ended.then((how) => reject(endedEarly(config, how, output)));
    watch?.(process, AbortSignal.any([signal, ready.signal])).catch((error: unknown) => {
      if (ready.signal.aborted) return;
      objection = error;
      reject(error);
    });
  });
  // Awaited below in races only; one that loses must not count as unhandled.
  ended.catch(() => {});
  try {
    if (config.msgCheckpoint !== '') {
      await timed(stages, 'start', () =>
        withDeadline(left(), `the text '${config.msgCheckpoint}' in the output`, signal, () =>
          Promise.race([message, ended]),
        ),
      );
    }
    const check = config.healthCheck;
    if (check === undefined) throw new InitlessError('INTERNAL', `${config.serviceName} has no health check`);
    progress('health', `GET ${check.path}`);
    await timed(stages, 'health', () => untilHealthy(place.sandbox.address, check, left(), ended, signal));
    if (config.warmup.length > 0) {
      await timed(stages, 'warmup', () =>
        warmUp(place.sandbox.address, config, left, signal, (path, count) =>
          progress('warmup', `GET ${path}, ${count} times`),
        ),
      );
    }
    if (config.beforeCheckpoint !== '') {
      progress('warmup', `GET ${config.beforeCheckpoint}`);
      await callOnce(place.sandbox.address, config.beforeCheckpoint, left(), signal);
    }
    const used = async () => cpuTime((await treeOf(await process.pid(signal))).values());
    const quiet = await timed(stages, 'settle', () => Promise.race([settle(used, signal), ended]));
    if (!quiet) progress('warmup', 'it does not become quiet, and is dumped as it is');
    return process;
  } catch (error) {
    if (signal.aborted) throw signal.reason;
    if (objection !== undefined) throw objection;
    throw await why(error, config, place, process, output);
  } finally {
    ready.abort();
  }
}

/**
 * Sends a service's warm-up requests, one after the other.
 *
 * @param left milliseconds that there still are.
 * @param onPath told before each path's requests.
 * Errors: HEALTH_MISMATCH for a status outside 2xx, HEALTH_TIMEOUT for no answer.
 */
export async function warmUp(
  address: string,
  config: Pick<ServiceConfig, 'warmup'>,
  left: () => number,
  signal: AbortSignal,
  onPath: (path: string, count: number) => void = () => {},
): Promise<void> {
  for (const { path, count } of config.warmup) {
    onPath(path, count);
    for (let i = 0; i < count; i++) await callOnce(address, path, left(), signal);
  }
}

/** The error of a start that did not become ready, with the process's last lines and what /proc says. */
async function why(
  error: unknown,
  config: ServiceConfig,
  place: Place,
  process: Attached,
  output: string,
): Promise<InitlessError> {
  const failure = toInitlessError(error);
  if (failure.code === 'EXITED_EARLY' || failure.code === 'START_FAILED') return failure;
  const pid = identify(await process.pid(AbortSignal.timeout(1_000)));
  if (failure.code === 'DEADLINE') {
    const check = config.healthCheck;
    const answers =
      check &&
      (await untilHealthy(place.sandbox.address, check, 1_000).then(
        () => true,
        () => false,
      ));
    const hint = answers
      ? 'it answers its health check, so the message may sit in a buffer: unbuffer its output (Python: PYTHONUNBUFFERED=1 or python -u), or leave msg_checkpoint out'
      : "correct 'msg_checkpoint', or raise 'start_timeout'";
    return new InitlessError(
      'MESSAGE_TIMEOUT',
      `${config.serviceName} did not print '${config.msgCheckpoint}' (msg_checkpoint) within ${config.startTimeoutMs / 1000} s`,
      { subject: config.serviceName, nextStep: hint, outputTail: lastLines(output, 20), cause: failure },
    );
  }
  const explained = pid ? toInitlessError(explain(failure, pid, config.servicePort)) : failure;
  return new InitlessError(explained.code, explained.message, {
    subject: config.serviceName,
    nextStep: explained.nextStep,
    outputTail: lastLines(output, 20),
    cause: failure,
  });
}

function endedEarly(config: ServiceConfig, how: Ended, output: string): InitlessError {
  const outputTail = lastLines(output, 20);
  if (how.errors.length > 0) {
    return new InitlessError('START_FAILED', `${config.serviceName} could not be started: ${how.errors.at(-1)}`, {
      subject: config.serviceName,
      nextStep: "correct CMD, ENTRYPOINT or 'start_cmd'",
      outputTail,
    });
  }
  return new InitlessError(
    'EXITED_EARLY',
    `${config.serviceName} ended with exit code ${how.code} before it was ready`,
    {
      subject: config.serviceName,
      nextStep:
        how.code === KILLED && config.memoryLimit > 0
          ? `it was killed; if that was for want of memory, raise 'memory_limit' (${config.memoryLimit} bytes)`
          : 'its last lines say why; a service that forks into the background must stay in the foreground',
      outputTail,
    },
  );
}

/** Runs a step and notes how long it took. */
export async function timed<T>(stages: StageTime[], stage: string, work: () => Promise<T>): Promise<T> {
  const start = performance.now();
  try {
    return await work();
  } finally {
    stages.push({ stage, ms: Math.round(performance.now() - start) });
  }
}
