import { describe, expect, it } from 'vitest';
import { FleetWorld } from './fleet-world.js';

describe('a fleet', () => {
  it('serves a service from several hosts', () => {
    const world = new FleetWorld({ seed: 1, hosts: 3 });
    world.apply('web', 'v1', 'max_pool_size: 4\npre_start_pool_size: 3\n');
    world.clock.pass(60_000);
    console.log(
      JSON.stringify(
        world.decided.map(({ at, decision }) => [
          at,
          decision.type,
          (decision as any).host,
          (decision as any).assignment?.pool,
        ]),
      ),
    );
    for (let i = 0; i < 100; i++) {
      world.request('web', 500);
      world.clock.pass(100);
    }
    world.clock.pass(60_000);
    const kinds = new Map<string, number>();
    for (const o of world.outcomes.values()) {
      const k = JSON.stringify(o);
      kinds.set(k, (kinds.get(k) ?? 0) + 1);
    }
    console.log(kinds, world.clock.steps, world.broken, world.asked.size);
    expect(world.isServed('web')).toBe(true);
  });
});
