import type { ChildProcess } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { round } from '../../../control-plane/cli/statistics.js';
import { connect } from '../../../proto/rpc/client.js';
import { say } from '../report.js';
import { firstMessage, startChild, stopChild } from './child.js';
import type { Order, Tally } from './messages.js';
import { decisionsOf, passQuantile, type Scrape, scrape } from './metrics.js';
import { RouteWatch } from './routes.js';
import { Services } from './services.js';

/** How much is simulated. */
export interface Scale {
  agents: number;
  services: number;
  /** Parked in all. */
  instances: number;
  /** Seconds of the phases in which nothing, and much, happens. */
  idleSeconds: number;
  churnSeconds: number;
  /** Instances taken into use each second of the churn; a service in fifty of that is applied anew. */
  churnPerSecond: number;
  /** Share of the agents that is lost, 0 to 1. */
  lostShare: number;
  /** Seconds. */
  hostTimeout: number;
  /** Folder for a CPU profile of the control plane. */
  profile?: string | undefined;
}

/** What one phase took. */
export interface Phase {
  phase: 'join' | 'idle' | 'churn' | 'loss';
  seconds: number;
  /** Decisions made, and commands that the agents carried out. */
  decisions: number;
  decisions_per_s: number;
  commands: number;
  passes: number;
  pass_ms_p50: number;
  pass_ms_p99: number;
  loop_delay_ms_p99: number;
  /** Of one core. */
  cpu_percent: number;
  /** At its end. */
  rss_mb: number;
}

/** What came of all of it. */
export interface Result extends Pick<Scale, 'agents' | 'services' | 'instances'> {
  host_timeout_s: number;
  lost_agents: number;
  /** Services that had one of the lost agents. */
  lost_services: number;
  /** From the loss until each service is served by as many hosts as before, none of them lost; with the time-out. */
  settle_s: number;
  /** The same without the time-out, in which nothing is to be replaced. */
  settle_after_timeout_s: number;
  /** From the loss until all instances are parked again. */
  refill_s: number;
  decisions: Record<string, number>;
  phases: Phase[];
}

/** Bound on each wait for the fleet to settle. */
const SETTLE_MS = 180_000;
const LOOK_MS = 20;
/** Hosts of each service, as the settings have it by default. */
const SPREAD = 3;

/** Runs a control plane and agents, and measures. Bounded; everything it starts has ended when it resolves or rejects. */
export async function measure(scale: Scale): Promise<Result> {
  const root = await mkdtemp(join(tmpdir(), 'initless-scale-'));
  const children: ChildProcess[] = [];
  try {
    const settings = join(root, 'settings.yaml');
    await writeFile(settings, `host_timeout: ${scale.hostTimeout}\n`);
    const profile = scale.profile === undefined ? [] : ['--cpu-prof', `--cpu-prof-dir=${scale.profile}`];
    const controlPlane = startChild('control-plane-child', [join(root, 'state'), settings], profile);
    children.push(controlPlane);
    const ports = await firstMessage<{ grpcPort: number; httpPort: number }>(controlPlane, 'the control plane');
    const address = `127.0.0.1:${ports.grpcPort}`;
    const begin = await scrape(ports.httpPort);
    const agents = startChild('agents-child', [address, String(scale.agents)]);
    children.push(agents);
    const channel = connect(address);
    const routes = new RouteWatch(channel);
    try {
      const parked = (index: number) =>
        Math.floor(scale.instances / scale.services) + (index < scale.instances % scale.services ? 1 : 0);
      const services = new Services(root, scale.services, parked, channel);
      return await new Run(scale, ports.httpPort, agents, routes, services).run(begin);
    } finally {
      await routes.stop();
      channel.close();
    }
  } finally {
    for (const child of children.reverse()) await stopChild(child);
    await rm(root, { recursive: true, force: true });
  }
}

class Run {
  readonly #scale: Scale;
  readonly #httpPort: number;
  readonly #agents: ChildProcess;
  readonly #routes: RouteWatch;
  readonly #services: Services;
  readonly #phases: Phase[] = [];
  #tally: Tally = { connected: 0, instances: 0, commands: 0, lost: [], error: '' };
  #commands = 0;
  #last: Scrape | undefined;

  constructor(scale: Scale, httpPort: number, agents: ChildProcess, routes: RouteWatch, services: Services) {
    this.#scale = scale;
    this.#httpPort = httpPort;
    this.#agents = agents;
    this.#routes = routes;
    this.#services = services;
    agents.on('message', (tally: Tally) => {
      this.#tally = tally;
    });
  }

