import { parseServiceConfig } from '../../control-plane/config/service.js';
import { parseSettings } from '../../control-plane/config/settings.js';
import { phaseOf } from '../../control-plane/core/hosts.js';
import { accept, markRemoved, rollBack } from '../../control-plane/core/intake.js';
import type { Policy, ServiceRecord } from '../../control-plane/core/model.js';
import type { Decision } from '../../control-plane/core/schedule.js';
import type { Route } from '../../proto/gen/initless/v1/routing.js';
import { Clock } from './clock.js';
import { SimControlPlane } from './fleet-control-plane.js';
import { type Outcome, SimGateway } from './fleet-gateway.js';
import { type HostTimes, SimHost } from './fleet-host.js';
import { SimLink } from './fleet-link.js';
import { randomFrom } from './traffic.js';

const { settings } = parseSettings(undefined, 'defaults');

/** How a world is made. */
export interface WorldOptions {
  seed: number;
  hosts: number;
  gateways?: number;
  policy?: Partial<Policy>;
  times?: Partial<HostTimes>;
  /** How often the control plane looks when nothing happens, milliseconds. */
  tickMs?: number;
}

/** Hosts, gateways and a control plane on a clock of their own: what is decided and pure is real, what takes time is made up. */
export class FleetWorld {
  readonly clock = new Clock();
  readonly random: () => number;
  readonly hosts = new Map<string, SimHost>();
  readonly gateways: SimGateway[] = [];
  readonly controlPlane: SimControlPlane;
  /** Decisions since the start, with their time. */
  readonly decided: { at: number; decision: Decision }[] = [];
  /** What became of each request, by gateway and number. */
  readonly outcomes = new Map<string, Outcome>();
  readonly asked = new Set<string>();
  /** Told before numbers of instances change, and by what is not right. */
  broken: string[] = [];
  /** Told of each outcome. */
  onOutcome: (service: string, outcome: Outcome) => void = () => {};
  /** Called before instances start, end, park or wake. */
  onCounting: () => void = () => {};
  readonly #links = new Map<string, SimLink>();
  readonly #reporting = new Set<string>();
  readonly #cut = new Set<string>();
  #routes: readonly Route[] = [];

  constructor({ seed, hosts, gateways = 1, policy, times, tickMs = 1_000 }: WorldOptions) {
    this.random = randomFrom(seed);
    const { clock } = this;
    this.controlPlane = new SimControlPlane(clock, { hostTimeoutMs: 15_000, keepRevisions: 2, ...policy }, tickMs, {
      host: (name) => this.hosts.get(name)!,
      decided: (decisions) => {
        for (const decision of decisions) this.decided.push({ at: clock.now, decision });
      },
      routes: (routes) => this.#tellRoutes(routes),
    });
    for (let index = 1; index <= gateways; index++) {
      const name = `gateway${index}`;
      this.gateways.push(
        new SimGateway(name, clock, {
          host: (host) => this.hosts.get(host)!,
          outcome: (ticket, outcome) => this.#outcome(`${name} ${ticket}`, outcome),
          sent: (host, lease, service) => {
            if (!this.hosts.get(host)!.serves(lease))
              this.broken.push(`a request of ${service} was sent over ${lease}, whose instance does not run`);
          },
          delay: () => 1,
        }),
      );
    }
    for (let index = 1; index <= hosts; index++) this.addHost(`host${index}`, times);
  }

  between(from: number, to: number): number {
    return from + this.random() * (to - from);
  }

  pick<T>(items: readonly T[]): T {
    return items[Math.floor(this.random() * items.length)]!;
  }

  addHost(name: string, times: Partial<HostTimes> = {}): void {
    const host = new SimHost(
      name,
      this.clock,
      {
        // Now and then a restore does not work, and the instance is started cold.
        start: () => (this.random() < 0.03 ? this.between(1_000, 6_000) : this.between(80, 300)),
        kill: () => this.between(10, 60),
        make: () => this.between(5_000, 25_000),
        copy: () => this.between(500, 6_000),
        reportMs: 5_000,
        quietReportMs: 5_000,
        ...times,
      },
      {
        changed: () => this.#changed(name),
        revoked: (gateway, leases, neverRan) =>
          this.gateways.find((one) => one.name === gateway)?.revoked(leases, neverRan),
        reserved: (gateway, service, lease, instance, slots) =>
          this.gateways.find((one) => one.name === gateway)?.reserved(name, service, lease, instance, slots),
        counting: () => this.onCounting(),
        deleting: (service, revision) => this.#deleting(name, service, revision),
      },
    );
    this.hosts.set(name, host);
    this.#join(name);
  }

  /** A service comes in, new or changed. */
  apply(name: string, content: string, more = ''): void {
    const text = `service_name: ${name}\nservice_port: 1\nhost_port: 2\n${more}`;
    const config = parseServiceConfig(text, 'config.yaml', settings);
    const source = { text, dockerfile: 'Dockerfile' };
    const incoming = { source, config, folder: '', contextDigest: `sha256:${content}`, contentDigest: content };
    const { services } = this.controlPlane;
    services.set(name, accept(services.get(name), incoming, true, this.clock.now).record);
    this.controlPlane.wake();
  }

  remove(name: string): void {
    this.controlPlane.update(name, (record) => markRemoved(record, this.clock.now));
  }

  rollBack(name: string): void {
    this.controlPlane.update(name, (record) => rollBack(record, '', this.clock.now) ?? record);
  }

  /** A request to a service comes in at some gateway. */
  request(service: string, durationMs: number, gateway = this.pick(this.gateways)): void {
    // Known before it is settled, which may be at once.
    this.#asking = service;
    const ticket = gateway.request(service, durationMs);
    this.#asking = '';
    const id = `${gateway.name} ${ticket}`;
    this.asked.add(id);
    this.#serviceOf.set(id, service);
    const early = this.outcomes.get(id);
    if (early !== undefined) this.onOutcome(service, early);
  }

