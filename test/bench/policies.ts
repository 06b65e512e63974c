import { parseArgs } from 'node:util';
import { comparePolicies, type PolicyRow } from '../sim/policies.js';
import { run, say, table } from './report.js';

/**
 * `npm run bench:policies`: what the pool policies come to over services that are used as published for a large platform, on
 * three simulated hosts that are lost now and then, with the real decisions. It needs no host and no root.
 */

const USAGE = `usage: npm run -s bench:policies -- [--services N] [--days N] [--seed N] [--loss-hours N] [-o json]
  --services    services; default 40
  --days        days for which those that are not called all the time are watched; default 2
  --seed        the same seed gives the same figures; default 1
  --loss-hours  mean time between losses of a host; default 24
  -o json       prints {seed, services, days, policies: [{policy, requests, running_percent, parked_percent,
                restored_percent, failed, cold_p75_percent, instance_hours, memory_hours}]} and nothing else on stdout
`;

function render(rows: readonly PolicyRow[]): string {
  const head = ['POLICY', 'RUNNING', 'PARKED', 'RESTORED', 'FAILED', 'COLD P75', 'INSTANCE-H', 'MEMORY GiB-H'];
  return table(
    head,
    rows.map((row) => [
      row.policy,
      `${row.running_percent} %`,
      `${row.parked_percent} %`,
      `${row.restored_percent} %`,
      `${row.failed}`,
      `${row.cold_p75_percent} %`,
      `${row.instance_hours}`,
      `${row.memory_hours}`,
    ]),
  );
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      services: { type: 'string', default: '40' },
      days: { type: 'string', default: '2' },
      seed: { type: 'string', default: '1' },
      'loss-hours': { type: 'string', default: '24' },
      output: { type: 'string', short: 'o', default: 'table' },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  if (values.help) return void process.stdout.write(USAGE);
  const [services, days, seed, lossEveryHours] = [values.services, values.days, values.seed, values['loss-hours']].map(
    Number,
  ) as [number, number, number, number];
  if (![services, days, lossEveryHours].every((one) => one > 0) || !Number.isInteger(seed)) throw new Error(USAGE);
  const policies = comparePolicies({ services, days, seed, lossEveryHours }, say);
  if (values.output === 'json') process.stdout.write(`${JSON.stringify({ seed, services, days, policies })}\n`);
  else process.stdout.write(`${render(policies)}\n`);
}

run(main);