  async run(begin: Scrape): Promise<Result> {
    const { agents, services, instances, idleSeconds, churnSeconds, churnPerSecond, hostTimeout } = this.#scale;
    this.#last = begin;
    await this.#until('all agents to be connected', () => this.#tally.connected === agents);
    say(`${agents} agents are connected`);
    await this.#services.applyAll();
    say(`${services} services are applied`);
    await this.#until('all services to be served', () => this.#isServed(agents, []));
    await this.#until('all instances to be parked', () => this.#tally.instances === instances);
    await this.#end('join');

    await sleep(idleSeconds * 1_000);
    await this.#end('idle');

    this.#order({ kind: 'churn', perSecond: churnPerSecond });
    await this.#applySome(churnSeconds, churnPerSecond / 50);
    await this.#end('churn');
    this.#order({ kind: 'churn', perSecond: 0 });
    await this.#until('the churn to be over', () => this.#isServed(agents, []) && this.#tally.instances === instances);
    // What it left behind, such as earlier revisions, is removed.
    await sleep(2_000);

    this.#last = await scrape(this.#httpPort);
    this.#commands = this.#tally.commands;
    const lostAgents = Math.max(1, Math.round(agents * this.#scale.lostShare));
    const killedAt = performance.now();
    this.#order({ kind: 'kill', agents: lostAgents });
    await this.#until('the agents to be gone', () => this.#tally.lost.length === lostAgents);
    const lost = [...this.#tally.lost];
    const had = [...this.#routes.routes.values()].filter((route) => route.hosts.some((one) => lost.includes(one.host)));
    await this.#until('all services to be served without the lost agents', () =>
      this.#isServed(agents - lostAgents, lost),
    );
    const settled = (performance.now() - killedAt) / 1_000;
    await this.#until('all instances to be parked again', () => this.#tally.instances === instances);
    const refilled = (performance.now() - killedAt) / 1_000;
    await this.#end('loss');
    return {
      ...{ agents, services, instances, host_timeout_s: hostTimeout, lost_agents: lostAgents },
      lost_services: had.length,
      settle_s: round(settled, 2),
      settle_after_timeout_s: round(settled - hostTimeout, 2),
      refill_s: round(refilled, 2),
      decisions: this.#last.decisions,
      phases: this.#phases,
    };
  }

  /** Each service is at as many hosts as it should be, none of which is lost. */
  #isServed(there: number, lost: readonly string[]): boolean {
    const { routes } = this.#routes;
    const hosts = Math.min(SPREAD, there);
    return (
      routes.size === this.#scale.services &&
      [...routes.values()].every(
        (route) => route.hosts.length === hosts && route.hosts.every((one) => !lost.includes(one.host)),
      )
    );
  }

  /** Applies services anew, so many a second. */
  async #applySome(seconds: number, perSecond: number): Promise<void> {
    const end = performance.now() + seconds * 1_000;
    for (let round = 1; performance.now() < end; round++) {
      const next = performance.now() + 1_000 / perSecond;
      await this.#services.apply((round * 7) % this.#scale.services, round);
      await sleep(Math.max(0, Math.min(next, end) - performance.now()));
    }
  }

  /** A phase is over. */
  async #end(phase: Phase['phase']): Promise<void> {
    const before = this.#last!;
    const after = await scrape(this.#httpPort);
    const seconds = (after.at - before.at) / 1_000;
    const decisions = decisionsOf(after) - decisionsOf(before);
    const passMs = (share: number) => round(passQuantile(before, after, share) * 1_000, 2);
    this.#phases.push({
      phase,
      seconds: round(seconds, 1),
      decisions,
      decisions_per_s: round(decisions / seconds, 1),
      commands: this.#tally.commands - this.#commands,
      passes: (after.buckets.at(-1)?.[1] ?? 0) - (before.buckets.at(-1)?.[1] ?? 0),
      pass_ms_p50: passMs(0.5),
      pass_ms_p99: passMs(0.99),
      loop_delay_ms_p99: round(after.loopDelaySeconds * 1_000, 1),
      cpu_percent: round(((after.cpuSeconds - before.cpuSeconds) / seconds) * 100, 1),
      rss_mb: round(after.rssBytes / 2 ** 20, 1),
    });
    this.#last = after;
    this.#commands = this.#tally.commands;
    say(`${phase} took ${round(seconds, 1)} s`);
  }

  #order(order: Order): void {
    this.#agents.send(order);
  }

  async #until(what: string, isSo: () => boolean): Promise<void> {
    const end = performance.now() + SETTLE_MS;
    while (!isSo()) {
      if (this.#tally.error !== '') throw new Error(this.#tally.error);
      if (performance.now() > end) {
        const { connected, instances } = this.#tally;
        throw new Error(`waited ${SETTLE_MS} ms for ${what}; ${connected} agents, ${instances} instances are there`);
      }
      await sleep(LOOK_MS);
    }
  }
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
