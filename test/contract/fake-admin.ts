import {
  AdminServiceDefinition,
  type AdminServiceImplementation,
  type ApplyServiceRequest,
} from '../../proto/gen/initless/v1/admin.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { createRpcServer } from '../../proto/rpc/server.js';

/** A control plane that answers what a test tells it to, over real gRPC. */
export interface FakeAdmin {
  /** "127.0.0.1:PORT". */
  address: string;
  /** Names of the calls that came, in order. */
  calls: string[];
  stop(): Promise<void>;
}

/** Starts one on an ephemeral port. A call that is not scripted fails as NOT_ALLOWED. */
export async function startFakeAdmin(script: Partial<AdminServiceImplementation>): Promise<FakeAdmin> {
  const calls: string[] = [];
  const methods = Object.keys(AdminServiceDefinition.methods) as (keyof AdminServiceImplementation)[];
  const implementation = Object.fromEntries(
    methods.map((name) => [
      name,
      (request: never, context: never) => {
        calls.push(name);
        const scripted = script[name] as ((request: never, context: never) => unknown) | undefined;
        if (!scripted) throw new InitlessError('NOT_ALLOWED', `${name} is not scripted`);
        return scripted(request, context);
      },
    ]),
  ) as unknown as AdminServiceImplementation;
  const server = createRpcServer(['initless.v1.AdminService'], (path, error) => {
    throw new Error(`${path}: ${String(error)}`);
  });
  server.add(AdminServiceDefinition, implementation);
  const port = await server.listen('127.0.0.1:0');
  return { address: `127.0.0.1:${port}`, calls, stop: () => server.stop(200) };
}

/** What an ApplyService call sent: the folder it named, or the origin and the archive it uploaded. */
export async function receiveApply(
  requests: AsyncIterable<ApplyServiceRequest>,
): Promise<{ folder: string; origin: string; archive: Buffer }> {
  let folder = '';
  let origin = '';
  const chunks: Buffer[] = [];
  for await (const { source } of requests) {
    if (source?.$case === 'folder') folder = source.value;
    if (source?.$case === 'upload') origin = source.value.origin;
    if (source?.$case === 'chunk') chunks.push(source.value);
  }
  return { folder, origin, archive: Buffer.concat(chunks) };
}
