import { randomBytes } from 'node:crypto';
import { createChannel } from 'nice-grpc';
import {
  type Command,
  type CommandResult,
  type ConnectRequest,
  FleetServiceDefinition,
  HostReport,
  type ServiceAssignment,
} from '../../../proto/gen/initless/v1/fleet.js';
import { createRpcClient } from '../../../proto/rpc/client.js';
import { problemOf } from '../../../proto/rpc/errors.js';
import { PushStream } from '../../../proto/rpc/push-stream.js';
import { SimulatedInstances } from './instances.js';

/** As the real agent has it: signs of life, whole reports, and how soon a change is reported. */
const BEAT_MS = 1_000;
const REPORT_MS = 5_000;
const SETTLE_MS = 20;
/** How long commands take here. */
const TAKES_MS: Record<string, number> = { prepare: 300, copy: 200 };
const QUICK_MS = 10;
/** Flags that a CPU of today has. */
const CPU_FLAGS = Array.from({ length: 120 }, (_, index) => `flag${index}`);

type Outcome = NonNullable<CommandResult['outcome']>;

/** An agent without a machine: it speaks FleetService on a connection of its own, and does what it is told in no time. */
export class SimulatedAgent {
  readonly name: string;
  readonly instances: SimulatedInstances;
  connected = false;
  /** Commands carried out. */
  commands = 0;
  /** Why its connection ended, unless it was killed. */
  failure = '';
  readonly #channel: ReturnType<typeof createChannel>;
  readonly #assignments = new Map<string, ServiceAssignment>();
  /** Revisions that it has, as "SERVICE REVISION". */
  readonly #checkpoints = new Map<string, HostReport['checkpoints'][number]>();
  readonly #out: PushStream<ConnectRequest>;
  readonly #abort = new AbortController();
  #beats: NodeJS.Timeout | undefined;
  #reports: NodeJS.Timeout | undefined;
  #soon: NodeJS.Timeout | undefined;

  constructor(address: string, name: string) {
    this.name = name;
    // A pool of its own: agents are on different machines, and share no connection.
    this.#channel = createChannel(address, undefined, {
      'grpc.use_local_subchannel_pool': 1,
      'grpc.enable_http_proxy': 0,
    });
    this.#out = new PushStream(`reports of ${name}`);
    this.instances = new SimulatedInstances(name, () => this.#changed());
  }

  /** Connects and stays connected until it is killed, or the control plane ends. */
  run(): void {
    void this.#session()
      .catch((error: unknown) => {
        if (!this.#abort.signal.aborted) this.failure = `${this.name}: ${String(error)}`;
      })
      .finally(() => this.kill());
  }

  /** Is gone, as a machine without power. */
  kill(): void {
    this.connected = false;
    this.#abort.abort();
    clearInterval(this.#beats);
    clearInterval(this.#reports);
    clearTimeout(this.#soon);
    this.instances.stop();
    this.#channel.close();
  }

  async #session(): Promise<void> {
    const client = createRpcClient(FleetServiceDefinition, this.#channel);
    const fingerprint = {
      ...{ kernel: '6.1.0', criu: '4.2', runc: '1.3', arch: 'x86_64', cpuModel: 'simulated' },
      cpuFlags: CPU_FLAGS,
    };
    this.#say({
      $case: 'hello',
      value: {
        ...{ host: this.name, agentVersion: 'simulated', leaseAddress: `${this.name}.invalid:7072`, fingerprint },
        ...{ cpus: 8, memoryTotal: 64 * 2 ** 30, identity: randomBytes(8).toString('hex') },
      },
    });
    for await (const { message } of client.connect(this.#out, { signal: this.#abort.signal })) {
      if (message?.$case === 'welcome') {
        this.connected = true;
        this.#report();
        this.#beats = setInterval(() => this.#say({ $case: 'heartbeat', value: {} }), BEAT_MS);
        this.#reports = setInterval(() => this.#report(), REPORT_MS);
      } else if (message?.$case === 'command') void this.#execute(message.value);
    }
    throw new Error('the control plane ended the stream');
  }

  async #execute({ id, action }: Command): Promise<void> {
    await new Promise((resolve) => setTimeout(resolve, TAKES_MS[action?.$case ?? ''] ?? QUICK_MS));
    if (this.#abort.signal.aborted) return;
    let outcome: Outcome;
    try {
      outcome = this.#carryOut(action);
    } catch (error) {
      outcome = { $case: 'problem', value: problemOf(error) };
    }
    this.commands += 1;
    this.#report();
    this.#say({ $case: 'result', value: { id, outcome } });
  }

  #carryOut(action: Command['action']): Outcome {
    switch (action?.$case) {
      case 'prepare':
      case 'copy': {
        const { config, revision } = action.value;
        const service = config!.serviceName;
        const imageId = `sha256:${revision}`;
        const checkpoint = {
          ...{ service, revision, host: this.name, path: `/checkpoints/${service}/${revision}`, format: 1, imageId },
          ...{ createdAt: new Date(), size: 1e8, fingerprint: undefined, files: [], stages: [] },
          ...{ quarantined: undefined, memory: undefined },
        };
        this.#checkpoints.set(`${service} ${revision}`, checkpoint);
        return { $case: 'prepared', value: { imageId, checkpoint, problem: undefined } };
      }
      case 'assign':
        this.#assignments.set(action.value.config!.serviceName, action.value);
        this.instances.assign(action.value);
        return { $case: 'done', value: {} };
      case 'withdraw':
        this.#assignments.delete(action.value.service);
        this.instances.withdraw(action.value.service);
        return { $case: 'done', value: {} };
      case 'deleteRevisions': {
        const { service, keep } = action.value;
        for (const [key, one] of this.#checkpoints) {
          if (one.service === service && !keep.includes(one.revision)) this.#checkpoints.delete(key);
        }
        return { $case: 'done', value: {} };
      }
      default:
        throw new Error(`a simulated agent cannot do '${action?.$case}'`);
    }
  }

  /** As the real one: a burst of changes is one report. */
  #changed(): void {
    this.#soon ??= setTimeout(() => {
      this.#soon = undefined;
      this.#report();
    }, SETTLE_MS);
  }

  #report(): void {
    const checkpoints = [...this.#checkpoints.values()];
    const value = HostReport.fromPartial({
      engine: { ready: true, version: '26' },
      instances: this.instances.list(),
      checkpoints,
      assignments: [...this.#assignments.values()],
      usage: this.instances.usage(),
      usageEpoch: this.name,
      // It is never the same twice.
      memoryAvailable: Math.round((32 + Math.random()) * 2 ** 30),
      portsFree: 1_000 - this.instances.list().length,
      revisions: checkpoints.map(({ service, revision, imageId }) => ({ service, revision, imageId })),
    });
    this.#say({ $case: 'report', value });
  }

  #say(message: NonNullable<ConnectRequest['message']>): void {
    if (!this.#abort.signal.aborted) this.#out.push({ message });
  }
}
