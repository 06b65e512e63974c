import {
  type Command,
  type CommandResult,
  type ConnectRequest,
  FleetServiceDefinition,
  type HeldRevision,
  type HostReport,
  type HostSettings,
  type PrepareRevision,
  type ServiceAssignment,
  type ServiceUsage,
} from '../../proto/gen/initless/v1/fleet.js';
import {
  type Checkpoint,
  type Event,
  type Instance,
  InstanceState,
  MemoryMode,
  Origin,
} from '../../proto/gen/initless/v1/types.js';
import { connect, createRpcClient } from '../../proto/rpc/client.js';
import { problemOf } from '../../proto/rpc/errors.js';
import { PushStream } from '../../proto/rpc/push-stream.js';

type Action = NonNullable<Command['action']>;
type ActionValue<Kind> = Extract<Action, { $case: Kind }>['value'];
type Outcome = NonNullable<CommandResult['outcome']>;

/** Answers a command; undefined leaves it without an answer. What it throws is answered as a problem. */
export type Script = (action: Action, signal: AbortSignal, command: Command) => Promise<Outcome | undefined>;

/** A scriptable agent that speaks FleetService and keeps, as a real one would, what it was told to serve. */
export class FakeFleetAgent {
  readonly name: string;
  readonly commands: Command[] = [];
  readonly cancelled: string[] = [];
  readonly checkpoints: Checkpoint[] = [];
  readonly instances: Instance[] = [];
  readonly assignments = new Map<string, ServiceAssignment>();
  /** Services whose named volumes it has. */
  readonly volumeServices = new Set<string>();
  settings: HostSettings | undefined;
  /** How its services are used, since it began. */
  usage: ServiceUsage[] = [];
  usageEpoch = 'first';
  engineReady = true;
  memoryAvailable = 4 * 2 ** 30;
  /** Why the connection ended; undefined while it lasts. */
  ended: unknown;
  /** Takes commands over before the usual answers. */
  script: Script = async () => undefined;
  /** Commands the script does not answer get the usual answer; false: none. */
  answers = true;

  readonly #channel: ReturnType<typeof connect>;
  readonly #client;
  #outgoing = new PushStream<ConnectRequest>('fake agent');
  #running = new Map<string, AbortController>();
  #abort = new AbortController();
  #beats: NodeJS.Timeout | undefined;
  /** It says nothing by itself, as one that is cut off without an end of the connection. */
  silent = false;
  #welcomed: Promise<void> = Promise.resolve();
  #done: Promise<void> = Promise.resolve();
  /** What its agent made up at its first start. */
  identity = 'fake';
  /** Revisions whose images it has. */
  revisions: HeldRevision[] = [];
  /** Ports that it can still lease. */
  portsFree = 1_000;

  constructor(address: string, name: string) {
    this.name = name;
    this.#channel = connect(address);
    this.#client = createRpcClient(FleetServiceDefinition, this.#channel);
  }

