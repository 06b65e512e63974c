import { SimulatedAgent } from './agent.js';
import type { Order, Tally } from './messages.js';

/** Simulated agents in a process of their own, so that what they cost is not the control plane's. Ends with its parent. */

const TELL_MS = 100;
const [address, count] = process.argv.slice(2);
const agents = Array.from(
  { length: Number(count) },
  (_, index) => new SimulatedAgent(address!, `host${String(index + 1).padStart(4, '0')}`),
);
for (const agent of agents) agent.run();

let lost: SimulatedAgent[] = [];
let churn: NodeJS.Timeout | undefined;
let next = 0;

/** Takes an instance of the next agent that has one into use. */
function useOne(): void {
  for (let tries = 0; tries < agents.length; tries++) {
    next = (next + 1) % agents.length;
    if (agents[next]!.connected && agents[next]!.instances.use()) return;
  }
}

process.on('message', (order: Order) => {
  if (order.kind === 'kill') {
    // Every so many, so that they are not those that were chosen first for everything.
    const step = Math.max(1, Math.floor(agents.length / order.agents));
    lost = agents.filter((_, index) => index % step === 0).slice(0, order.agents);
    for (const agent of lost) agent.kill();
  } else {
    clearInterval(churn);
    if (order.perSecond > 0) churn = setInterval(useOne, 1_000 / order.perSecond);
  }
});

setInterval(() => {
  const there = agents.filter((agent) => agent.connected);
  const tally: Tally = {
    connected: there.length,
    instances: there.reduce((sum, agent) => sum + agent.instances.list().length, 0),
    commands: agents.reduce((sum, agent) => sum + agent.commands, 0),
    lost: lost.map((agent) => agent.name),
    error: agents.map((agent) => agent.failure).find((text) => text !== '') ?? '',
  };
  process.send?.(tally);
}, TELL_MS);
process.on('disconnect', () => process.exit(0));
