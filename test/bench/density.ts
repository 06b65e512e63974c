import http from 'node:http';
import { parseArgs } from 'node:util';
import { round } from '../../control-plane/cli/statistics.js';
import { copyOf, deploy } from '../e2e/deploy.js';
import { instances, mustRun, removeInstance, request, thawInstance, until } from '../e2e/support.js';
import setup from '../e2e/system.js';
import { memoryOf } from './instance-memory.js';
import { type Percentiles, percentiles, run, say, table } from './report.js';
import { settle, timed } from './requests.js';

/**
 * `npm run bench:density`: as many parked instances as a host of this size is to hold, of two kinds at once: what memory is
 * each one's own, whether each answers, and whether waking one of them takes longer than waking the only one of its kind.
 */

const USAGE = `usage: npm run -s bench:density -- [--flask N] [--spring N] [--rounds N] [-o json]
  --flask   parked instances of the Flask sample; default 300, 0: none
  --spring  parked instances of the Spring Boot sample; default 100, 0: none
  --rounds  wake-ups of each kind, one of many and the only one; default 30
  -o json   prints [{service, parked, own_mb_p50, own_mb_max, answered, one_ms, many_ms, ratio_p50}] and nothing else on
            stdout
`;

const SAMPLES = [
  { name: 'flask', path: '/?key=888888', port: 8381 },
  { name: 'gs_spring_boot', path: '/', port: 8383 },
] as const;

/** What is to be reached. */
const GOALS = { ratio: 1.5, springOwnMb: 30 };

/** A service with a pool of parked instances. */
interface Pool {
  name: string;
  port: number;
  parked: number;
  ms: number[];
}

/** What came of one kind. */
interface Result {
  service: string;
  parked: number;
  own_mb_p50: number;
  own_mb_max: number;
  /** Of the parked instances, those that answered one request each. */
  answered: number;
  one_ms: Percentiles;
  many_ms: Percentiles;
  /** Median of waking one of many, divided by that of waking the only one. */
  ratio_p50: number;
}

async function deployPool(sample: (typeof SAMPLES)[number], name: string, port: number, parked: number): Promise<Pool> {
  say(`${name}: deploying`);
  const changes = { service_name: name, host_port: port, image_name: undefined, checkpoint_name: undefined };
  const pool = { pre_start_pool_size: parked, pre_start_timeout: 1_439, idle_timeout: 5, reuse: false };
  await deploy(await copyOf(`sample/${sample.name}`, { ...changes, ...pool }));
  return { name, port, parked, ms: [] };
}

async function parkedOf(service: string): Promise<string[]> {
  const found = await instances(service);
  return found.filter(({ state }) => state === 'INSTANCE_STATE_PARKED').map(({ id }) => id);
}

async function measure(counts: readonly number[], rounds: number): Promise<Result[]> {
  const kinds: { sample: (typeof SAMPLES)[number]; one: Pool; many: Pool }[] = [];
  for (const [index, sample] of SAMPLES.entries()) {
    const count = counts[index] as number;
    if (count === 0) continue;
    const name = `bench-density-${sample.name}`;
    kinds.push({
      sample,
      one: await deployPool(sample, `${name}-one`, sample.port, 1),
      many: await deployPool(sample, name, sample.port + 1, count),
    });
  }
  for (const { many } of kinds) {
    say(`${many.name}: filling the pool with ${many.parked} instances`);
    await until(
      `${many.parked} instances of ${many.name} to be parked`,
      async () => (await parkedOf(many.name)).length === many.parked,
      1_800_000,
      1_000,
    );
  }
  const memory = new Map<string, number[]>();
  for (const { many } of kinds) {
    memory.set(
      many.name,
      (await memoryOf(await parkedOf(many.name))).map(({ own }) => own),
    );
  }
  const agent = new http.Agent({ keepAlive: true });
  for (let number = 0; number < rounds; number++) {
    for (const { sample, one, many } of kinds) {
      for (const pool of [one, many]) {
        await settle(pool.name, pool.parked);
        pool.ms.push(await timed(agent, pool.port, sample.path));
      }
    }
    if ((number + 1) % 10 === 0) say(`${number + 1}/${rounds}`);
  }
  agent.destroy();
  const results: Result[] = [];
  for (const { sample, one, many } of kinds) {
    await settle(many.name, many.parked);
    const answered = await askEach(many, sample.path);
    const own = memory.get(many.name) as number[];
    const [one_ms, many_ms] = [percentiles(one.ms), percentiles(many.ms)];
    results.push({
      service: sample.name,
      parked: many.parked,
      own_mb_p50: round(percentiles(own).p50, 1),
      own_mb_max: round(Math.max(...own), 1),
      answered,
      one_ms,
      many_ms,
      ratio_p50: round(many_ms.p50 / one_ms.p50, 2),
    });
  }
  for (const { one, many } of kinds) {
    for (const { name } of [one, many]) await mustRun('service', 'rm', name);
  }
  return results;
}

