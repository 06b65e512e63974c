import { Status } from 'nice-grpc';
import { ClientError } from 'nice-grpc-common';
import type { CopySource } from '../../proto/gen/initless/v1/fleet.js';
import {
  type DescribeRevisionResponse,
  type ExportRevisionRequest,
  type TransferPart,
  TransferServiceDefinition,
} from '../../proto/gen/initless/v1/transfer.js';
import { connect, createRpcClient } from '../../proto/rpc/client.js';
import { withDeadline } from '../../proto/rpc/deadline.js';
import { fromGrpcError, InitlessError } from '../../proto/rpc/errors.js';
import { checkPart, idOf } from './parts.js';

/** Bounds, in milliseconds, on an answer of another host: what it has, what it makes ready, and each piece of a chunk. */
const DESCRIBE_TIMEOUT_MS = 60_000;
const EXPORT_TIMEOUT_MS = 660_000;
const SILENCE_MS = 60_000;
/** A manifest names every file that a service changed, and a part every chunk of a file: tens of thousands of either. */
const MAX_MESSAGE_BYTES = 64 * 1024 * 1024;

/** Bytes that may be on their way: with the default of 64 KiB every piece costs several round trips. */
const WINDOW_BYTES = 4 * 1024 * 1024;

/** What another host is the reason of: the next one may do better. What this host is the reason of has another class. */
export class SourceFailure extends Error {
  /** It may be different once the parts were asked for again. */
  readonly again: boolean;

  constructor(message: string, again: boolean, cause?: unknown) {
    super(message, { cause });
    this.name = 'SourceFailure';
    this.again = again;
  }
}

/** A host that a revision is copied from. All of its errors are {@link SourceFailure}s, or the signal's reason. */
export interface Source {
  readonly host: string;
  describe(signal: AbortSignal): Promise<DescribeRevisionResponse>;
  export(
    what: Pick<ExportRevisionRequest, 'image' | 'layers' | 'manifest'>,
    signal: AbortSignal,
  ): Promise<TransferPart[]>;
  /** Chunks of a part, each whole, in order. They are not checked. */
  fetch(part: TransferPart, first: number, count: number, signal: AbortSignal): AsyncGenerator<Buffer>;
  close(): void;
}

/** A source over gRPC. */
export function dialSource({ host, address }: CopySource, service: string, revision: string): Source {
  const channel = connect(address, {
    'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
    'grpc-node.flow_control_window': WINDOW_BYTES,
  });
  const client = createRpcClient(TransferServiceDefinition, channel);
  const about = { service, revision };
  const call = async <T>(ms: number, what: string, signal: AbortSignal, work: (signal: AbortSignal) => Promise<T>) => {
    try {
      return await withDeadline(ms, `${what} of ${host}`, signal, work);
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      throw failureOf(error, address);
    }
  };
  // The first call: a host that does not answer it is not there.
  const once = (error: unknown) => {
    throw error instanceof SourceFailure ? new SourceFailure(error.message, false, error) : error;
  };
  return {
    host,
    close: () => channel.close(),
    describe: (signal) =>
      call(DESCRIBE_TIMEOUT_MS, 'the description', signal, (stop) =>
        client.describeRevision(about, { signal: stop }),
      ).catch(once),
    async export(what, signal) {
      const { parts } = await call(EXPORT_TIMEOUT_MS, 'the parts', signal, (stop) =>
        client.exportRevision({ ...about, ...what }, { signal: stop }),
      );
      try {
        parts.forEach(checkPart);
      } catch (error) {
        throw failureOf(error, address);
      }
      return parts;
    },
    async *fetch(part, first, count, signal) {
      const stop = new AbortController();
      const onAbort = () => stop.abort(signal.reason);
      if (signal.aborted) onAbort();
      signal.addEventListener('abort', onAbort, { once: true });
      try {
        const request = { ...about, part: idOf(part), first, count };
        const answer = client.fetchPart(request, { signal: stop.signal })[Symbol.asyncIterator]();
        for (const { length } of part.chunks.slice(first, first + count)) {
          const chunk = Buffer.allocUnsafe(length);
          for (let filled = 0; filled < length; ) {
            const next = await call(SILENCE_MS, 'a piece', signal, () => answer.next());
            if (next.done) throw new SourceFailure(`it ended before all of ${part.name} had come`, true);
            const { data } = next.value;
            if (data.length === 0 || data.length > length - filled) {
              throw new SourceFailure(`it sent ${data.length} bytes where ${length - filled} were left`, true);
            }
            filled += data.copy(chunk, filled);
          }
          yield chunk;
        }
      } finally {
        signal.removeEventListener('abort', onAbort);
        // Ends the call where not all of it was read.
        stop.abort(new InitlessError('CANCELLED', 'no more of it is needed'));
      }
    },
  };
}

function failureOf(error: unknown, address: string): SourceFailure {
  const { code, message } = fromGrpcError(error, address);
  const cut = error instanceof ClientError && error.code === Status.UNAVAILABLE;
  // A connection that is cut may be there again at once; a host that is gone does not answer the next description.
  return new SourceFailure(message, code === 'NOT_FOUND' || cut, error);
}
