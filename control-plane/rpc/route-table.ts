import { randomUUID } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import type { Route, WatchRoutesResponse } from '../../proto/gen/initless/v1/routing.js';

/** Versions whose changes are remembered: a gateway that was away for more of them gets the whole table. */
const KEPT = 256;

/** What one change did. */
interface Change {
  version: number;
  /** Services whose routes are new, differ, or are gone. */
  services: readonly string[];
}

/** The route table with its versions: what a gateway has to be sent, given what it has. */
export class RouteTable {
  /** Another one with each start: versions of two have nothing to do with each other. */
  readonly name = randomUUID();
  #version = 0;
  #routes = new Map<string, Route>();
  readonly #changes: Change[] = [];

  /** Version of what is in it now. 0: nothing was put in yet. */
  get version(): number {
    return this.#version;
  }

  /** Puts a table in. Whether anything is different; the version has then grown. */
  update(routes: readonly Route[]): boolean {
    const next = new Map(routes.map((route) => [route.service, route]));
    const services = [...new Set([...next.keys(), ...this.#routes.keys()])].filter(
      (service) => !isDeepStrictEqual(next.get(service), this.#routes.get(service)),
    );
    if (services.length === 0 && this.#version > 0) return false;
    this.#version += 1;
    this.#routes = next;
    this.#changes.push({ version: this.#version, services });
    if (this.#changes.length > KEPT) this.#changes.shift();
    return true;
  }

  /** What to send to a gateway that has `version` of the table called `table`; undefined: it has all of it. */
  since(table: string, version: number): WatchRoutesResponse | undefined {
    if (table === this.name && version === this.#version) return undefined;
    const first = this.#changes[0]?.version ?? 1;
    const isChange = table === this.name && version >= first - 1 && version < this.#version && version > 0;
    const changed = isChange
      ? new Set(this.#changes.filter((change) => change.version > version).flatMap((change) => change.services))
      : new Set(this.#routes.keys());
    const services = [...changed].sort();
    return {
      routes: services.flatMap((service) => this.#routes.get(service) ?? []),
      table: this.name,
      version: this.#version,
      isChange,
      removed: services.filter((service) => !this.#routes.has(service)),
    };
  }
}