  readonly #serviceOf = new Map<string, string>();
  #asking = '';

  /** A host ends with all that runs on it. */
  kill(name: string, wiped: boolean): void {
    const host = this.hosts.get(name)!;
    if (!host.up) return;
    host.kill(wiped);
    this.#cut.delete(name);
    for (const gateway of this.gateways) gateway.disconnected(name);
    // The end of the connection is noticed at once, or only by the silence.
    const link = this.#links.get(name);
    if (link === undefined) return;
    this.#links.delete(name);
    if (this.random() < 0.5) {
      link.close();
      this.clock.after(100, () => this.controlPlane.lost(name, link));
    } else link.block();
  }

  revive(name: string): void {
    const host = this.hosts.get(name)!;
    if (host.up) return;
    host.start();
    this.#join(name);
  }

  /** A host and the control plane do not hear each other; gateways reach it as before. */
  cut(name: string, ms: number): void {
    const host = this.hosts.get(name)!;
    if (!host.up || this.#cut.has(name)) return;
    const { epoch } = host;
    this.#cut.add(name);
    const link = this.#links.get(name);
    link?.block();
    this.clock.after(ms, () => {
      if (host.epoch !== epoch || !this.#cut.delete(name)) return;
      if (link !== undefined && ms < 6_000 && link.open) link.unblock();
      else this.#dial(name);
    });
  }

  /** The connection between a host and the control plane breaks, and another is made. */
  breakLink(name: string): void {
    const link = this.#links.get(name);
    if (link === undefined || !this.hosts.get(name)!.up || this.#cut.has(name)) return;
    this.#links.delete(name);
    link.close();
    this.clock.after(10, () => this.controlPlane.lost(name, link));
    this.#dial(name);
  }

  killControlPlane(ms: number): void {
    if (!this.controlPlane.up) return;
    this.controlPlane.kill();
    this.#links.clear();
    this.clock.after(ms, () => {
      this.controlPlane.start();
      for (const host of this.hosts.values()) if (host.up && !this.#cut.has(host.name)) this.#dial(host.name);
    });
  }

  /** How the control plane sees a host. */
  phase(name: string) {
    return phaseOf(this.controlPlane.hosts.get(name), this.controlPlane.policy, this.clock.now);
  }

  record(service: string): ServiceRecord {
    return this.controlPlane.services.get(service)!;
  }

  /** Whether a request to a service would find a host, by the route table that gateways have. */
  isServed(service: string): boolean {
    const route = this.#routes.find((one) => one.service === service);
    return (route?.hosts ?? []).some(({ host: name }) => {
      const host = this.hosts.get(name)!;
      const told = host.assignments.get(service);
      return host.up && told !== undefined && (told.pool?.maxRunning ?? told.config!.maxPoolSize) > 0;
    });
  }

  #join(name: string): void {
    this.#dial(name);
    for (const gateway of this.gateways) this.clock.after(this.between(5, 500), () => this.#stream(gateway, name));
  }

  #stream(gateway: SimGateway, name: string): void {
    if (this.hosts.get(name)!.up) gateway.connected(name);
  }

  #dial(name: string): void {
    const host = this.hosts.get(name)!;
    const { epoch } = host;
    this.clock.after(this.between(50, 2_000), () => {
      if (host.epoch !== epoch || !host.up || !this.controlPlane.up || this.#cut.has(name)) return;
      const link = new SimLink(this.clock, () => this.between(1, 30));
      this.#links.set(name, link);
      const { identity } = host;
      link.say('up', () => this.controlPlane.admit(name, link, identity));
      link.say('up', () => link.say('down', () => this.#report(name)));
      this.#reportEvery(name, link);
    });
  }

  #reportEvery(name: string, link: SimLink): void {
    this.clock.after(this.hosts.get(name)!.reportsAfter, () => {
      if (this.#links.get(name) !== link || !link.open) return;
      this.#report(name);
      this.#reportEvery(name, link);
    });
  }

  #report(name: string): void {
    const host = this.hosts.get(name)!;
    const link = this.#links.get(name);
    if (!host.up || link === undefined) return;
    const report = host.report();
    link.say('up', () => this.controlPlane.report(name, link, report));
  }

  /** A burst of changes is one report. */
  #changed(name: string): void {
    if (this.#reporting.has(name)) return;
    this.#reporting.add(name);
    this.clock.after(20, () => {
      this.#reporting.delete(name);
      this.#report(name);
    });
  }

  #tellRoutes(routes: readonly Route[]): void {
    this.clock.after(20, () => {
      this.#routes = routes;
      for (const gateway of this.gateways) gateway.routes(routes);
    });
  }

  #outcome(id: string, outcome: Outcome): void {
    if (this.outcomes.has(id)) this.broken.push(`request ${id} has two outcomes`);
    this.outcomes.set(id, outcome);
    if (this.#asking === '' || this.#serviceOf.has(id)) this.onOutcome(this.#serviceOf.get(id) ?? '', outcome);
  }

  #deleting(name: string, service: string, revision: string): void {
    const record = this.controlPlane.services.get(service);
    if (record === undefined || record.removed) return;
    const host = this.hosts.get(name)!;
    const isUsed = [...host.instances.values()].some(
      (one) => one.service === service && one.assignment.revision === revision,
    );
    if (isUsed) this.broken.push(`${name}: revision ${revision} of ${service} is removed while instances run it`);
    if (host.assignments.get(service)?.revision === revision)
      this.broken.push(`${name}: revision ${revision} of ${service} is removed while it is served`);
  }
}
