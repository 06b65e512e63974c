import type { CallContext } from 'nice-grpc';
import type { Logger } from 'pino';
import {
  type DescribeRevisionRequest,
  type DescribeRevisionResponse,
  type FetchPartRequest,
  type FetchPartResponse,
  RevisionPart,
  type TransferServiceImplementation,
} from '../../proto/gen/initless/v1/transfer.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import type { Checkpoints } from '../checkpoint/checkpoints.js';
import type { Revisions } from '../checkpoint/revisions.js';
import type { DockerEngine } from '../runtime/docker.js';
import { pack } from './archive.js';
import { CHUNK, chunksOf, sha256 } from './chunks.js';
import type { Rate } from './rate.js';

/** Parts that are sent at a time; whoever comes later comes again. */
const SENDS_AT_A_TIME = 4;

/** What revisions are sent from. */
export interface TransferParts {
  docker: Pick<DockerEngine, 'save'>;
  checkpoints: Pick<Checkpoints, 'pin' | 'manifestText'>;
  revisions: Pick<Revisions, 'get'>;
  rate: Rate;
  log: Logger;
}

/** The agent's side towards agents that are to have what it has. */
export class TransferService implements TransferServiceImplementation {
  readonly #parts: TransferParts;
  #sending = 0;

  constructor(parts: TransferParts) {
    this.#parts = parts;
  }

  async describeRevision({ service, revision }: DescribeRevisionRequest): Promise<DescribeRevisionResponse> {
    const { imageId, problem } = this.#parts.revisions.get(service, revision);
    return { imageId, problem, manifest: (await this.#parts.checkpoints.manifestText(service, revision)) ?? '' };
  }

  async *fetchPart(request: FetchPartRequest, { signal }: CallContext): AsyncGenerator<FetchPartResponse> {
    const { service, revision, part, offset } = request;
    if (offset % CHUNK !== 0)
      throw new InitlessError('BAD_REQUEST', `the offset ${offset} is not a multiple of ${CHUNK}`);
    if (this.#sending >= SENDS_AT_A_TIME) {
      throw new InitlessError('EXHAUSTED', `${SENDS_AT_A_TIME} copies are being sent already`, {
        subject: service,
        nextStep: 'ask another host, or again a little later',
      });
    }
    const { imageId } = this.#parts.revisions.get(service, revision);
    const stop = new AbortController();
    const bound = AbortSignal.any([signal, stop.signal]);
    this.#sending += 1;
    let release = () => {};
    try {
      let stream: AsyncIterable<Buffer>;
      if (part === RevisionPart.REVISION_PART_IMAGE) {
        this.#expect(request, imageId);
        stream = await this.#parts.docker.save(imageId, bound);
      } else {
        const text = (await this.#parts.checkpoints.manifestText(service, revision)) ?? '';
        this.#expect(request, sha256(Buffer.from(text)).toString('hex'));
        const pinned = this.#parts.checkpoints.pin(service, revision);
        release = pinned.release;
        stream = pack(pinned.dir, bound);
      }
      this.#parts.log.info({ service, revision, part, offset }, 'a copy is being sent');
      for await (const data of chunksOf(stream, offset)) {
        await this.#parts.rate.take(data.length, bound);
        yield { data, sha256: sha256(data) };
      }
    } finally {
      this.#sending -= 1;
      stop.abort(new InitlessError('CANCELLED', 'the copy is over'));
      release();
    }
  }

  /** Errors: BUSY, so that the asker describes it anew. */
  #expect({ service, revision, version }: FetchPartRequest, is: string): void {
    if (version === is) return;
    throw new InitlessError('BUSY', `revision ${revision} of ${service} is another one here than was described`, {
      subject: service,
    });
  }
}
