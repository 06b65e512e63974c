import type { CallContext } from 'nice-grpc';
import type {
  DescribeRevisionRequest,
  ExportRevisionRequest,
  FetchPartRequest,
  FetchPartResponse,
  TransferServiceImplementation,
} from '../../proto/gen/initless/v1/transfer.js';
import type { Exports } from './exports.js';

/** The agent's side towards other agents: what this host has, over gRPC. */
export class TransferService implements TransferServiceImplementation {
  readonly #exports: Exports;

  constructor(exports: Exports) {
    this.#exports = exports;
  }

  /** See transfer.proto. */
  describeRevision({ service, revision }: DescribeRevisionRequest, { signal }: CallContext) {
    return this.#exports.describe(service, revision, signal);
  }

  /** See transfer.proto. */
  async exportRevision(request: ExportRevisionRequest, { signal }: CallContext) {
    return { parts: await this.#exports.export(request, signal) };
  }

  /** See transfer.proto. */
  async *fetchPart(request: FetchPartRequest, { signal }: CallContext): AsyncGenerator<FetchPartResponse> {
    for await (const data of this.#exports.read(request, signal)) yield { data };
  }
}
