import { Status } from 'nice-grpc-common';
import { type AdminServiceClient, AdminServiceDefinition } from '../../proto/gen/initless/v1/admin.js';
import { connect, createRpcClient } from '../../proto/rpc/client.js';
import { deadline, withDeadline } from '../../proto/rpc/deadline.js';
import { fromGrpcError, InitlessError } from '../../proto/rpc/errors.js';

/** What a call must be given. */
export interface CallOptions {
  signal: AbortSignal;
}

/** A connection to the control plane's AdminService. Each call ends by its bound or when the program is told to end. */
export interface Admin {
  /** Address it talks to, "HOST:PORT". */
  readonly address: string;
  /**
   * One call with one answer.
   * @param pending what is waited for, for the message of a time-out.
   * @param ms bound.
   */
  call<T>(
    pending: string,
    ms: number,
    work: (client: AdminServiceClient, options: CallOptions) => Promise<T>,
  ): Promise<T>;
  /**
   * One call with a stream of answers, `ms` long at most; undefined: for as long as the user wants. Leaving the loop
   * ends the call.
   */
  stream<T>(
    pending: string,
    ms: number | undefined,
    open: (client: AdminServiceClient, options: CallOptions) => AsyncIterable<T>,
  ): AsyncGenerator<T>;
  /** Ends the connection. */
  close(): void;
}

/** A client for the control plane at `address`; it connects with the first call. Errors of its calls: InitlessError. */
export function connectAdmin(address: string, interrupted: AbortSignal): Admin {
  const channel = connect(address);
  const client: AdminServiceClient = createRpcClient(AdminServiceDefinition, channel);
  return {
    address,
    async call(pending, ms, work) {
      try {
        return await withDeadline(ms, pending, interrupted, (signal) => work(client, { signal }));
      } catch (thrown) {
        throw describe(thrown, address);
      }
    },
    async *stream(pending, ms, open) {
      const bound = ms === undefined ? undefined : deadline(ms, pending, interrupted);
      const signal = bound?.signal ?? interrupted;
      try {
        yield* open(client, { signal });
      } catch (thrown) {
        throw describe(signal.aborted ? signal.reason : thrown, address);
      } finally {
        bound?.clear();
      }
    },
    close: () => channel.close(),
  };
}

/** The error of a call, with what to do when nobody answered it. */
function describe(thrown: unknown, address: string): InitlessError {
  const error = fromGrpcError(thrown, `control plane at ${address}`);
  if (error.code === 'CONTROL_PLANE_DOWN' && error.nextStep === '') {
    const refused = /ECONNREFUSED|ENOENT/.test(error.message);
    return new InitlessError(
      'CONTROL_PLANE_DOWN',
      refused ? `the control plane is not running on ${address}` : `the control plane on ${address} cannot be reached`,
      {
        subject: address,
        nextStep:
          "start it with 'initless control-plane' (or 'initless up', which starts the gateway too), or name another one with --server",
        outputTail: refused ? [] : [error.message],
        cause: error,
      },
    );
  }
  if ((error.cause as { code?: unknown } | undefined)?.code === Status.UNIMPLEMENTED) {
    return new InitlessError('UNSUPPORTED', `what answers on ${address} is not a control plane of this version`, {
      subject: address,
      nextStep: 'name the right address with --server, or restart the control plane',
      outputTail: [error.message],
      cause: error,
    });
  }
  return error;
}
