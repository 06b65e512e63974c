import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type LifecycleEvent, type State, transition } from '../../agent/instance/lifecycle.js';

const EVENTS: LifecycleEvent[] = [
  { type: 'start' },
  { type: 'healthy' },
  { type: 'park' },
  { type: 'thaw' },
  { type: 'drain', reason: 'idle' },
  { type: 'reclaim' },
  { type: 'end', reason: 'operator' },
];

describe('the life of an instance', () => {
  it('goes from its sandbox through a restore to running, parked and back', () => {
    let state: State = 'sandboxed';
    for (const type of ['start', 'healthy', 'park', 'thaw'] as const) state = transition(state, { type });
    expect(state).toBe('running');
  });

  it('lets a lease take a draining instance back', () => {
    expect(transition(transition('running', { type: 'drain', reason: 'idle' }), { type: 'reclaim' })).toBe('running');
  });

  it('refuses a pair of state and event that is not in the table', () => {
    expect(() => transition('sandboxed', { type: 'park' })).toThrow(/sandboxed cannot take the event 'park'/);
  });

  it('never leaves gone, whatever happens', () => {
    fc.assert(
      fc.property(fc.array(fc.constantFrom(...EVENTS), { maxLength: 40 }), (events) => {
        let state: State = 'sandboxed';
        for (const event of events) {
          const before = state;
          try {
            state = transition(state, event);
          } catch {
            expect(state).toBe(before);
          }
          if (before === 'gone') expect(state).toBe('gone');
        }
      }),
      { numRuns: 100_000 },
    );
  });
});
