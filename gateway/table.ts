import type { Route, WatchRoutesResponse } from '../proto/gen/initless/v1/routing.js';

/** A route table as a control plane sent it. */
export interface Table {
  /** What it calls it: versions of two names have nothing to do with each other. Empty: there is none yet. */
  readonly name: string;
  readonly version: number;
  /** By service. */
  readonly routes: ReadonlyMap<string, Route>;
}

/** What a gateway has that was told nothing yet. */
export const NO_TABLE: Table = { name: '', version: 0, routes: new Map() };

/**
 * The table after a message. Undefined: the message is a change of another table than this, or of a later version, so that
 * the whole must be asked for. A change may be of several versions at once, for a gateway that was away. Pure.
 */
export function applyToTable(before: Table, message: WatchRoutesResponse): Table | undefined {
  const { table: name, version, isChange, removed } = message;
  if (!isChange) return { name, version, routes: byService(message.routes) };
  if (name === '' || name !== before.name || version <= before.version) return undefined;
  const routes = new Map(before.routes);
  for (const service of removed) routes.delete(service);
  for (const route of message.routes) routes.set(route.service, route);
  return { name, version, routes };
}

function byService(routes: readonly Route[]): Map<string, Route> {
  return new Map(routes.map((route) => [route.service, route]));
}
