import http from 'node:http';
import { parseArgs } from 'node:util';
import { round } from '../../control-plane/cli/statistics.js';
import { copyOf, deploy } from '../e2e/deploy.js';
import { dockerRun, gatewayWakes } from '../e2e/support.js';
import setup from '../e2e/system.js';
import { type Percentiles, percentiles, run, say, table } from './report.js';
import { settle, timed } from './requests.js';

/**
 * `npm run bench:activation`: what a request through the gateway takes when an instance runs, when one is parked, when
 * none is there and it has to be restored, and what `docker run` takes until the same service is healthy. All of it
 * in one run, interleaved, so that whatever else the machine does touches each alike.
 */

const USAGE = `usage: npm run -s bench:activation -- [--rounds N] [--docker-rounds N] [--service NAME]... [-o json]
  --rounds         rounds for each service, each with a parked activation, warm requests and a restore; default 100
  --docker-rounds  starts by docker run for each service, spread over the rounds; default 5
  --service        only this sample; may be repeated
  -o json          prints [{service, warm_ms, parked_ms, restored_ms, docker_run_ms}] and nothing else on stdout
`;

/** The samples, where they answer, and what each asks for. */
const SAMPLES = [
  { name: 'flask', path: '/?key=888888', port: 8281 },
  { name: 'gs_spring_boot', path: '/', port: 8283 },
  { name: 'node_stream', path: '/', port: 8285 },
];

/** Warm requests in each round. */
const WARM = 3;
/** One service's figures, milliseconds. */
interface Result {
  service: string;
  warm_ms: Percentiles;
  parked_ms: Percentiles;
  restored_ms: Percentiles;
  docker_run_ms: Percentiles;
}

async function measure(sample: (typeof SAMPLES)[number], rounds: number, dockerRounds: number): Promise<Result> {
  const pooled = `bench-${sample.name}`;
  const bare = `bench-${sample.name}-none`;
  say(`${sample.name}: deploying`);
  const common = { idle_timeout: 1, reuse: false, image_name: undefined, checkpoint_name: undefined };
  const source = `sample/${sample.name}`;
  await deploy(
    await copyOf(source, { ...common, service_name: pooled, host_port: sample.port, pre_start_pool_size: 1 }),
  );
  await deploy(
    await copyOf(source, { ...common, service_name: bare, host_port: sample.port + 1, pre_start_pool_size: 0 }),
  );

  const agent = new http.Agent({ keepAlive: true });
  const warm: number[] = [];
  const parked: number[] = [];
  const restored: number[] = [];
  const docker: number[] = [];
  const before = {
    parked: (await gatewayWakes(pooled)).parked,
    restored: (await gatewayWakes(bare)).restored,
  };
  for (let number = 0; number < rounds; number++) {
    await settle(pooled, 1);
    parked.push(await timed(agent, sample.port, sample.path));
    for (let i = 0; i < WARM; i++) warm.push(await timed(agent, sample.port, sample.path));
    await settle(pooled, 1);
    await settle(bare, 0);
    restored.push(await timed(agent, sample.port + 1, sample.path));
    await settle(bare, 0);
    if (Math.floor((number * dockerRounds) / rounds) === docker.length) docker.push(await dockerRun(bare));
    if ((number + 1) % 20 === 0) say(`${sample.name}: ${number + 1}/${rounds}`);
  }
  agent.destroy();
  // A figure of something else than its name says is worth nothing.
  const woken = (await gatewayWakes(pooled)).parked - before.parked;
  if (woken !== rounds) throw new Error(`${pooled}: ${woken} of ${rounds} first requests woke a parked instance`);
  const made = (await gatewayWakes(bare)).restored - before.restored;
  if (made !== rounds) throw new Error(`${bare}: ${made} of ${rounds} first requests had an instance restored`);
  return {
    service: sample.name,
    warm_ms: percentiles(warm),
    parked_ms: percentiles(parked),
    restored_ms: percentiles(restored),
    docker_run_ms: percentiles(docker),
  };
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      rounds: { type: 'string', default: '100' },
      'docker-rounds': { type: 'string', default: '5' },
      service: { type: 'string', multiple: true },
      output: { type: 'string', short: 'o', default: 'table' },
    },
  });
  const rounds = Number(values.rounds);
  const dockerRounds = Number(values['docker-rounds']);
  const chosen = SAMPLES.filter(({ name }) => values.service === undefined || values.service.includes(name));
  const unknown = values.service?.filter((name) => !SAMPLES.some((sample) => sample.name === name)) ?? [];
  if (
    !(Number.isInteger(rounds) && rounds > 0 && Number.isInteger(dockerRounds) && dockerRounds > 0) ||
    dockerRounds > rounds ||
    unknown.length > 0 ||
    !['table', 'json'].includes(values.output)
  ) {
    throw new Error(unknown.length > 0 ? `there is no sample ${unknown.join(', ')}\n${USAGE}` : USAGE);
  }
  const down = await setup();
  const results: Result[] = [];
  try {
    for (const sample of chosen) results.push(await measure(sample, rounds, dockerRounds));
  } finally {
    await down();
  }
  if (values.output === 'json') {
    process.stdout.write(`${JSON.stringify(results)}\n`);
    return;
  }
  const kinds = ['warm_ms', 'parked_ms', 'restored_ms', 'docker_run_ms'] as const;
  process.stdout.write(
    `${table(
      ['SERVICE', 'START', 'P50 ms', 'P95 ms', 'P99 ms', 'OVER WARM, P50', 'P99'],
      results.flatMap((result) =>
        kinds.map((kind) => {
          const { p50, p95, p99 } = result[kind];
          const over = kind === 'warm_ms' ? ['', ''] : [p50 - result.warm_ms.p50, p99 - result.warm_ms.p99];
          const name = kind.replace('_ms', '').replace('_', ' ');
          return [result.service, name, p50, p95, p99, ...over].map((cell) =>
            typeof cell === 'number' ? String(round(cell, 1)) : cell,
          );
        }),
      ),
    )}\n`,
  );
}

run(main);
