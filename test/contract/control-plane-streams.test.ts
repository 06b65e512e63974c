import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Event, Measurement } from '../../proto/gen/initless/v1/types.js';
import { LogStream, Origin, ServiceState } from '../../proto/gen/initless/v1/types.js';
import { fromGrpcError, type InitlessError } from '../../proto/rpc/errors.js';
import { codeOf, config, eventually, Harness } from './control-plane-harness.js';

/** All that a stream gives until it ends. */
async function all<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const items: T[] = [];
  for await (const item of stream) items.push(item);
  return items;
}

describe('streams', () => {
  let harness: Harness;
  beforeEach(async () => {
    harness = await Harness.start();
  });
  afterEach(() => harness.stop());

  it('of build output replay what was printed and end with how it ended', async () => {
    const agent = await harness.agent('host1', (fake) => {
      fake.script = async (action) => {
        if (action.$case !== 'prepare') return undefined;
        for (let n = 1; n <= 2_500; n++) {
          const { revision } = action.value;
          fake.say({
            $case: 'buildOutput',
            value: { service: 'flask', revision, stage: 'image', line: `step ${n}`, at: new Date() },
          });
        }
        return undefined;
      };
    });
    await harness.folder('flask', config('flask', 8001));
    await harness.apply('flask');
    const pieces = await all(harness.admin.streamBuildOutput({ serviceName: 'flask' }));
    const last = pieces.at(-1)?.piece;
    expect(last?.$case === 'ended' && last.value.state).toBe(ServiceState.SERVICE_STATE_READY);
    const again = await all(harness.admin.streamBuildOutput({ serviceName: 'flask' }));
    expect(again).toHaveLength(2_001);
    expect(again[0]?.piece).toMatchObject({ value: { line: 'step 501' } });
    expect(agent.received('prepare')).toHaveLength(1);
    expect(await codeOf(all(harness.admin.streamBuildOutput({ serviceName: 'missing' })))).toBe('NOT_FOUND');
  });

  it('of build output say what is waited for, and a caller that goes away stops nothing', async () => {
    await harness.folder('flask', config('flask', 8001));
    await harness.apply('flask');
    const abort = new AbortController();
    const lines: string[] = [];
    const watching = (async () => {
      for await (const { piece } of harness.admin.streamBuildOutput(
        { serviceName: 'flask' },
        { signal: abort.signal },
      )) {
        if (piece?.$case === 'output') lines.push(piece.value.line);
      }
    })().catch(() => undefined);
    await eventually('it says so', () => lines[0]?.includes('initless host up') || undefined);
    abort.abort();
    await watching;
    await harness.agent();
    await harness.until('flask', 'SERVICE_STATE_READY');
  });

  it('of events give the last ones, then those that come, numbered without gaps', async () => {
    const agent = await harness.agent();
    await harness.folder('flask', config('flask', 8001));
    await harness.until('flask', 'SERVICE_STATE_READY');
    const events: Event[] = [];
    const abort = new AbortController();
    const watching = (async () => {
      for await (const { event } of harness.admin.watchEvents({ last: 100 }, { signal: abort.signal }))
        events.push(event!);
    })().catch(() => undefined);
    await eventually('the past', () => events.some((event) => event.kind === 'revision.ready') || undefined);
    agent.event({ kind: 'instance.running', message: 'up', service: 'flask', origin: Origin.ORIGIN_COLD, host: 'lie' });
    const said = await eventually('the new one', () => events.find((event) => event.kind === 'instance.running'));
    expect(said).toMatchObject({ host: 'host1', origin: Origin.ORIGIN_COLD });
    expect(events.map((event) => event.sequence)).toEqual(events.map((_, index) => events[0]!.sequence + index));
    abort.abort();
    await watching;
    const past = await all(harness.admin.watchEvents({ last: 2, endAfterLast: true }));
    expect(past.map(({ event }) => event)).toEqual(events.slice(-2));
  });

  it('of logs pass on what the agent sends, and stop it when the reader has had enough', async () => {
    const agent = await harness.agent();
    await harness.folder('flask', config('flask', 8001));
    await harness.until('flask', 'SERVICE_STATE_READY');
    agent.script = async (action, signal, command) => {
      if (action.$case !== 'readLog') return undefined;
      const data = Buffer.from('hello\n');
      agent.say({
        $case: 'log',
        value: { commandId: command.id, instance: 'i', stream: LogStream.LOG_STREAM_STDOUT, data },
      });
      if (action.value.follow) await new Promise((resolve) => signal.addEventListener('abort', resolve));
      return { $case: 'done', value: {} };
    };
    const pieces = await all(harness.admin.readLogs({ serviceName: 'flask', tail: 10 }));
    expect(pieces.map((piece) => Buffer.from(piece.data).toString())).toEqual(['hello\n']);
    for await (const piece of harness.admin.readLogs({ serviceName: 'flask', follow: true })) {
      expect(piece.instance).toBe('i');
      break;
    }
    await eventually('the agent was told to stop', () => agent.cancelled.length === 1 || undefined);
  });

  it('of measurements interleave both kinds, and fail when a restore was cold', async () => {
    const agent = await harness.agent();
    await harness.folder('flask', config('flask', 8001));
    await harness.until('flask', 'SERVICE_STATE_READY');
    const results = await all(harness.admin.testService({ serviceName: 'flask', rounds: 2 }));
    expect(results.map(({ measurement }) => `${measurement?.kind} ${measurement?.round}`)).toEqual([
      'docker_run 1',
      'restored 1',
      'docker_run 2',
      'restored 2',
    ]);
    agent.script = async (action) => {
      if (action.$case !== 'measure' || action.value.kind !== 'restored') return undefined;
      const value: Measurement = { ...action.value, origin: Origin.ORIGIN_COLD, ms: 1, stages: [] };
      return { $case: 'measurement', value };
    };
    const seen: unknown[] = [];
    const error = await (async () => {
      for await (const item of harness.admin.testService({ serviceName: 'flask', rounds: 2 })) seen.push(item);
    })().catch((thrown: unknown) => fromGrpcError(thrown, 'test'));
    expect((error as InitlessError).code).toBe('COLD_ORIGIN');
    expect(seen).toHaveLength(2);
    expect(await codeOf(all(harness.admin.testService({ serviceName: 'flask', rounds: 0 })))).toBe('BAD_REQUEST');
  });

  it('are not needed for a service that could not be checkpointed: it is served cold, and says why', async () => {
    await harness.agent('host1', (fake) => {
      fake.script = async (action) => {
        if (action.$case !== 'prepare') return undefined;
        const problem = { code: 'DUMP_FAILED', message: 'io_uring', nextStep: 'use another', outputTail: [] };
        return { $case: 'prepared', value: { imageId: 'sha256:1', checkpoint: undefined, problem } };
      };
    });
    await harness.folder('flask', config('flask', 8001));
    const degraded = await harness.until('flask', 'SERVICE_STATE_DEGRADED');
    expect(degraded.problem?.message).toBe('io_uring');
    await harness.admin.wakeService({ serviceName: 'flask' });
    expect(await codeOf(all(harness.admin.testService({ serviceName: 'flask', rounds: 1 })))).toBe('NO_CHECKPOINT');
  });
});
