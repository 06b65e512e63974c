import { parseArgs } from 'node:util';
import { run, say, table } from './report.js';
import { measure, type Result } from './scale/measure.js';

/**
 * `npm run bench:scale`: what the control plane takes for a fleet of simulated agents, each on a connection of its own to the
 * real FleetService: while they join, while nothing happens, while much does, and after many of them are lost at once.
 */

const USAGE = `usage: npm run -s bench:scale -- [--agents N] [--instances N] [--services N] [--idle S] [--churn S] [--rate N]
                                  [--lost PERCENT] [--host-timeout S] [--profile DIR] [-o json]
  --agents        simulated agents; default 200
  --instances     parked instances in all; default 2000
  --services      services; default a fifth of the instances
  --idle          seconds in which nothing changes; default 15
  --churn         seconds in which much does; default 30
  --rate          instances taken into use each second of the churn; default a fortieth of the instances. A fiftieth of
                  it are services applied anew
  --lost          percentage of the agents that is lost at once; default 10
  --host-timeout  seconds after which a lost agent is replaced; default 15, at least 8
  --profile       folder for a CPU profile of the control plane
  -o json         prints {agents, services, instances, host_timeout_s, lost_agents, lost_services, settle_s,
                  settle_after_timeout_s, refill_s, decisions, phases: [{phase, seconds, decisions, decisions_per_s,
                  commands, passes, pass_ms_p50, pass_ms_p99, loop_delay_ms_p99, cpu_percent, rss_mb}]} and nothing else
                  on stdout
`;

/** What is to be reached. */
const GOALS = { passMs: 50, idleCpu: 20 };

/** What the figures say of the goals. */
function verdicts({ phases, settle_after_timeout_s, lost_agents, lost_services }: Result): string[] {
  const line = (met: boolean, what: string) => `${met ? 'met' : 'MISSED'}: ${what}`;
  return [
    ...phases.map(({ phase, pass_ms_p99 }) =>
      line(pass_ms_p99 <= GOALS.passMs, `${phase}: a pass takes ${pass_ms_p99} ms, p99 (goal: ${GOALS.passMs})`),
    ),
    ...phases
      .filter(({ phase }) => phase === 'idle')
      .map(({ cpu_percent }) =>
        line(cpu_percent <= GOALS.idleCpu, `idle: ${cpu_percent} % of a core (goal: ${GOALS.idleCpu})`),
      ),
    `${lost_services} services lost one of ${lost_agents} agents; all are served elsewhere ${settle_after_timeout_s} s after the time-out`,
  ];
}

run(async () => {
  const { values } = parseArgs({
    options: {
      agents: { type: 'string', default: '200' },
      instances: { type: 'string', default: '2000' },
      services: { type: 'string' },
      idle: { type: 'string', default: '15' },
      churn: { type: 'string', default: '30' },
      rate: { type: 'string' },
      lost: { type: 'string', default: '10' },
      'host-timeout': { type: 'string', default: '15' },
      profile: { type: 'string' },
      output: { type: 'string', short: 'o', default: 'table' },
    },
  });
  const [agents, instances] = [Number(values.agents), Number(values.instances)];
  const services = Number(values.services ?? Math.ceil(instances / 5));
  const [idleSeconds, churnSeconds] = [Number(values.idle), Number(values.churn)];
  const churnPerSecond = Number(values.rate ?? instances / 40);
  const [lostShare, hostTimeout] = [Number(values.lost) / 100, Number(values['host-timeout'])];
  const whole = [agents, instances, services].every((count) => Number.isInteger(count) && count > 0);
  const positive = [idleSeconds, churnSeconds, churnPerSecond].every((count) => count > 0 && count < 3_600);
  const sensible = agents > 1 && agents <= 2_000 && services <= 10_000 && lostShare > 0 && lostShare < 1;
  if (!whole || !positive || !sensible || !(hostTimeout >= 8) || !['table', 'json'].includes(values.output)) {
    throw new Error(USAGE);
  }
  const counts = { agents, services, instances, idleSeconds, churnSeconds, churnPerSecond, lostShare, hostTimeout };
  const result = await measure({ ...counts, profile: values.profile });
  const goals = verdicts(result);
  if (values.output === 'json') {
    for (const goal of goals) say(goal);
    process.stdout.write(`${JSON.stringify(result)}\n`);
    return;
  }
  const head = [
    'PHASE',
    'SECONDS',
    'DECISIONS',
    '/s',
    'COMMANDS',
    'PASSES',
    'PASS ms, P50',
    'P99',
    'LOOP DELAY ms, P99',
  ];
  const rows = result.phases.map((one) =>
    [
      ...[one.phase, one.seconds, one.decisions, one.decisions_per_s, one.commands, one.passes],
      ...[one.pass_ms_p50, one.pass_ms_p99, one.loop_delay_ms_p99, one.cpu_percent, one.rss_mb],
    ].map(String),
  );
  process.stdout.write(`${table([...head, 'CPU %', 'RSS MB'], rows)}\n\n${goals.map((goal) => `${goal}\n`).join('')}`);
});
