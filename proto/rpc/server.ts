import { readFileSync } from 'node:fs';
import { type CallContext, createServer, type ServerMiddlewareCall } from 'nice-grpc';
import { ServerError } from 'nice-grpc-common';
import { errorDetailsServerMiddleware } from 'nice-grpc-error-details';
import { HealthDefinition, HealthServiceImpl, HealthState } from 'nice-grpc-server-health';
import { ServerReflection, ServerReflectionService } from 'nice-grpc-server-reflection';
import { InitlessError, toGrpcError } from './errors.js';

/** The descriptor set of proto/, made by `npm run generate`; it stands two folders up both in the sources and in dist. */
const DESCRIPTORS = new URL('../gen/descriptors.binpb', import.meta.url);

/** Messages up to this size are taken: a build context's chunks are far below it, reports of many instances near it. */
const MAX_MESSAGE_BYTES = 4 * 1024 * 1024;

type Server = ReturnType<typeof createServer>;

/** A gRPC server with reflection (v1 and v1alpha), health and the error catalogue. */
export interface RpcServer {
  /** Adds a service; only before the first {@link listen}. */
  add: Server['add'];
  /** Listens on "HOST:PORT" and gives the port (useful with port 0). Errors: PORT_TAKEN, INTERNAL. */
  listen(address: string): Promise<number>;
  /** What health checks answer from now on; "unhealthy" until the first call. */
  setReady(ready: boolean): void;
  /** Stops taking calls and waits for those under way, then cuts what is left after `graceMs`. */
  stop(graceMs: number): Promise<void>;
}

/** Any thrown thing becomes a status with details; what is not in the catalogue is reported to `onUnexpected`. */
function errorMiddleware(onUnexpected: (path: string, error: unknown) => void) {
  return async function* errors<Request, Response>(
    call: ServerMiddlewareCall<Request, Response>,
    context: CallContext,
  ): AsyncGenerator<Response, Response | undefined, undefined> {
    try {
      return (yield* call.next(call.request, context)) as Response | undefined;
    } catch (thrown) {
      if (thrown instanceof ServerError) throw thrown;
      if (context.signal.aborted)
        throw toGrpcError(new InitlessError('CANCELLED', `${call.method.path}: the caller went away`));
      const known = thrown instanceof InitlessError;
      if (!known) onUnexpected(call.method.path, thrown);
      throw toGrpcError(thrown);
    }
  };
}

/**
 * Makes a gRPC server.
 *
 * @param serviceNames full names of our own services that reflection lists.
 * @param onUnexpected told of each error that is not in the catalogue, with the method's path.
 */
export function createRpcServer(
  serviceNames: readonly string[],
  onUnexpected: (path: string, error: unknown) => void,
): RpcServer {
  const server = createServer({
    'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
    'grpc.keepalive_time_ms': 10_000,
    'grpc.keepalive_timeout_ms': 5_000,
    'grpc.keepalive_permit_without_calls': 1,
  })
    .use(errorDetailsServerMiddleware)
    .use(errorMiddleware(onUnexpected));
  const health = HealthState();
  health.setStatus('unhealthy');
  server.add(HealthDefinition, HealthServiceImpl(health));

  const protoset = readFileSync(DESCRIPTORS);
  const listed = [...serviceNames, 'grpc.health.v1.Health'];
  const reflection = ServerReflection(protoset, listed);
  server.add(ServerReflectionService, reflection);
  // grpcurl before 1.8.8 asks v1alpha only; the messages are the same.
  const v1alpha = {
    serverReflectionInfo: {
      ...ServerReflectionService.serverReflectionInfo,
      path: '/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo',
    },
  } as unknown as typeof ServerReflectionService;
  server.add(v1alpha, reflection);

  return {
    add: server.add.bind(server) as Server['add'],
    async listen(address) {
      try {
        return await server.listen(address);
      } catch (cause) {
        const text = cause instanceof Error ? cause.message : String(cause);
        if (!/EADDRINUSE|No address added/.test(text)) throw cause;
        throw new InitlessError('PORT_TAKEN', `cannot listen on ${address}: ${text}`, {
          subject: address,
          nextStep: `stop what listens there ('ss -ltnp' shows it), or choose another address with --listen`,
          cause,
        });
      }
    },
    setReady(ready) {
      health.setStatus(ready ? 'healthy' : 'unhealthy');
      for (const name of serviceNames) health.setStatus(ready ? 'healthy' : 'unhealthy', name);
    },
    async stop(graceMs) {
      health.setStatus('unhealthy');
      const timer = setTimeout(() => server.forceShutdown(), graceMs);
      try {
        await server.shutdown();
      } finally {
        clearTimeout(timer);
      }
    },
  };
}
