import type { Logger } from 'pino';
import type { Acquire } from '../proto/gen/initless/v1/agent.js';
import { InitlessError } from '../proto/rpc/errors.js';
import { AgentStream, type Answer, type WakeEvents } from './agent-stream.js';

/** Lease streams to agents: one each, opened again when it breaks. */
export class Wake {
  readonly #gateway: string;
  readonly #log: Logger;
  readonly #events: WakeEvents;
  readonly #streams = new Map<string, AgentStream>();

  constructor(gateway: string, log: Logger, events: WakeEvents) {
    this.#gateway = gateway;
    this.#log = log;
    this.#events = events;
  }

  /** Keeps streams to exactly these agents, lease address to host name; others end once nothing is held over them. */
  setAgents(agents: ReadonlyMap<string, string>): void {
    for (const [address, host] of agents) {
      const known = this.#streams.get(address);
      if (known) {
        known.wanted = true;
        known.host = host;
      } else {
        const whenSpare = (stream: AgentStream) => this.#drop(stream);
        this.#streams.set(address, new AgentStream(address, host, this.#gateway, this.#log, this.#events, whenSpare));
      }
    }
    for (const [address, stream] of this.#streams) {
      if (agents.has(address)) continue;
      stream.wanted = false;
      this.#drop(stream);
    }
  }

  /** Whether an agent can be asked now. */
  isUp(agent: string): boolean {
    return this.#streams.get(agent)?.up ?? false;
  }

  /** Whether an agent is there and answers. */
  answers(agent: string): boolean {
    return this.isUp(agent) && !this.isSilent(agent);
  }

  /** Whether an agent's stream is there but it does not answer. */
  isSilent(agent: string): boolean {
    return this.#streams.get(agent)?.silent ?? false;
  }

  /** Hosts of all agents that routes name, and whether they are left out: their agent is not reached, or silent. */
  get hosts(): { host: string; agent: string; leftOut: boolean }[] {
    const streams = [...this.#streams.values()].filter(({ wanted }) => wanted);
    return streams.map(({ host, address: agent, up, silent }) => ({ host, agent, leftOut: !up || silent }));
  }

  /**
   * Asks an agent for a lease. `answer` is called once, unless the acquire is cancelled or the stream goes down first.
   * Returns what cancels it.
   */
  acquire(agent: string, request: Omit<Acquire, 'requestId'>, answer: (answer: Answer) => void): () => void {
    const stream = this.#streams.get(agent);
    if (!stream) throw new InitlessError('INTERNAL', `there is no stream to the agent at ${agent}`);
    return stream.acquire(request, answer);
  }

  /** Ends all streams, and with them what is still held over them; resolves when the agents know. */
  async close(): Promise<void> {
    const streams = [...this.#streams.values()];
    this.#streams.clear();
    await Promise.all(streams.map((stream) => stream.sayGoodbye()));
  }

  #drop(stream: AgentStream): void {
    if (stream.wanted || stream.busy || this.#streams.get(stream.address) !== stream) return;
    this.#streams.delete(stream.address);
    void stream.sayGoodbye();
  }
}