/** Has each parked instance answer a request of its own, past the gateway, and removes it. Gives how many did. */
async function askEach({ name }: Pool, path: string): Promise<number> {
  let answered = 0;
  const addresses = new Map((await instances(name)).map(({ id, address }) => [id, address]));
  for (const id of await parkedOf(name)) {
    await thawInstance(id);
    const { status } = await request(`http://${addresses.get(id)}${path}`);
    if (status === 200) answered += 1;
    await removeInstance(id);
    if (answered % 50 === 0) say(`${name}: ${answered} have answered`);
  }
  return answered;
}

/** What the figures say of the goals. */
function verdicts(results: readonly Result[]): string[] {
  const line = (met: boolean, what: string) => `${met ? 'met' : 'MISSED'}: ${what}`;
  return results.flatMap(({ service, parked, own_mb_max, answered, ratio_p50 }) => [
    ...(service === 'gs_spring_boot'
      ? [line(own_mb_max <= GOALS.springOwnMb, `${service}: ${own_mb_max} MB own at most (goal: ${GOALS.springOwnMb})`)]
      : []),
    line(answered === parked, `${service}: ${answered} of ${parked} answered`),
    line(
      ratio_p50 <= GOALS.ratio,
      `${service}: waking one of ${parked} over the only one: ${ratio_p50} (goal: ${GOALS.ratio})`,
    ),
  ]);
}

run(async () => {
  const { values } = parseArgs({
    options: {
      flask: { type: 'string', default: '300' },
      spring: { type: 'string', default: '100' },
      rounds: { type: 'string', default: '30' },
      output: { type: 'string', short: 'o', default: 'table' },
    },
  });
  const counts = [Number(values.flask), Number(values.spring)];
  const rounds = Number(values.rounds);
  const counted = [...counts, rounds].every((count) => Number.isInteger(count) && count >= 0);
  if (!counted || rounds === 0 || !['table', 'json'].includes(values.output)) throw new Error(USAGE);
  const down = await setup();
  let results: Result[];
  try {
    results = await measure(counts, rounds);
  } finally {
    await down();
  }
  const goals = verdicts(results);
  if (values.output === 'json') {
    for (const goal of goals) say(goal);
    process.stdout.write(`${JSON.stringify(results)}\n`);
    return;
  }
  const rows = results.map(({ service, parked, own_mb_p50, own_mb_max, answered, one_ms, many_ms, ratio_p50 }) => [
    ...[service, parked, own_mb_p50, own_mb_max, answered].map(String),
    ...[one_ms.p50, many_ms.p50].map((ms) => String(round(ms, 1))),
    `${ratio_p50}x`,
  ]);
  const head = ['SERVICE', 'PARKED', 'OWN MB, P50', 'MAX', 'ANSWERED', 'THE ONLY ONE, P50 ms', 'ONE OF MANY', 'RATIO'];
  process.stdout.write(`${table(head, rows)}\n\n${goals.map((goal) => `${goal}\n`).join('')}`);
});
