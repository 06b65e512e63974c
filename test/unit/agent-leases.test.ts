import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Instance } from '../../agent/instance/instance.js';
import { instanceOf, type Lease, newLeaseId, reconcile, takerOf } from '../../agent/instance/leases.js';
import { ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import { Origin } from '../../proto/gen/initless/v1/types.js';

const CAPACITY = 4;

function running(id: string, ...leases: Lease[]): Instance {
  const instance = new Instance(id, ServiceAssignment.fromPartial({}), Origin.ORIGIN_RESTORED);
  instance.apply({ type: 'start' });
  instance.apply({ type: 'healthy' });
  for (const lease of leases) instance.leases.set(lease.id, lease);
  return instance;
}

function lease(id: string, gateway: string, slots: number): Lease {
  return { id, gateway, slots };
}

function named(id: string, slots: number, instance = instanceOf(id), asleep = false) {
  return { leaseId: id, instance, slots, asleep };
}

/** What stands, as "LEASE SLOTS", and what has ended. */
function outcome(gateway: string, names: ReturnType<typeof named>[], ...instances: Instance[]) {
  const { stand, ended } = reconcile(gateway, names, instances, () => CAPACITY);
  return { stand: stand.map(({ lease }) => `${lease.id} ${lease.slots}`), ended };
}

describe('what a gateway says that it holds', () => {
  it('stands as it is known, with fewer slots if it says so; what it does not name has ended', () => {
    const instance = running('i', lease('i/1', 'g', 2), lease('i/2', 'g', 1), lease('i/3', 'other', 1));
    expect(outcome('g', [named('i/1', 1)], instance)).toEqual({ stand: ['i/1 1'], ended: ['i/2'] });
  });

  it('stands although it is not known, in the room that is left when the rest is given back', () => {
    const instance = running('i', lease('i/1', 'g', 3), lease('i/2', 'other', 1));
    expect(outcome('g', [named('i/9', 3)], instance)).toEqual({ stand: ['i/9 3'], ended: ['i/1'] });
    expect(outcome('g', [named('i/9', 4)], instance)).toEqual({ stand: [], ended: ['i/1'] });
  });

  it('does not stand with more slots than are known when there is no room for them', () => {
    const instance = running('i', lease('i/1', 'g', 1), lease('i/2', 'other', 2));
    expect(outcome('g', [named('i/1', 2)], instance)).toEqual({ stand: ['i/1 2'], ended: [] });
    expect(outcome('g', [named('i/1', 3)], instance)).toEqual({ stand: [], ended: ['i/1'] });
  });

  it('stands although a lowered limit has no room for it any more', () => {
    expect(outcome('g', [named('i/1', 9)], running('i', lease('i/1', 'g', 9)))).toEqual({
      stand: ['i/1 9'],
      ended: [],
    });
  });

  it('does not stand on an instance that is not there or does not run, nor when it is of no lease of its own', () => {
    const parked = running('p');
    parked.apply({ type: 'park' });
    const instance = running('i', lease('i/2', 'other', 1));
    const names = [named('x/1', 1), named('p/1', 1), named('i/2', 1), named('i/3', 0), named('j/4', 1, 'i')];
    expect(outcome('g', names, parked, instance)).toEqual({ stand: [], ended: [] });
  });

  it('stands unused only on an instance that is parked and nobody else has', () => {
    const parked = (...leases: Lease[]) => {
      const instance = running('p', ...leases);
      instance.apply({ type: 'park' });
      return instance;
    };
    const asleep = (gateway: string, id = 'p/1') => ({ ...lease(id, gateway, CAPACITY), asleep: true });
    const names = [named('p/1', CAPACITY, 'p', true)];
    expect(reconcile('g', names, [parked()], () => CAPACITY).stand).toMatchObject([{ lease: asleep('g') }]);
    expect(outcome('g', names, parked(asleep('g')))).toEqual({ stand: ['p/1 4'], ended: [] });
    expect(outcome('g', names, parked(asleep('other', 'p/2')))).toEqual({ stand: [], ended: [] });
    expect(outcome('g', names, parked(asleep('g', 'p/2')))).toEqual({ stand: [], ended: ['p/2'] });
    expect(outcome('g', names, running('p', lease('p/1', 'g', CAPACITY)))).toEqual({ stand: [], ended: ['p/1'] });
  });

  it('counts once when it is said twice', () => {
    expect(outcome('g', [named('i/1', 3), named('i/1', 3)], running('i'))).toEqual({ stand: ['i/1 3'], ended: [] });
  });

  it('never makes for more slots than an instance has, and takes nothing from others, whatever is said', () => {
    const id = fc.constantFrom('i/1', 'i/2', 'i/3', 'j/1', 'j/2', 'x/1');
    const known = fc.record({ id, gateway: fc.constantFrom('g', 'other'), slots: fc.integer({ min: 1, max: 2 }) });
    const said = fc.record({ id, slots: fc.nat(6) });
    fc.assert(
      fc.property(
        fc.uniqueArray(known, { selector: (each) => each.id, maxLength: 5 }),
        fc.array(said, { maxLength: 8 }),
        (before, names) => {
          const on = (name: string) => before.filter(({ id }) => instanceOf(id) === name);
          const room = (name: string) => on(name).reduce((left, { slots }) => left - slots, CAPACITY);
          fc.pre(room('i') >= 0 && room('j') >= 0);
          const instances = ['i', 'j'].map((name) => running(name, ...on(name)));
          const { stand, ended } = reconcile(
            'g',
            names.map(({ id, slots }) => named(id, slots)),
            instances,
            () => CAPACITY,
          );
          for (const instance of instances) {
            const others = [...instance.leases.values()].filter(({ gateway }) => gateway === 'other');
            const ours = stand.filter((one) => one.instance === instance).map((one) => one.lease);
            const slots = [...others, ...ours].reduce((sum, each) => sum + each.slots, 0);
            expect(slots).toBeLessThanOrEqual(CAPACITY);
          }
          // Each lease that was its own either stands or has ended, and nothing of others has.
          const mine: string[] = before
            .filter(({ gateway, id }) => gateway === 'g' && instanceOf(id) !== 'x')
            .map(({ id }) => id);
          const kept = stand.map((one) => one.lease.id).filter((id) => mine.includes(id));
          expect([...kept, ...ended].sort()).toEqual(mine.sort());
        },
      ),
      { numRuns: 2_000 },
    );
  });
});

describe('a parked instance', () => {
  it('is for the gateway with the fewest reserved ones of its service, and for none that has eight', () => {
    const reserved = (id: string, gateway: string) => running(id, { ...lease(`${id}/1`, gateway, 1), asleep: true });
    const eight = Array.from({ length: 8 }, (_, index) => reserved(`i${index}`, 'a'));
    expect(takerOf('', ['a', 'b'], [])).toBe('a');
    expect(takerOf('', ['a', 'b'], [reserved('i', 'a')])).toBe('b');
    expect(takerOf('', ['a'], eight.slice(1))).toBe('a');
    expect(takerOf('', ['a'], eight)).toBeUndefined();
    expect(takerOf('other', ['a'], eight)).toBe('a');
    expect(takerOf('', [], [])).toBeUndefined();
  });
});

describe('the name of a lease', () => {
  it('tells the instance and differs from all others', () => {
    const names = Array.from({ length: 1_000 }, () => newLeaseId('web-1a2b'));
    expect(new Set(names).size).toBe(1_000);
    expect(names.every((name) => instanceOf(name) === 'web-1a2b')).toBe(true);
  });
});
