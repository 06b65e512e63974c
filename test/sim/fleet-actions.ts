import fc from 'fast-check';
import { Invariants, unsettled } from './fleet-invariants.js';
import { FleetWorld } from './fleet-world.js';

/** Something that happens to a fleet. Hosts and services by number. */
export type Happening =
  | { do: 'load'; service: number; requests: number; durationMs: number; everyMs: number }
  | { do: 'kill'; host: number; wiped: boolean }
  | { do: 'revive' }
  | { do: 'cut'; host: number; ms: number }
  | { do: 'break'; host: number }
  | { do: 'controlPlane'; ms: number }
  | { do: 'revision'; service: number }
  | { do: 'resize'; service: number; max: number; parked: number }
  | { do: 'remove'; service: number }
  | { do: 'disable'; service: number }
  | { do: 'rollBack'; service: number }
  | { do: 'cordon'; host: number }
  | { do: 'drain'; host: number }
  | { do: 'uncordon'; host: number };

/** What happens, and how long nothing else does after it, milliseconds. */
export interface Step {
  what: Happening;
  pauseMs: number;
}

export const HOSTS = 4;
const SERVICES = 4;

const host = fc.nat(HOSTS - 1);
const service = fc.nat(SERVICES - 1);
const ms = (max: number) => fc.integer({ min: 1, max });

const happening: fc.Arbitrary<Happening> = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      ...{ do: fc.constant('load' as const), service, requests: fc.integer({ min: 1, max: 40 }) },
      ...{ durationMs: ms(8_000), everyMs: ms(800) },
    }),
  },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('kill' as const), host, wiped: fc.boolean() }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('revive' as const) }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('cut' as const), host, ms: ms(60_000) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('break' as const), host }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('controlPlane' as const), ms: ms(40_000) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('revision' as const), service }) },
  {
    weight: 2,
    arbitrary: fc.record({
      ...{ do: fc.constant('resize' as const), service },
      ...{ max: fc.integer({ min: 1, max: 8 }), parked: fc.integer({ min: 0, max: 4 }) },
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('remove' as const), service }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('disable' as const), service }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('rollBack' as const), service }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('cordon' as const), host }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('drain' as const), host }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('uncordon' as const), host }) },
);

/** What may happen, in any order. */
export const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.record({ what: happening, pauseMs: fc.oneof(ms(500), ms(8_000), ms(40_000)) }),
  { minLength: 1, maxLength: 25 },
);

interface Configured {
  content: number;
  max: number;
  parked: number | 'auto';
  enabled: boolean;
}

/** Lets things happen to a fleet, then lets it come to rest. Throws when what must hold does not. */
export function live(seed: number, happenings: readonly Step[]): FleetWorld {
  const world = new FleetWorld({ seed, hosts: HOSTS, gateways: 2 });
  const invariants = new Invariants(world);
  const configured: Configured[] = [
    { content: 1, max: 4, parked: 2, enabled: true },
    { content: 1, max: 1, parked: 1, enabled: true },
    { content: 1, max: 6, parked: 'auto', enabled: true },
    { content: 1, max: 3, parked: 0, enabled: true },
  ];
  const apply = (index: number) => {
    const { content, max, parked, enabled } = configured[index]!;
    const keys = { max_pool_size: max, pre_start_pool_size: parked, is_enabled: enabled, spread: index === 1 ? 2 : 3 };
    const more = Object.entries({ ...keys, max_concurrency: index + 1, idle_timeout: 0.5 });
    world.apply(`s${index}`, `v${content}`, more.map(([key, value]) => `${key}: ${value}\n`).join(''));
  };
  for (const index of configured.keys()) apply(index);
  world.clock.pass(60_000);
  for (const { what, pauseMs } of happenings) {
    happen(world, what, configured, apply);
    world.clock.pass(pauseMs);
    invariants.check();
  }
  rest(world, happenings);
  return world;
}

function happen(world: FleetWorld, what: Happening, configured: Configured[], apply: (index: number) => void): void {
  const host = 'host' in what ? `host${what.host + 1}` : '';
  const service = 'service' in what ? `s${what.service}` : '';
  const config = 'service' in what ? configured[what.service]! : undefined;
  switch (what.do) {
    case 'load':
      for (let index = 0; index < what.requests; index++)
        world.clock.after(index * what.everyMs, () => world.request(service, what.durationMs * world.random()));
      return;
    case 'kill':
      world.kill(host, what.wiped);
      return;
    case 'revive':
      for (const name of world.hosts.keys()) world.revive(name);
      return;
    case 'cut':
      world.cut(host, what.ms);
      return;
    case 'break':
      world.breakLink(host);
      return;
    case 'controlPlane':
      world.killControlPlane(what.ms);
      return;
    case 'cordon':
      world.controlPlane.mark(host, { cordoned: true });
      return;
    case 'drain':
      world.controlPlane.mark(host, { cordoned: true, drainingSince: world.clock.now });
      return;
    case 'uncordon':
      world.controlPlane.mark(host, { cordoned: false });
      return;
    default:
  }
  // Nobody asks a control plane that is down for changes.
  if (!world.controlPlane.up || config === undefined) return;
  switch (what.do) {
    case 'revision':
      config.content += 1;
      apply(what.service);
      return;
    case 'resize':
      config.max = what.max;
      config.parked = Math.min(what.parked, what.max);
      apply(what.service);
      return;
    case 'disable':
      config.enabled = !config.enabled;
      apply(what.service);
      return;
    case 'remove':
      world.remove(service);
      return;
    case 'rollBack':
      world.rollBack(service);
      return;
  }
}

/** All hosts come back, nothing happens any more, and in the end nothing is decided either. */
function rest(world: FleetWorld, happenings: readonly Step[]): void {
  for (const name of world.hosts.keys()) {
    world.revive(name);
    world.controlPlane.mark(name, { cordoned: false });
  }
  // The longest load, cut and outage are over by then, and builds and pauses after failures too.
  world.clock.pass(4 * 60_000);
  const before = world.decided.length;
  world.clock.pass(30_000);
  const late = world.decided.slice(before).filter(({ decision }) => !isOfAutoPool(world, decision));
  if (late.length > 0) throw new Error(`it does not come to rest: ${JSON.stringify(late.slice(0, 5))}`);
  const faults = unsettled(world);
  if (faults.length > 0) throw new Error(faults.join('; '));
  // A service is placed once at its begin, as hosts join, and again for hosts that go and come.
  const disturbing = happenings.filter(({ what }) =>
    ['kill', 'revive', 'cut', 'controlPlane', 'cordon', 'drain', 'uncordon', 'break', 'remove'].includes(what.do),
  ).length;
  for (const index of [0, 1, 2, 3]) {
    const placed = world.decided.filter(
      ({ decision }) => decision.type === 'place' && decision.service === `s${index}`,
    );
    const most = HOSTS + (HOSTS + 1) * (disturbing + 1);
    if (placed.length > most) throw new Error(`s${index} was placed ${placed.length} times, ${most} at most were due`);
  }
}

function isOfAutoPool(world: FleetWorld, decision: FleetWorld['decided'][number]['decision']): boolean {
  return decision.type === 'assign' && world.record(decision.service).config.preStartPoolAuto;
}
