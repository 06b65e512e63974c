import type {
  AdminServiceImplementation,
  ReadLogsResponse,
  StreamBuildOutputResponse,
} from '../../../proto/gen/initless/v1/admin.js';
import { type BuildOutput, type Measurement, Origin } from '../../../proto/gen/initless/v1/types.js';
import { InitlessError } from '../../../proto/rpc/errors.js';
import { PushStream } from '../../../proto/rpc/push-stream.js';
import { isAtRest, verdict } from '../../core/view.js';
import { type AdminParts, oddAnswer, type Serving, serving, view } from './parts.js';

/** Reading a log that is there. */
const READ_LOG_MS = 60_000;
/** Following one: until the caller has had enough, a day at most. */
const FOLLOW_LOG_MS = 24 * 3_600_000;
/** What measuring a start takes besides the start. */
const MEASURE_SLACK_MS = 60_000;
const MAX_ROUNDS = 1_000;

type StreamCalls = Pick<AdminServiceImplementation, 'readLogs' | 'watchEvents' | 'streamBuildOutput' | 'testService'>;

/** Calls that answer with a stream. */
export function streamCalls(parts: AdminParts): StreamCalls {
  return {
    readLogs: (request, { signal }) => readLogs(parts, request, signal),

    async *watchEvents({ serviceName, last, endAfterLast }, { signal }) {
      const { events } = parts;
      const chosen = endAfterLast ? events.last(serviceName, last) : events.watch(serviceName, last, signal);
      for await (const event of chosen) yield { event };
    },

    streamBuildOutput: ({ serviceName }, { signal }) => streamBuildOutput(parts, serviceName, signal),

    async *testService({ serviceName, rounds }, { signal }) {
      if (rounds < 1 || rounds > MAX_ROUNDS) {
        throw new InitlessError('BAD_REQUEST', `rounds: found ${rounds}, expected 1 to ${MAX_ROUNDS}`);
      }
      const at = serving(parts, serviceName);
      if (at.current.problem !== undefined) {
        throw new InitlessError('NO_CHECKPOINT', `${serviceName} has no checkpoint: ${at.current.problem.message}`, {
          subject: serviceName,
          nextStep: at.current.problem.nextStep,
        });
      }
      for (let round = 1; round <= rounds; round++) {
        yield { measurement: await measure(at, 'docker_run', round, signal) };
        const measurement = await measure(at, 'restored', round, signal);
        yield { measurement };
        if (measurement.origin !== Origin.ORIGIN_RESTORED) throw cold(serviceName, round);
      }
    },
  };
}

function cold(service: string, round: number): InitlessError {
  return new InitlessError('COLD_ORIGIN', `round ${round}: ${service} was started cold, not restored`, {
    subject: service,
    nextStep: `'initless events --service ${service}' says why its checkpoint could not be restored`,
  });
}

async function measure(
  { record, link }: Serving,
  kind: string,
  round: number,
  signal: AbortSignal,
): Promise<Measurement> {
  const what = `round ${round} (${kind}) of ${record.name} on ${link.name}`;
  const outcome = await link.command(
    { $case: 'measure', value: { service: record.name, kind, round } },
    { what, timeoutMs: record.config.startTimeoutMs + MEASURE_SLACK_MS, signal },
  );
  if (outcome.$case !== 'measurement') throw oddAnswer(what, outcome.$case);
  return { ...outcome.value, service: record.name, kind, round };
}

async function* readLogs(
  parts: AdminParts,
  request: { serviceName: string; instance: string; tail: number; follow: boolean },
  signal: AbortSignal,
): AsyncGenerator<ReadLogsResponse> {
  const { serviceName, instance, tail, follow } = request;
  const { link } = serving(parts, serviceName);
  const pieces = new PushStream<ReadLogsResponse>(`the log of ${serviceName}`);
  const stop = new AbortController();
  let failure: unknown;
  const running = link
    .command(
      { $case: 'readLog', value: { service: serviceName, instance, tail, follow } },
      {
        what: `reading the log of ${serviceName} on ${link.name}`,
        timeoutMs: follow ? FOLLOW_LOG_MS : READ_LOG_MS,
        signal: AbortSignal.any([signal, stop.signal]),
        onLog: (piece) => {
          try {
            pieces.push({ instance: piece.instance, stream: piece.stream, data: piece.data });
          } catch (error) {
            failure = error;
            pieces.end();
          }
        },
      },
    )
    .catch((error: unknown) => {
      failure ??= error;
    })
    .finally(() => pieces.end());
  const onAbort = () => pieces.end();
  signal.addEventListener('abort', onAbort, { once: true });
  try {
    yield* pieces;
    if (failure !== undefined) throw failure;
  } finally {
    signal.removeEventListener('abort', onAbort);
    stop.abort();
    void running;
  }
}

/** Output that may wait for a reader: all that is kept of a build, and much of what comes. */
const OUTPUT_BACKLOG = 20_000;

async function* streamBuildOutput(
  parts: AdminParts,
  name: string,
  signal: AbortSignal,
): AsyncGenerator<StreamBuildOutputResponse> {
  const { registry, builds, reconciler } = parts;
  registry.get(name);
  const stream = new PushStream<BuildOutput | 'look'>(`build output of ${name}`, OUTPUT_BACKLOG);
  let failure: unknown;
  const push = (item: BuildOutput | 'look') => {
    try {
      stream.push(item);
    } catch (error) {
      failure = error;
      stream.end();
    }
  };
  const end = () => stream.end();
  signal.addEventListener('abort', end, { once: true });
  if (signal.aborted) end();
  const stops = [builds.follow(name, push), reconciler.changes.subscribe(() => push('look'))];
  push('look');
  let said = '';
  try {
    for await (const item of stream) {
      if (item !== 'look') {
        yield { piece: { $case: 'output', value: item } };
        continue;
      }
      const record = registry.get(name);
      const snapshot = reconciler.snapshot();
      if (isAtRest(record, snapshot)) {
        yield { piece: { $case: 'ended', value: view(parts, record) } };
        return;
      }
      const why = verdict(record, snapshot).problem;
      if (why === undefined || why.message === said) continue;
      said = why.message;
      const line = `waiting: ${[why.message, why.nextStep].filter((text) => text !== '').join('; ')}`;
      const revision = record.pending?.id ?? record.current?.id ?? '';
      const value = { service: name, revision, stage: 'wait', line, at: new Date() };
      yield { piece: { $case: 'output', value } };
    }
    if (failure !== undefined) throw failure;
  } finally {
    signal.removeEventListener('abort', end);
    for (const stop of stops) stop();
  }
}
