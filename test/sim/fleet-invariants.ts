import { isEnabled } from '../../control-plane/core/model.js';
import type { FleetWorld } from './fleet-world.js';

/**
 * What must hold whatever happens, looked at after every event:
 *
 * - No more instances of what is served run, over all hosts, than `max_pool_size`. One exception: a host that is counted as
 *   lost and is not goes on with its share, which others have been given meanwhile. It ends when the host has been told
 *   its new share after its return, and what runs beyond it has ended. Where `max_pool_size` is made smaller the old one
 *   holds until the new shares have been told and what runs, or is being started to run, beyond them has ended.
 * - A request is sent to an instance that runs, and has one outcome.
 * - A revision is not removed where it is served or instances run it.
 */
export class Invariants {
  readonly #world: FleetWorld;
  /** Running at most, by service; undefined: a host that is counted as lost is not. */
  readonly #bounds = new Map<string, number | undefined>();
  /** Most that were seen running, by service; so that a test can tell that there was something to see. */
  readonly peaks = new Map<string, number>();

  constructor(world: FleetWorld) {
    this.#world = world;
    world.clock.afterStep = () => this.check();
  }

  check(): void {
    const { broken, controlPlane, clock } = this.#world;
    if (broken.length > 0) throw new Error(`at ${Math.round(clock.now)}: ${broken.join('; ')}`);
    for (const record of controlPlane.services.values()) if (isEnabled(record)) this.#running(record.name);
  }

  #running(service: string): void {
    const { controlPlane, clock } = this.#world;
    const { maxPoolSize } = controlPlane.services.get(service)!.config;
    let [running, taken, isSplit] = [0, 0, false];
    for (const host of this.#world.hosts.values()) {
      const told = host.assignments.get(service);
      if (told === undefined) {
        // What it still runs for leases that are held counts again when it is told to serve again.
        taken += [...host.instances.values()].filter((one) => one.service === service && one.leasesInUse > 0).length;
        continue;
      }
      const isLost = this.#world.phase(host.name) === 'lost';
      const share = told.pool?.maxRunning ?? told.config!.maxPoolSize;
      if (!host.up) {
        // What it was told is on its disk.
        if (!isLost) taken += share;
        continue;
      }
      running += host.countedRunning(service);
      taken += Math.max(share, host.countedRunning(service) + (host.starting.get(service) ?? 0));
      isSplit ||= controlPlane.up && isLost;
    }
    this.peaks.set(service, Math.max(this.peaks.get(service) ?? 0, running));
    const isSettled = !isSplit && taken <= maxPoolSize;
    const before = this.#bounds.has(service) ? this.#bounds.get(service) : maxPoolSize;
    if (isSplit) this.#bounds.set(service, undefined);
    else if (isSettled) this.#bounds.set(service, maxPoolSize);
    else this.#bounds.set(service, before === undefined ? undefined : Math.max(before, maxPoolSize));
    const bound = this.#bounds.get(service);
    if (bound === undefined || running <= bound) return;
    const each = [...this.#world.hosts.values()].map(
      (host) =>
        `${host.name}: ${host.countedRunning(service)} of ${host.assignments.get(service)?.pool?.maxRunning ?? 'all'}`,
    );
    throw new Error(
      `at ${Math.round(clock.now)}: ${running} instances of ${service} run, ${bound} may (${each.join(', ')})`,
    );
  }
}

/** What is not as it should be once everything is there and nothing has happened for a while. Empty: all is well. */
export function unsettled(world: FleetWorld): string[] {
  const faults: string[] = [];
  const { controlPlane, hosts } = world;
  for (const gateway of world.gateways) {
    if (gateway.pending > 0) faults.push(`${gateway.pending} requests at ${gateway.name} have no outcome`);
  }
  for (const id of world.asked) if (!world.outcomes.has(id)) faults.push(`request ${id} has no outcome`);
  for (const host of hosts.values()) {
    for (const instance of host.instances.values()) {
      const record = controlPlane.services.get(instance.service);
      const isWanted = record && isEnabled(record) && record.hosts.includes(host.name);
      if (!isWanted) faults.push(`${instance.id} is there, and ${instance.service} is not to be on ${host.name}`);
      else if (instance.assignment.revision !== record.current?.id) faults.push(`${instance.id} is of an old revision`);
    }
    for (const service of host.assignments.keys()) {
      const record = controlPlane.services.get(service);
      if (!(record && isEnabled(record) && record.hosts.includes(host.name)))
        faults.push(`${host.name} serves ${service}, and is not to`);
    }
    for (const key of host.checkpoints) {
      const [service, revision] = key.split(' ') as [string, string];
      const record = controlPlane.services.get(service);
      // What a host finished after its service was forgotten is left for a person to judge.
      if (record === undefined) continue;
      const kept = [record.current, ...record.previous.slice(0, controlPlane.policy.keepRevisions)];
      if (kept.every((one) => one?.id !== revision)) faults.push(`${host.name} keeps ${key}`);
    }
  }
  for (const record of controlPlane.services.values()) {
    const { name, config, current } = record;
    if (record.removed) faults.push(`${name} is removed, and not forgotten`);
    if (!isEnabled(record)) continue;
    if (record.pending !== undefined || current === undefined) faults.push(`${name} was not made`);
    if (!world.isServed(name)) faults.push(`${name} is not served`);
    const told = [...hosts.values()].flatMap((host) => host.assignments.get(name) ?? []);
    const sum = (share: (one: (typeof told)[number]) => number) => told.reduce((all, one) => all + share(one), 0);
    const running = sum((one) => one.pool?.maxRunning ?? one.config!.maxPoolSize);
    if (running !== config.maxPoolSize)
      faults.push(`the shares of ${name} sum to ${running}, not ${config.maxPoolSize}`);
    if (config.preStartPoolAuto) continue;
    const parked = sum((one) => one.pool?.parked ?? one.config!.preStartPoolSize);
    if (parked !== config.preStartPoolSize)
      faults.push(`the shares of ${name} to park sum to ${parked}, not ${config.preStartPoolSize}`);
    const there = [...hosts.values()].flatMap((host) =>
      [...host.instances.values()].filter((one) => one.service === name && one.state === 'parked'),
    );
    if (there.length !== parked) faults.push(`${there.length} of ${name} are parked, not ${parked}`);
  }
  return faults;
}
