import http from 'node:http';
import { parseArgs } from 'node:util';
import { round } from '../../control-plane/cli/statistics.js';
import { copyOf, deploy } from '../e2e/deploy.js';
import { instances, until } from '../e2e/support.js';
import setup from '../e2e/system.js';
import { type Percentiles, percentiles, run, say, table } from './report.js';
import { settle, timed } from './requests.js';

/**
 * `npm run bench:parked`: whether waking one of many parked instances takes longer than waking the only one. Two copies of
 * the Flask sample, one with one parked instance and one with many, are woken in turns.
 */

const USAGE = `usage: npm run -s bench:parked -- [--parked N] [--rounds N] [-o json]
  --parked  instances that the larger pool keeps parked; default 60
  --rounds  wake-ups of each; default 40
  -o json   prints {one_ms, many_ms, parked, ratio_p50} and nothing else on stdout
`;

/** What came of it; milliseconds. */
interface Result {
  one_ms: Percentiles;
  many_ms: Percentiles;
  parked: number;
  /** Median of waking one of many, divided by that of waking the only one. */
  ratio_p50: number;
}

const PATH = '/?key=888888';

async function measure(parked: number, rounds: number): Promise<Result> {
  const one = { name: 'bench-parked-one', port: 8287, parked: 1, ms: [] as number[] };
  const many = { name: 'bench-parked-many', port: 8288, parked, ms: [] as number[] };
  for (const { name, port, parked: size } of [one, many]) {
    const changes = { service_name: name, host_port: port, pre_start_pool_size: size, idle_timeout: 1, reuse: false };
    await deploy(await copyOf('sample/flask', { ...changes, image_name: undefined, checkpoint_name: undefined }));
  }
  say(`filling the pool with ${parked} instances`);
  await until(
    `${parked} instances to be parked`,
    async () => (await instances(many.name)).filter(({ state }) => state === 'INSTANCE_STATE_PARKED').length === parked,
    600_000,
    1_000,
  );
  const agent = new http.Agent({ keepAlive: true });
  for (let number = 0; number < rounds; number++) {
    for (const pool of [one, many]) {
      await settle(pool.name, pool.parked);
      pool.ms.push(await timed(agent, pool.port, PATH));
    }
    if ((number + 1) % 10 === 0) say(`${number + 1}/${rounds}`);
  }
  agent.destroy();
  const [one_ms, many_ms] = [percentiles(one.ms), percentiles(many.ms)];
  return { one_ms, many_ms, parked, ratio_p50: round(many_ms.p50 / one_ms.p50, 2) };
}

run(async () => {
  const { values } = parseArgs({
    options: {
      parked: { type: 'string', default: '60' },
      rounds: { type: 'string', default: '40' },
      output: { type: 'string', short: 'o', default: 'table' },
    },
  });
  const [parked, rounds] = [Number(values.parked), Number(values.rounds)];
  const whole = (count: number) => Number.isInteger(count) && count > 0;
  if (!whole(parked) || !whole(rounds) || !['table', 'json'].includes(values.output)) throw new Error(USAGE);
  const down = await setup();
  let result: Result;
  try {
    result = await measure(parked, rounds);
  } finally {
    await down();
  }
  if (values.output === 'json') {
    process.stdout.write(`${JSON.stringify(result)}\n`);
    return;
  }
  const row = (count: number, { p50, p95, p99 }: Percentiles, ratio: string) => [
    String(count),
    ...[p50, p95, p99].map((ms) => String(round(ms, 1))),
    ratio,
  ];
  process.stdout.write(
    `${table(
      ['PARKED', 'P50 ms', 'P95 ms', 'P99 ms', 'RATIO, P50'],
      [row(1, result.one_ms, ''), row(parked, result.many_ms, `${result.ratio_p50}x`)],
    )}\n`,
  );
});