  /** Connects, says hello, reports; resolves once it was taken in. Rejects with why it was not. */
  async connect(): Promise<void> {
    this.ended = undefined;
    this.#outgoing = new PushStream<ConnectRequest>('fake agent');
    this.#abort = new AbortController();
    const fingerprint = { kernel: '6', criu: '4.2', runc: '1.3', arch: 'x86_64', cpuModel: 'fake', cpuFlags: [] };
    const leaseAddress = `127.0.0.1:${7000 + this.name.length}`;
    this.say({
      $case: 'hello',
      value: {
        host: this.name,
        agentVersion: 'fake',
        leaseAddress,
        fingerprint,
        cpus: 2,
        memoryTotal: 8 * 2 ** 30,
        identity: this.identity,
      },
    });
    let welcome = () => {};
    let refuse = (_error: unknown) => {};
    this.#welcomed = new Promise((resolve, reject) => {
      welcome = resolve;
      refuse = reject;
    });
    this.#done = this.#read(welcome).then(
      () => {
        this.ended ??= 'closed';
        refuse(new Error('closed before the welcome'));
      },
      (error: unknown) => {
        this.ended = error;
        refuse(error);
      },
    );
    await this.#welcomed;
    this.#beats = setInterval(() => {
      if (!this.silent) this.say({ $case: 'heartbeat', value: {} });
    }, 1_000);
    this.report();
  }

  /** Cuts the connection as a killed process would. */
  async kill(): Promise<void> {
    clearInterval(this.#beats);
    this.#abort.abort();
    for (const running of this.#running.values()) running.abort();
    await this.#done;
  }

  /** Ends for good. */
  async close(): Promise<void> {
    await this.kill();
    this.#channel.close();
  }

  /** Says something. */
  say(message: NonNullable<ConnectRequest['message']>): void {
    if (this.ended === undefined) this.#outgoing.push({ message });
  }

  /** Reports what is there. */
  report(): void {
    const engine = {
      ready: this.engineReady,
      version: '26',
      restarts: 0,
      error: this.engineReady ? '' : 'not started',
    };
    const value: HostReport = {
      engine,
      instances: this.instances,
      checkpoints: this.checkpoints,
      assignments: [...this.assignments.values()],
      memoryAvailable: this.memoryAvailable,
      volumeServices: [...this.volumeServices],
      usage: this.usage,
      usageEpoch: this.usageEpoch,
      portsFree: this.portsFree,
      revisions: this.revisions,
    };
    this.say({ $case: 'report', value });
  }

  /** Tells an event. */
  event(fields: Partial<Event>): void {
    this.say({ $case: 'event', value: fields as Event });
  }

  /** The build context of a digest, as the control plane gives it. */
  async fetchContext(digest: string): Promise<Buffer> {
    const chunks: Uint8Array[] = [];
    for await (const { chunk } of this.#client.fetchContext({ digest })) chunks.push(chunk);
    return Buffer.concat(chunks);
  }

  /** Commands of a kind that came so far. */
  received<Kind extends Action['$case']>(kind: Kind): ActionValue<Kind>[] {
    const found = this.commands.flatMap(({ action }) => (action?.$case === kind ? [action.value] : []));
    return found as ActionValue<Kind>[];
  }

  async #read(welcome: () => void): Promise<void> {
    for await (const { message } of this.#client.connect(this.#outgoing, { signal: this.#abort.signal })) {
      if (message?.$case === 'welcome') {
        this.settings = message.value.settings;
        welcome();
      } else if (message?.$case === 'settings') {
        this.settings = message.value;
      } else if (message?.$case === 'command') void this.#run(message.value);
      else if (message?.$case === 'cancel') {
        this.cancelled.push(message.value.id);
        this.#running.get(message.value.id)?.abort();
      }
    }
  }

  async #run(command: Command): Promise<void> {
    this.commands.push(command);
    const controller = new AbortController();
    this.#running.set(command.id, controller);
    let outcome: Outcome | undefined;
    try {
      const action = command.action!;
      outcome =
        (await this.script(action, controller.signal, command)) ?? (this.answers ? this.#usual(action) : undefined);
    } catch (error) {
      outcome = { $case: 'problem', value: problemOf(error) };
    }
    this.#running.delete(command.id);
    if (outcome === undefined || this.#abort.signal.aborted) return;
    this.say({ $case: 'result', value: { id: command.id, outcome } });
    this.report();
  }

  #usual(action: Action): Outcome {
    switch (action.$case) {
      case 'prepare':
      case 'copy':
        return { $case: 'prepared', value: this.prepared(action.value) };
      case 'assign':
        this.assignments.set(action.value.config!.serviceName, action.value);
        return { $case: 'done', value: {} };
      case 'withdraw':
        this.assignments.delete(action.value.service);
        return { $case: 'done', value: {} };
      case 'deleteRevisions': {
        const { service, keep, removed } = action.value;
        if (removed) this.volumeServices.delete(service);
        const kept = this.checkpoints.filter((one) => one.service !== service || keep.includes(one.revision));
        this.checkpoints.splice(0, this.checkpoints.length, ...kept);
        return { $case: 'done', value: {} };
      }
      case 'wake': {
        const instance = this.instance(action.value.service, `${action.value.service}-1`);
        this.instances.push(instance);
        return { $case: 'instance', value: instance };
      }
      case 'park':
      case 'thaw':
      case 'remove': {
        const instance = this.instances.find((one) => one.id === action.value.instance)!;
        if (action.$case === 'park') instance.state = InstanceState.INSTANCE_STATE_PARKED;
        if (action.$case === 'thaw') instance.state = InstanceState.INSTANCE_STATE_RUNNING;
        if (action.$case === 'remove') this.instances.splice(this.instances.indexOf(instance), 1);
        return { $case: 'instance', value: instance };
      }
      case 'measure': {
        const { service, kind, round } = action.value;
        const origin = kind === 'restored' ? Origin.ORIGIN_RESTORED : Origin.ORIGIN_COLD;
        return {
          $case: 'measurement',
          value: { service, kind, round, origin, ms: kind === 'restored' ? 100 : 500, stages: [] },
        };
      }
      case 'inspectCheckpoint': {
        const found = this.checkpoints.find((one) => one.service === action.value.service)!;
        return {
          $case: 'checkpoint',
          value: { ...found, files: [{ path: 'core-1.img', size: 1, digest: 'sha256:00' }] },
        };
      }
      case 'readLog':
        return { $case: 'done', value: {} };
    }
  }

  /** A revision that was made, its checkpoint among those that are reported from now on. */
  prepared({ config, revision }: Pick<PrepareRevision, 'config' | 'revision'>) {
    const checkpoint: Checkpoint = {
      service: config!.serviceName,
      revision,
      host: this.name,
      path: `/var/lib/docker/initless/checkpoints/${config!.checkpointName}`,
      format: 1,
      createdAt: new Date(),
      size: 1,
      fingerprint: undefined,
      imageId: `sha256:${revision}`,
      files: [],
      quarantined: undefined,
      stages: [],
      memory: undefined,
    };
    const at = this.checkpoints.findIndex((one) => one.service === checkpoint.service && one.revision === revision);
    this.checkpoints.splice(at === -1 ? this.checkpoints.length : at, at === -1 ? 0 : 1, checkpoint);
    const held = { service: checkpoint.service, revision, imageId: checkpoint.imageId, noCheckpoint: false };
    this.revisions = [...this.revisions.filter((one) => one.revision !== revision), held];
    return { imageId: checkpoint.imageId, checkpoint, problem: undefined };
  }

  /** An instance that runs. */
  instance(service: string, id: string): Instance {
    return {
      id,
      service,
      revision: this.assignments.get(service)?.revision ?? '',
      host: this.name,
      state: InstanceState.INSTANCE_STATE_RUNNING,
      origin: Origin.ORIGIN_RESTORED,
      address: '127.0.0.1:20000',
      createdAt: new Date(),
      leases: 0,
      stages: [],
      goneReason: 0,
      pid: 1,
      problem: undefined,
      memory: MemoryMode.MEMORY_MODE_COPIED,
    };
  }
}
