import type { Logger } from 'pino';
import type { Route } from '../proto/gen/initless/v1/routing.js';
import { errorOf } from '../proto/rpc/errors.js';
import type { HeldLease } from './agent-stream.js';
import type { Metrics } from './metrics.js';
import { Pool } from './pool.js';
import { noHost, withdrawn } from './refusals.js';
import { Wake } from './wake.js';

/** The pools of all services, and the streams to the agents that serve them. */
export class Pools {
  readonly #wake: Wake;
  readonly #metrics: Metrics;
  readonly #log: Logger;
  readonly #pools = new Map<string, Pool>();
  #routes: ReadonlyMap<string, Route> = new Map();
  /** What agents reserved of services for which no route leads to them yet, by key: they may know of a service first. */
  readonly #early = new Map<string, { service: string; lease: HeldLease }>();

  constructor(gateway: string, metrics: Metrics, log: Logger) {
    this.#metrics = metrics;
    this.#log = log;
    this.#wake = new Wake(gateway, log, {
      up: (agent) => this.#each((pool) => pool.agentUp(agent)),
      down: (agent) => this.#each((pool) => pool.agentDown(agent)),
      silent: (agent, silent) => this.#each((pool) => pool.agentSilent(agent, silent)),
      resumed: (lease) => this.#each((pool) => pool.resumed(lease)),
      recalled: (lease) => {
        this.#dropEarly(lease);
        this.#each((pool) => pool.recalled(lease));
      },
      fillEnded: (lease, failure) => this.#each((pool) => pool.fillEnded(lease, failure)),
      confirmed: (lease, number) => this.#each((pool) => pool.confirmed(lease, number)),
      reserved: (service, lease) => this.#reserved(service, lease),
      revoked: (lease, neverRan) => {
        this.#dropEarly(lease);
        this.#each((pool) => pool.revoked(lease, neverRan));
      },
    });
    metrics.onCollect(() => {
      this.#each(({ service, counts, capacity }) => {
        metrics.set('requests_in_flight', { service }, counts.inFlight);
        metrics.set('requests_waiting', { service }, counts.waiting);
        for (const { host, inFlight, slots, free } of capacity) {
          metrics.set('host_requests_in_flight', { service, host }, inFlight);
          metrics.set('host_slots', { service, host }, slots);
          metrics.set('host_free_slots', { service, host }, free);
        }
      });
      for (const { host, leftOut } of this.#wake.hosts) metrics.set('hosts_left_out', { host }, leftOut ? 1 : 0);
    });
  }

  /** Takes the whole route table. Requests in flight to a service that left it go on; those that wait are refused. */
  setRoutes(routes: readonly Route[]): void {
    this.#routes = new Map(routes.map((route) => [route.service, route]));
    this.#wake.setAgents(new Map(routes.flatMap(({ hosts }) => hosts.map((host) => [host.leaseAddress, host.host]))));
    for (const route of routes) this.#configure(route);
    this.#each((pool) => {
      if (this.#routes.has(pool.service)) return;
      pool.configure({ maxConcurrency: 1, queueLimit: 0, queueTimeoutMs: 0 }, [], withdrawn(pool.service));
    });
    const early = [...this.#early.values()];
    this.#early.clear();
    for (const { service, lease } of early) this.#reserved(service, lease);
  }

  /** The pool of a service. Undefined: no route leads to it. */
  of(service: string): Pool | undefined {
    return this.#routes.has(service) ? this.#pools.get(service) : undefined;
  }

  /** Gives all leases back and ends all streams; no request may be in flight any more. Resolves when agents know. */
  async close(): Promise<void> {
    this.#each((pool) => pool.close());
    await this.#wake.close();
  }

  #configure(route: Route): void {
    const { service } = route;
    let pool = this.#pools.get(service);
    if (pool === undefined) {
      pool = new Pool(service, this.#wake, this.#metrics, this.#log, () => this.#forget(service));
      this.#pools.set(service, pool);
    }
    pool.configure(
      route,
      route.hosts.map(({ leaseAddress: agent, ...host }) => ({
        ...host,
        agent,
        up: this.#wake.isUp(agent),
        silent: this.#wake.isSilent(agent),
      })),
      route.problem ? { error: errorOf(route.problem, service) } : noHost(service),
    );
  }

  #reserved(service: string, lease: HeldLease): void {
    const leads = (route: Route | undefined) => route?.hosts.some(({ leaseAddress }) => leaseAddress === lease.agent);
    if (leads(this.#routes.get(service))) this.#pools.get(service)?.reserved(lease);
    else if ([...this.#routes.values()].some(leads)) this.#early.set(lease.key, { service, lease });
    else lease.release(0);
  }

  #dropEarly(key: string): void {
    this.#early.get(key)?.lease.release(0);
    this.#early.delete(key);
  }

  #forget(service: string): void {
    if (!this.#routes.has(service)) this.#pools.delete(service);
  }

  #each(visit: (pool: Pool) => void): void {
    for (const pool of [...this.#pools.values()]) visit(pool);
  }
}
