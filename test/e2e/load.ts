import { request } from './support.js';

/** What came of a load. */
export interface Outcome {
  /** Requests that were answered 200 with the right body. */
  answered: number;
  /** What came instead, for each of the others: status and body, or the error of the connection. */
  failures: string[];
  /** Milliseconds of the longest request. */
  longest: number;
}

/** Clients that each send one request after the other until they are told to stop, or ten minutes have passed. */
export class Load {
  readonly outcome: Outcome = { answered: 0, failures: [], longest: 0 };
  readonly #clients: Promise<void>[];
  #over = false;
  #number = 0;

  /** @param url of a service made of `services/state`, whose /echo is asked. */
  constructor(url: string, clients: number) {
    const until = Date.now() + 600_000;
    this.#clients = Array.from({ length: clients }, async () => {
      while (!this.#over && Date.now() < until) await this.#one(url);
    });
  }

  async #one(url: string): Promise<void> {
    const start = performance.now();
    const failure = await echo(url, `text ${++this.#number}`);
    this.outcome.longest = Math.max(this.outcome.longest, performance.now() - start);
    if (failure === undefined) this.outcome.answered += 1;
    else this.outcome.failures.push(failure);
  }

  /** Waits until so many more requests have been answered. Rejects after 30 s. */
  async progress(more = 20): Promise<void> {
    const wanted = this.outcome.answered + more;
    const end = Date.now() + 30_000;
    while (this.outcome.answered < wanted) {
      if (Date.now() > end) {
        throw new Error(
          `after 30 s only ${this.outcome.answered} of ${wanted} were answered; ${this.outcome.failures}`,
        );
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  /** Ends it, when the requests under way have been answered. */
  async stop(): Promise<Outcome> {
    this.#over = true;
    await Promise.all(this.#clients);
    return this.outcome;
  }
}

/** Asks once; undefined when the answer was right, else what came. */
export async function echo(url: string, text: string): Promise<string | undefined> {
  try {
    const { status, body } = await request(`${url}/echo?text=${encodeURIComponent(text)}`);
    if (status === 200 && (JSON.parse(body) as { echo: string }).echo === text) return undefined;
    return `${status} ${body}`;
  } catch (error) {
    return (error as Error).message;
  }
}
