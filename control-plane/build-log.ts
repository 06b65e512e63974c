import type { BuildOutput } from '../proto/gen/initless/v1/types.js';

/** Lines kept of each service's newest build. */
const KEPT_LINES = 2_000;
/** Longest line kept, in characters. */
const LONGEST_LINE = 4_096;

/** What making each service's newest revision has printed. */
export class BuildLog {
  readonly #lines = new Map<string, BuildOutput[]>();
  readonly #watchers = new Map<string, Set<(output: BuildOutput) => void>>();

  /** A build of a service begins: what an earlier one printed goes. */
  begin(service: string): void {
    this.#lines.set(service, []);
  }

  /** Adds a line. */
  add(output: BuildOutput): void {
    const kept = { ...output, line: output.line.slice(0, LONGEST_LINE) };
    const lines = this.#lines.get(output.service) ?? [];
    this.#lines.set(output.service, lines);
    lines.push(kept);
    if (lines.length > KEPT_LINES) lines.shift();
    for (const tell of this.#watchers.get(output.service) ?? []) tell(kept);
  }

  /** The service is not there any more. */
  forget(service: string): void {
    this.#lines.delete(service);
  }

  /** Calls `tell` with every line kept of a service, then with each that comes, until the returned function is called. */
  follow(service: string, tell: (output: BuildOutput) => void): () => void {
    for (const output of this.#lines.get(service) ?? []) tell(output);
    const watchers = this.#watchers.get(service) ?? new Set();
    this.#watchers.set(service, watchers.add(tell));
    return () => {
      watchers.delete(tell);
      if (watchers.size === 0 && this.#watchers.get(service) === watchers) this.#watchers.delete(service);
    };
  }
}
