import { expect, test } from 'vitest';
import { applyToTable, NO_TABLE, type Table } from '../../gateway/table.js';
import type { Route, WatchRoutesResponse } from '../../proto/gen/initless/v1/routing.js';

function route(service: string, hostPort = 1): Route {
  return { service, hostPort, maxConcurrency: 1, queueTimeoutMs: 1, queueLimit: 1, hosts: [], problem: undefined };
}

function message(changes: Partial<WatchRoutesResponse>): WatchRoutesResponse {
  return { routes: [], table: 'T', version: 1, isChange: false, removed: [], ...changes };
}

const before = applyToTable(NO_TABLE, message({ version: 3, routes: [route('a'), route('b')] })) as Table;

test('a whole table replaces what there was, whatever its version', () => {
  const after = applyToTable(before, message({ table: 'U', version: 1, routes: [route('c')] }));
  expect(after).toEqual({ name: 'U', version: 1, routes: new Map([['c', route('c')]]) });
});

test('a change replaces, adds and removes what it names, also over several versions, and leaves the one before as it was', () => {
  const change = message({ version: 7, isChange: true, routes: [route('b', 2), route('c')], removed: ['a'] });
  const after = applyToTable(before, change);
  expect([...(after?.routes.values() ?? [])]).toEqual([route('b', 2), route('c')]);
  expect(after?.version).toBe(7);
  expect([...before.routes.keys()]).toEqual(['a', 'b']);
});

test('a service that a change removes and names has its route', () => {
  const after = applyToTable(before, message({ version: 4, isChange: true, routes: [route('a', 2)], removed: ['a'] }));
  expect(after?.routes.get('a')).toEqual(route('a', 2));
});

test.each([
  ['of another table', { table: 'U', version: 4 }],
  ['to a version that there is already', { version: 3 }],
  ['without a table', { table: '', version: 4 }],
])('a change %s does not follow', (_, changes) => {
  expect(applyToTable(before, message({ ...changes, isChange: true }))).toBeUndefined();
});

test('a change does not follow where there is no table', () => {
  expect(applyToTable(NO_TABLE, message({ table: '', version: 1, isChange: true }))).toBeUndefined();
});
