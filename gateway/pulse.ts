import { ClientError, Status } from 'nice-grpc';
import { HealthDefinition } from 'nice-grpc-server-health';
import { type connect, createRpcClient } from '../proto/rpc/client.js';
import { InitlessError } from '../proto/rpc/errors.js';

/** An agent of which something is held or asked is listened to this often, milliseconds; any other one more rarely. */
const BUSY_MS = 500;
const IDLE_MS = 5_000;
/** An agent that is asked for its health answers within this time, milliseconds, or counts as silent. */
export const SILENT_MS = 1_000;
/** A health check is not waited for any longer than this, milliseconds. */
const CHECK_MS = 10_000;
/** What a call ends with that its peer has not answered. */
const NO_ANSWER = new Set([Status.UNAVAILABLE, Status.CANCELLED, Status.DEADLINE_EXCEEDED]);

/**
 * Listens to whether an agent answers at all, over the connection of its lease stream: an acquire may rightly take long, so
 * its silence says nothing. A peer that hangs, or is cut off, is noticed seconds before its connection breaks.
 */
export class Pulse {
  readonly #channel: ReturnType<typeof connect>;
  readonly #isBusy: () => boolean;
  readonly #report: (silent: boolean) => void;
  readonly #stopping = new AbortController();
  #timer: NodeJS.Timeout;
  #heardAt = performance.now();
  #silent = false;
  /** A check is under way. */
  #checking = false;

  /** @param report told whenever the agent falls silent, and when it is heard again. */
  constructor(channel: ReturnType<typeof connect>, isBusy: () => boolean, report: (silent: boolean) => void) {
    this.#channel = channel;
    this.#isBusy = isBusy;
    this.#report = report;
    this.#timer = setTimeout(() => this.#beat(), BUSY_MS);
  }

  /** Something came from the agent. */
  heard(): void {
    this.#heardAt = performance.now();
    this.#become(false);
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#stopping.abort(new InitlessError('CANCELLED', 'the lease stream has ended'));
  }

  #beat(): void {
    const quietFor = performance.now() - this.#heardAt;
    if (!this.#checking && quietFor >= (this.#isBusy() ? BUSY_MS : IDLE_MS)) void this.#check();
    this.#timer = setTimeout(() => this.#beat(), BUSY_MS);
  }

  async #check(): Promise<void> {
    this.#checking = true;
    // What came while this process itself was held up is read before anything is concluded.
    const late = setTimeout(() => setImmediate(() => this.#checking && this.#become(true)), SILENT_MS);
    try {
      const signal = AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(CHECK_MS)]);
      await createRpcClient(HealthDefinition, this.#channel).check({ service: '' }, { signal });
      this.heard();
    } catch (error) {
      // Whoever answers that it cannot say answers. Of anything else the connection's own end says more, or the next check.
      if (error instanceof ClientError && !NO_ANSWER.has(error.code)) this.heard();
    } finally {
      clearTimeout(late);
      this.#checking = false;
    }
  }

  #become(silent: boolean): void {
    if (this.#silent === silent || this.#stopping.signal.aborted) return;
    this.#silent = silent;
    this.#report(silent);
  }
}
