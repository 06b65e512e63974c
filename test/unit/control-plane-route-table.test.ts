import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { RouteTable } from '../../control-plane/rpc/route-table.js';
import { Route, type WatchRoutesResponse } from '../../proto/gen/initless/v1/routing.js';

const route = (service: string, hostPort: number) => Route.fromPartial({ service, hostPort });

/** What a gateway makes of what it is sent. */
function take(has: Map<string, number>, response: WatchRoutesResponse | undefined): Map<string, number> {
  if (response === undefined) return has;
  const next = response.isChange ? new Map(has) : new Map<string, number>();
  for (const { service, hostPort } of response.routes) next.set(service, hostPort);
  for (const service of response.removed) next.delete(service);
  return next;
}

describe('the route table', () => {
  it('is sent whole to a gateway that has none, or that of another start', () => {
    const table = new RouteTable();
    table.update([route('a', 1), route('b', 2)]);
    for (const name of ['', 'another']) {
      expect(table.since(name, 1)).toMatchObject({
        isChange: false,
        version: 1,
        routes: [{ service: 'a' }, { service: 'b' }],
      });
    }
    expect(table.since(table.name, 1)).toBeUndefined();
  });

  it('is sent as a change to a gateway that was away for a while', () => {
    const table = new RouteTable();
    table.update([route('a', 1), route('b', 2)]);
    table.update([route('a', 1), route('c', 3)]);
    table.update([route('a', 9), route('c', 3)]);
    expect(table.since(table.name, 1)).toMatchObject({
      isChange: true,
      version: 3,
      routes: [{ service: 'a', hostPort: 9 }, { service: 'c' }],
      removed: ['b'],
    });
  });

  it('does not change when the same is put in again', () => {
    const table = new RouteTable();
    expect(table.update([])).toBe(true);
    expect(table.update([])).toBe(false);
    expect(table.version).toBe(1);
  });

  it('is the same to every gateway, whatever version each had', () => {
    const tables = fc.array(fc.dictionary(fc.constantFrom('a', 'b', 'c'), fc.integer({ min: 1, max: 3 })), {
      minLength: 1,
      maxLength: 300,
    });
    fc.assert(
      fc.property(tables, fc.array(fc.nat(9), { minLength: 1 }), (states, steps) => {
        const table = new RouteTable();
        let has = new Map<string, number>();
        let version = 0;
        for (const [index, state] of states.entries()) {
          table.update(Object.entries(state).map(([service, port]) => route(service, port)));
          if (steps[index % steps.length]! > 2) continue;
          const response = table.since(version === 0 ? '' : table.name, version);
          has = take(has, response);
          version = response?.version ?? version;
          expect(has).toEqual(new Map(Object.entries(state)));
        }
      }),
      { numRuns: 100 },
    );
  });
});
