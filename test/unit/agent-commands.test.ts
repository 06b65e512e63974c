import { describe, expect, it } from 'vitest';
import { type CommandParts, Commands } from '../../agent/fleet/commands.js';
import type { Copied } from '../../agent/transfer/copier.js';
import { Command, type ConnectRequest, PreparedRevision } from '../../proto/gen/initless/v1/fleet.js';
import { Checkpoint, ServiceConfig } from '../../proto/gen/initless/v1/types.js';
import { InitlessError } from '../../proto/rpc/errors.js';

const config = ServiceConfig.fromPartial({ serviceName: 'web' });
const CHECKPOINT = Checkpoint.fromPartial({ service: 'web', path: '/sealed', size: 5 });
const prepared = PreparedRevision.fromPartial({ imageId: 'sha256:1', checkpoint: CHECKPOINT });
const copied: Copied = { prepared, how: 'copied', from: 'a', bytes: 7, stages: [{ stage: 'fetch', ms: 1 }] };
const copy = (id: string) =>
  Command.fromPartial({ id, action: { $case: 'copy', value: { config, revision: 'abc', imageId: 'sha256:1' } } });
const prepare = (id: string) =>
  Command.fromPartial({ id, action: { $case: 'prepare', value: { config, revision: 'abc' } } });

describe('a command to make or copy a revision', () => {
  const world = (result: () => Promise<Copied>) => {
    let runs = 0;
    const said: ConnectRequest['message'][] = [];
    const commands = new Commands({
      host: 'b',
      copier: {
        copy: () => {
          runs++;
          return result();
        },
      },
      maker: {
        prepare: async () => {
          runs++;
          return (await result()).prepared;
        },
      },
    } as unknown as CommandParts);
    return {
      run: (command: Command) =>
        commands.execute(command, ({ message }) => said.push(message), new AbortController().signal),
      runs: () => runs,
      kinds: () => said.flatMap((message) => (message?.$case === 'event' ? [message.value.kind] : [])),
    };
  };

  it.each([
    ['copy', copy, ['checkpoint.copied']],
    ['prepare', prepare, ['revision.preparing', 'checkpoint.sealed']],
  ] as const)(
    'that comes again meanwhile (%s) joins the first: one run, told once, both answered',
    async (_, command, events) => {
      let end = (_: Copied) => {};
      const { run, runs, kinds } = world(
        () =>
          new Promise((resolve) => {
            end = resolve;
          }),
      );
      const both = [run(command('1')), run(command('2'))];
      await new Promise((resolve) => setImmediate(resolve));
      end(copied);
      expect(await Promise.all(both)).toEqual([
        { $case: 'prepared', value: prepared },
        { $case: 'prepared', value: prepared },
      ]);
      expect(runs()).toBe(1);
      expect(kinds()).toEqual(events);
    },
  );

  it.each([
    ['there', []],
    ['copied', ['checkpoint.copied']],
    ['made', ['image.copied', 'checkpoint.sealed']],
    ['image', ['image.copied']],
  ] as const)('tells of a revision that is %s what was done for it', async (how, kinds) => {
    const one = world(async () => ({ ...copied, how }));
    await one.run(copy('1'));
    expect(one.kinds()).toEqual(kinds);
  });

  it('tells of a failure, and runs anew the next time', async () => {
    const one = world(async () => {
      throw new InitlessError('COPY_FAILED', 'no host has it');
    });
    await expect(one.run(copy('1'))).rejects.toThrow('no host has it');
    await expect(one.run(copy('2'))).rejects.toThrow('no host has it');
    expect(one.kinds()).toEqual(['revision.copy_failed', 'revision.copy_failed']);
    expect(one.runs()).toBe(2);
  });
});
