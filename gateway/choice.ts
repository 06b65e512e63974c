import type { Refusal } from './refusals.js';

/** An agent that gave an instance which it had to make has none parked for so long, milliseconds, as far as is known. */
const DRY_MS = 10_000;

/** An agent that may be asked for the service's instances. */
export interface AgentChoice {
  /** Key: its lease address. */
  agent: string;
  /** Host name, for messages. */
  host: string;
  /** Whether its stream is there. */
  up: boolean;
  /** Its stream is there, but it does not answer. */
  silent: boolean;
  /** Instances that it may run. 0: it has no share, and is asked only where nobody has one. */
  maxRunning: number;
  /** Instances that it is to keep parked. */
  parked: number;
  /** It is asked, and its leases are used, only while no other can serve. */
  draining: boolean;
}

/** What is known of an agent, as far as it decides whether it is asked. */
export interface AgentState extends Omit<AgentChoice, 'agent'> {
  /** When it was lost, or first heard of; counts while it is not up. */
  downSince: number;
  /** Not asked before this time. */
  askAgainAt: number;
  /** It said that it is exhausted: one acquire at a time until it grants one. */
  probing: boolean;
  /** It has nothing parked, as far as is known, until then. */
  dryUntil: number;
  /** It cannot serve and does not want to be asked again. Forgotten when the waiting requests have been told. */
  refusal: Refusal | undefined;
  /** What it last said, for requests whose time runs out while it is waited for. */
  lastDenial: Refusal | undefined;
  /** Instances to be looked at, named in the next acquire. */
  suspects: Set<string>;
}

/** What is known of an agent that was just heard of. */
export function newAgent({ agent: _, ...choice }: AgentChoice, now: number): AgentState {
  return {
    ...choice,
    downSince: now,
    askAgainAt: 0,
    probing: false,
    dryUntil: 0,
    refusal: undefined,
    lastDenial: undefined,
    suspects: new Set(),
  };
}

/** Takes over what a newer route says of an agent; whether it is up or silent is known better. */
export function update(state: AgentState, { host, maxRunning, parked, draining }: AgentChoice): AgentState {
  return Object.assign(state, { host, maxRunning, parked, draining });
}

/** Takes note of a grant: of an instance that was parked or ran, or of one that had to be made. */
export function noteGrant(state: AgentState, made: boolean, now: number): void {
  state.probing = false;
  state.refusal = undefined;
  state.lastDenial = undefined;
  state.dryUntil = made ? now + DRY_MS : 0;
}

/** What is under way at agents, and what they give already. */
export interface Bearings {
  now: number;
  /** Whether something that was asked of an agent is not answered yet. */
  isAsked: (agent: string) => boolean;
  /** Whether it has given a lease that takes requests. */
  serves: (agent: string) => boolean;
}

/** Whether an instance may be parked there. */
export function mayBeParked({ parked, dryUntil }: AgentState, now: number): boolean {
  return parked > 0 && dryUntil <= now;
}

/** Whether an agent answers and has a share that it may give, at this moment or a little later. */
function isAble({ up, silent, refusal, maxRunning, draining }: AgentState): boolean {
  return up && !silent && refusal === undefined && maxRunning > 0 && !draining;
}

/** Whether an agent can be asked at this moment. */
function isAskable(agent: string, state: AgentState, { now, isAsked }: Bearings): boolean {
  if (!state.up || state.refusal !== undefined || state.askAgainAt > now) return false;
  return !(state.probing && isAsked(agent));
}

/** Whether one that answers, has a share and is not being drained can be asked at this moment. Pure. */
export function canServe(agents: ReadonlyMap<string, AgentState>, bearings: Bearings): boolean {
  return [...agents].some(([agent, state]) => isAble(state) && isAskable(agent, state, bearings));
}

/**
 * The agent to ask next, of those that can be asked: where an instance may be parked, then where one serves already, then
 * in the table's order. One that is being drained comes after all others; one that does not answer after those that do; one
 * without a share only where no other will have any. Undefined: there is none at this moment. Pure.
 */
export function choose(agents: ReadonlyMap<string, AgentState>, bearings: Bearings): string | undefined {
  const anyAble = [...agents.values()].some(isAble);
  let best: { agent: string; rank: number } | undefined;
  for (const [agent, state] of agents) {
    if (!isAskable(agent, state, bearings)) continue;
    if (anyAble && (state.maxRunning === 0 || state.silent)) continue;
    const rank = rankOf(state, bearings.serves(agent), bearings.now);
    if (best === undefined || rank < best.rank) best = { agent, rank };
  }
  return best?.agent;
}

function rankOf(state: AgentState, serves: boolean, now: number): number {
  const weights: [boolean, number][] = [
    [state.silent, 16],
    [state.maxRunning === 0, 8],
    [state.draining, 4],
    [!mayBeParked(state, now), 2],
    [!serves, 1],
  ];
  return weights.reduce((sum, [holds, weight]) => sum + (holds ? weight : 0), 0);
}
