import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { FleetLink } from '../../agent/fleet/link.js';
import {
  type ConnectRequest,
  type ConnectResponse,
  FleetServiceDefinition,
  HostReport,
  HostSettings,
} from '../../proto/gen/initless/v1/fleet.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { PushStream } from '../../proto/rpc/push-stream.js';
import { createRpcServer, type RpcServer } from '../../proto/rpc/server.js';
import { eventually } from './control-plane-harness.js';

const settingsOf = (checkpointDir: string) => HostSettings.fromPartial({ checkpointDir });

describe("an agent's link to its control plane", () => {
  let server: RpcServer;
  let link: FleetLink;
  let running: Promise<void>;
  let connections: PushStream<ConnectResponse>[];
  let said: ConnectRequest['message'][];
  let used: string[];
  let refuse: (settings: HostSettings) => boolean;
  let stop: AbortController;

  beforeEach(async () => {
    stop = new AbortController();
    connections = [];
    said = [];
    used = [];
    refuse = () => false;
    server = createRpcServer([FleetServiceDefinition.fullName], (path, error) => {
      throw new Error(`${path}: ${String(error)}`);
    });
    server.add(FleetServiceDefinition, {
      async *connect(requests) {
        const outgoing = new PushStream<ConnectResponse>('test');
        connections.push(outgoing);
        outgoing.push({ message: { $case: 'welcome', value: { settings: settingsOf('/first') } } });
        void (async () => {
          for await (const { message } of requests) said.push(message);
        })().catch(() => outgoing.end());
        yield* outgoing;
      },
      async *fetchContext() {},
    });
    const port = await server.listen('127.0.0.1:0');
    link = new FleetLink(
      `127.0.0.1:${port}`,
      {
        hello: () => ({ message: { $case: 'hello', value: { host: 'h' } as never } }),
        report: () => ({ message: { $case: 'report', value: HostReport.fromPartial({}) } }),
        settings: async (settings) => {
          if (refuse(settings)) throw new InitlessError('DISK_FULL', `no room in ${settings.checkpointDir}`);
          used.push(settings.checkpointDir);
        },
        execute: async () => ({ $case: 'done', value: {} }),
      },
      pino({ level: 'silent' }),
    );
    running = link.run(stop.signal);
    await eventually('it is connected', () => link.connected || undefined);
  });
  afterEach(async () => {
    stop.abort();
    await running;
    await server.stop(200);
  });

  const tell = (message: ConnectResponse['message']) => connections.at(-1)!.push({ message });
  const heard = (kind: string) => said.filter((message) => message?.$case === kind);

  it('applies the settings of the welcome, and new ones as they come', async () => {
    expect(used).toEqual(['/first']);
    const before = heard('report').length;
    tell({ $case: 'settings', value: settingsOf('/second') });
    await eventually('they are applied', () => used.includes('/second') || undefined);
    await eventually('a report says what follows from them', () => heard('report').length > before || undefined);
    expect(connections).toHaveLength(1);
  });

  it('stays connected, and says so, when settings cannot be applied', async () => {
    refuse = ({ checkpointDir }) => checkpointDir === '/full';
    tell({ $case: 'settings', value: settingsOf('/full') });
    const event = await eventually('it says so', () => heard('event')[0]);
    expect(event).toMatchObject({
      value: { kind: 'host.settings_refused', problem: { code: 'DISK_FULL', message: 'no room in /full' } },
    });
    tell({
      $case: 'command',
      value: {
        id: '1',
        timeoutMs: 5_000,
        action: { $case: 'withdraw', value: { service: 'x', reason: 0 } },
      },
    });
    await eventually('it still does what it is told', () => heard('result')[0]);
    expect(connections).toHaveLength(1);
  });

  it('connects although the settings of the welcome cannot be applied', async () => {
    refuse = () => true;
    connections[0]?.end();
    const event = await eventually('it says so', () => heard('event')[0]);
    expect(event).toMatchObject({ value: { kind: 'host.settings_refused' } });
    await eventually('it is connected again', () => (link.connected && connections.length === 2) || undefined);
  });
});
