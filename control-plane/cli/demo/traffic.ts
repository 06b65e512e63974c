import { setMaxListeners } from 'node:events';
import { InitlessError, toInitlessError } from '../../../proto/rpc/errors.js';
import { call } from './call.js';

/** What came of the requests of some time. */
export interface Tally {
  /** Requests that were sent. */
  asked: number;
  /** Those that were answered with 200. */
  answered: number;
  /** Why the others were not, and how often each. */
  lost: Map<string, number>;
  /** Milliseconds of the slowest that was answered. */
  slowest: number;
}

/** An answer that takes longer counts as lost. */
const ANSWER_MS = 15_000;
/** Between two requests of a client: the load is to show what is lost, not to fill the machine. */
const PAUSE_MS = 20;

/** Clients that each send one request after the other, over a connection of its own, until they are stopped. */
export class Traffic {
  #tally = emptyTally();
  readonly #stop = new AbortController();
  readonly #clients: Promise<void>[];

  /** @param urls asked by as many clients each; they end by themselves after `forMs` milliseconds. */
  constructor(urls: readonly string[], clientsEach: number, forMs: number, signal: AbortSignal) {
    const until = performance.now() + forMs;
    // Each request under way listens to it.
    setMaxListeners(0, signal);
    const stop = AbortSignal.any([signal, this.#stop.signal]);
    this.#clients = urls.flatMap((url) =>
      Array.from({ length: clientsEach }, async () => {
        while (!stop.aborted && performance.now() < until) {
          await this.#one(url, signal);
          await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
        }
      }),
    );
  }

  /** What came of the requests since the last time it was asked; one that is under way counts when it ends. */
  take(): Tally {
    const tally = this.#tally;
    this.#tally = emptyTally();
    return tally;
  }

  /** Ends it once the requests under way have ended. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await Promise.all(this.#clients);
  }

  async #one(url: string, signal: AbortSignal): Promise<void> {
    const note = (why: string) => {
      this.#tally.asked += 1;
      this.#tally.lost.set(why, (this.#tally.lost.get(why) ?? 0) + 1);
    };
    try {
      const { status, body, ms } = await call(url, ANSWER_MS, signal);
      if (status !== 200) return note(`${status} ${codeOf(body)}`);
      this.#tally.asked += 1;
      this.#tally.answered += 1;
      this.#tally.slowest = Math.max(this.#tally.slowest, ms);
    } catch (thrown) {
      if (signal.aborted) throw new InitlessError('CANCELLED', 'stopped; pending was: the load on the gateways');
      note(toInitlessError(thrown).message);
    }
  }
}

/** The code in the gateway's own answer; empty for another one. */
function codeOf(body: string): string {
  return /"code":\s*"([A-Z_]+)"/.exec(body)?.[1] ?? '';
}

function emptyTally(): Tally {
  return { asked: 0, answered: 0, lost: new Map(), slowest: 0 };
}
