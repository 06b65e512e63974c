import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { pino } from 'pino';
import { packFolder } from '../../control-plane/contexts/folder.js';
import { startControlPlane } from '../../control-plane/main.js';
import type { ControlPlane, ControlPlaneOptions } from '../../control-plane/options.js';
import { AdminServiceDefinition, type ApplyServiceRequest } from '../../proto/gen/initless/v1/admin.js';
import { type Service, ServiceState } from '../../proto/gen/initless/v1/types.js';
import { connect, createRpcClient } from '../../proto/rpc/client.js';
import { type ErrorCode, fromGrpcError, type InitlessError } from '../../proto/rpc/errors.js';
import { FakeFleetAgent } from './fake-fleet-agent.js';

/** A real control plane on ports and in folders of its own, with a client, and agents on demand. */
export class Harness {
  readonly root: string;
  readonly codeDir: string;
  readonly stateDir: string;
  #controlPlane: ControlPlane | undefined;
  #channel: ReturnType<typeof connect> | undefined;
  readonly #agents: FakeFleetAgent[] = [];
  admin!: ReturnType<typeof createRpcClient<typeof AdminServiceDefinition>>;

  private constructor(root: string) {
    this.root = root;
    this.codeDir = join(root, 'code');
    this.stateDir = join(root, 'state');
  }

  static async start(options: Partial<ControlPlaneOptions> = {}): Promise<Harness> {
    const harness = new Harness(await mkdtemp(join(tmpdir(), 'initless-control-plane-')));
    await mkdir(harness.codeDir);
    await harness.boot(options);
    return harness;
  }

  /** Starts the control plane (again). */
  async boot(options: Partial<ControlPlaneOptions> = {}): Promise<void> {
    this.#controlPlane = await startControlPlane({
      project: 'test',
      stateDir: this.stateDir,
      codeDir: this.codeDir,
      listen: '127.0.0.1:0',
      httpListen: '127.0.0.1:0',
      logger: pino({ level: process.env.TEST_LOG ?? 'silent' }),
      env: {},
      cwd: this.root,
      ...options,
    });
    this.#channel = connect(this.address);
    this.admin = createRpcClient(AdminServiceDefinition, this.#channel);
  }

  /** Stops the control plane; its folders stay. */
  async halt(): Promise<void> {
    this.#channel?.close();
    await this.#controlPlane?.stop();
    this.#controlPlane = undefined;
  }

  async stop(): Promise<void> {
    for (const agent of this.#agents) await agent.close();
    await this.halt();
    await rm(this.root, { recursive: true, force: true });
  }

  get controlPlane(): ControlPlane {
    return this.#controlPlane!;
  }

  get address(): string {
    return `127.0.0.1:${this.controlPlane.grpcPort}`;
  }

  /** An agent that is connected. */
  async agent(name = 'host1', prepare: (agent: FakeFleetAgent) => void = () => {}): Promise<FakeFleetAgent> {
    const agent = this.stranger(name);
    prepare(agent);
    await agent.connect();
    return agent;
  }

  /** An agent that is not connected yet. */
  stranger(name: string): FakeFleetAgent {
    const agent = new FakeFleetAgent(this.address, name);
    this.#agents.push(agent);
    return agent;
  }

  /** Writes a service's folder below `code_dir`, or below `parent`. */
  async folder(
    name: string,
    config: string,
    files: Record<string, string> = {},
    parent = this.codeDir,
  ): Promise<string> {
    const folder = join(parent, name);
    await write(folder, { Dockerfile: 'FROM scratch\n', ...files, 'config.yaml': config });
    return folder;
  }

  /** Uploads a folder. */
  async upload(folder: string) {
    async function* messages(): AsyncGenerator<ApplyServiceRequest> {
      yield { source: { $case: 'upload', value: { origin: folder } } };
      for await (const chunk of packFolder(folder)) yield { source: { $case: 'chunk', value: chunk } };
    }
    return await this.admin.applyService(messages());
  }

  /** Applies a folder below `code_dir` by its name. */
  async apply(name: string) {
    return await this.admin.applyService(one({ source: { $case: 'folder', value: name } }));
  }

  /** A service as it is now. */
  async service(name: string): Promise<Service> {
    return (await this.admin.getService({ serviceName: name })).service!;
  }

  /** Waits until a service is in a state. */
  async until(name: string, state: keyof typeof ServiceState): Promise<Service> {
    return await eventually(`${name} is ${state}`, async () => {
      const service = await this.service(name).catch(() => undefined);
      return service?.state === ServiceState[state] ? service : undefined;
    });
  }
}

async function* one<T>(item: T): AsyncGenerator<T> {
  yield item;
}

/** Writes files, with the folders they need. */
export async function write(folder: string, files: Record<string, string>): Promise<void> {
  for (const [path, text] of Object.entries(files)) {
    await mkdir(dirname(join(folder, path)), { recursive: true });
    await writeFile(join(folder, path), text);
  }
}

/** The least a service's configuration says. */
export function config(name: string, hostPort: number, more = ''): string {
  return `service_name: ${name}\nservice_port: 80\nhost_port: ${hostPort}\n${more}`;
}

/** Waits for `probe` to give something; the error says what was waited for. */
export async function eventually<T>(what: string, probe: () => T | undefined | Promise<T | undefined>): Promise<T> {
  const end = Date.now() + 8_000;
  for (;;) {
    const found = await probe();
    if (found !== undefined && found !== false) return found;
    if (Date.now() > end) throw new Error(`waited 8 s; pending was: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** The error that a call ends with. */
export async function failure(call: Promise<unknown>): Promise<InitlessError> {
  return await call.then(
    () => {
      throw new Error('the call did not fail');
    },
    (error: unknown) => fromGrpcError(error, 'test'),
  );
}

/** Codes are compared often. */
export async function codeOf(call: Promise<unknown>): Promise<ErrorCode> {
  return (await failure(call)).code;
}
