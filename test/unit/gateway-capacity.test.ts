import { expect, test } from 'vitest';
import { capacityOf, type LeaseView } from '../../gateway/capacity.js';

function lease(host: string, changes: Partial<LeaseView> = {}): LeaseView {
  return { host, slots: 4, inFlight: 1, asleep: false, usable: true, ...changes };
}

test('what is held of each host is summed, and hosts of which nothing is held are there too, in the order of the route', () => {
  const leases = [lease('b'), lease('b', { inFlight: 4 }), lease('a', { asleep: true, inFlight: 0 })];
  expect(capacityOf(leases, ['a', 'b', 'c'])).toEqual([
    { host: 'a', inFlight: 0, slots: 4, free: 4, reserved: 1 },
    { host: 'b', inFlight: 5, slots: 8, free: 3, reserved: 0 },
    { host: 'c', inFlight: 0, slots: 0, free: 0, reserved: 0 },
  ]);
});

test('a lease that takes no more requests counts for those in flight over it only', () => {
  expect(capacityOf([lease('a', { usable: false, inFlight: 2 })], ['a'])).toEqual([
    { host: 'a', inFlight: 2, slots: 2, free: 0, reserved: 0 },
  ]);
});

test('a lease that shrank below what is in flight over it has nothing free', () => {
  expect(capacityOf([lease('a', { slots: 1, inFlight: 3 })], [])).toEqual([
    { host: 'a', inFlight: 3, slots: 3, free: 0, reserved: 0 },
  ]);
});
