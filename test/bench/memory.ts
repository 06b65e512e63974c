import { readFile } from 'node:fs/promises';
import http from 'node:http';
import { parseArgs } from 'node:util';
import { round } from '../../control-plane/cli/statistics.js';
import { apply, change, copyOf, deploy } from '../e2e/deploy.js';
import { checkpointOf, crcOfHeap, type Mode, onWire, type Part } from '../e2e/heaps.js';
import { getJson, type InstanceRow, instances, mustRun, until } from '../e2e/support.js';
import setup from '../e2e/system.js';
import { memoryOf } from './instance-memory.js';
import { percentiles, run, say, table } from './report.js';
import { settle, timed } from './requests.js';

/**
 * `npm run bench:memory`: what a restore takes and holds with its memory copied, lazy and mapped, for a JVM with a small and a
 * large live heap. All of it in one run, interleaved, so that whatever else the machine does touches each alike.
 */

const USAGE = `usage: npm run -s bench:memory -- [--rounds N] [--heaps MB,...] [--modes MODE,...] [-o json]
  --rounds  restores of each; default 7
  --heaps   megabytes of live heap; default 64,512,2048
  --modes   of copied, lazy, mapped; default all
  -o json   prints [{heap_mb, mode, restore_ms, first_answer_ms, rss_own_mb, instances_measured, total_mb_10}] and nothing
            else on stdout: medians; rss_own_mb of parked instances; total_mb_10 null where ten would not fit
`;

const MODES: readonly Mode[] = ['copied', 'lazy', 'mapped'];
const PORT = 8361;
/** So that the heap shrinks to what is live when garbage is collected before the dump: copying more would flatter the others. */
const HEAP_OPTIONS = ['-XX:MinHeapFreeRatio=5', '-XX:MaxHeapFreeRatio=10'];
/** Asks for a value that is older than the dump. */
const PATH = '/read';
/** Requests after the first one, in each round. */
const NEXT = 5;
/** Instances whose memory together is asked for. */
const MANY = 10;
/** Share of the available memory that parked instances may take. */
const ROOM = 0.7;

/** What mapped memory is to reach: a first answer as soon as with a small heap, and sooner and with less than copied. */
const GOALS = { smallMb: 64, largeMb: 2048, overSmall: 1.3, underCopied: 12, ownOfCopied: 0.03 };

/** One heap in one mode. */
interface Case {
  heapMb: number;
  mode: Mode;
  name: string;
  port: number;
  folder: string;
  restore: number[];
  first: number[];
  next: number[];
  /** Own memory of an instance after its first request, and after one that read its whole heap, MB. */
  afterFirst: number[];
  afterWalk: number[];
}

/** Its figures; medians, milliseconds and MB. */
interface Result {
  heapMb: number;
  mode: Mode;
  restoreMs: number;
  firstAnswerMs: number;
  nextAnswerMs: number;
  ownParkedMb: number;
  ownAfterFirstMb: number;
  ownAfterWalkMb: number;
  instancesMeasured: number;
  totalMb: number | null;
}

/** Deploys one; undefined, with the reason on standard error, when there is no checkpoint of that mode. */
async function prepare(heapMb: number, mode: Mode, port: number): Promise<Case | undefined> {
  const name = `bench-memory-${heapMb}-${mode}`;
  say(`${name}: deploying`);
  const folder = await copyOf('heap_jvm', {
    service_name: name,
    host_port: port,
    memory: mode,
    env: { HEAP_MB: String(heapMb) },
    start_cmd: ['java', ...HEAP_OPTIONS, `-Xmx${Math.round(heapMb * 1.3) + 128}m`, '-cp', '/classes', 'Main'],
    warmup: [PATH],
    before_checkpoint: '/release',
    idle_timeout: 5,
  });
  let why: string | undefined;
  try {
    await deploy(folder);
    const { memory } = await checkpointOf(name);
    if (memory?.mode !== onWire(mode)) why = memory?.reason ?? 'the checkpoint does not say how memory is restored';
  } catch (error) {
    why = (error as Error).message;
  }
  if (why !== undefined) {
    say(`${name}: left out: ${why}`);
    return undefined;
  }
  return { heapMb, mode, name, port, folder, restore: [], first: [], next: [], afterFirst: [], afterWalk: [] };
}

/** Restores one for a request, and asks it again. */
async function once(one: Case, agent: http.Agent, crc: number): Promise<void> {
  await settle(one.name, 0);
  one.first.push(await timed(agent, one.port, PATH));
  for (let i = 0; i < NEXT; i++) one.next.push(await timed(agent, one.port, PATH));
  const { id, stages } = await until(`the instance of ${one.name} to be reported`, async () => {
    const [found] = (await instances(one.name)) as Staged[];
    return found?.state === 'INSTANCE_STATE_RUNNING' && found;
  });
  const restore = stages?.find(({ stage }) => stage === 'restore');
  if (restore === undefined) throw new Error(`${id} was not restored`);
  one.restore.push(restore.ms);
  one.afterFirst.push(await ownOf(id));
  const parts = await getJson<Part[]>(`http://localhost:${one.port}/sum`);
  if (parts[0]?.crc !== crc) throw new Error(`${id}: the heap is not what it was: ${JSON.stringify(parts)}`);
  one.afterWalk.push(await ownOf(id));
  await settle(one.name, 0);
}

type Staged = InstanceRow & { stages?: { stage: string; ms: number }[] };

async function ownOf(id: string): Promise<number> {
  return (await memoryOf([id]))[0]?.own as number;
}

/** Parks as many as asked for and as fit, and measures them. */
async function park(one: Case): Promise<Pick<Result, 'ownParkedMb' | 'instancesMeasured' | 'totalMb'>> {
  const fits = Math.floor((ROOM * (await availableMb())) / median(one.afterFirst));
  const count = fits >= MANY ? MANY : Math.max(1, Math.min(fits, 3));
  say(`${one.name}: parking ${count}`);
  await size(one, count);
  const parked = await until(
    `${count} instances of ${one.name} to be parked`,
    async () => {
      const found = (await instances(one.name)).filter(({ state }) => state === 'INSTANCE_STATE_PARKED');
      return found.length === count && found;
    },
    600_000,
  );
  const memory = await memoryOf(parked.map(({ id }) => id));
  await size(one, 0);
  await settle(one.name, 0);
  return {
    ownParkedMb: median(memory.map(({ own }) => own)),
    instancesMeasured: count,
    totalMb: count === MANY ? memory.reduce((sum, { share }) => sum + share, 0) : null,
  };
}

/** Has so many kept parked, of the same checkpoint. */
async function size({ folder, name }: Case, count: number): Promise<void> {
  await change(folder, { pre_start_pool_size: count });
  const ran = await apply(folder);
  if (ran.code !== 0) throw new Error(`the pool of ${name} could not be resized\n${ran.stderr}`);
}

async function availableMb(): Promise<number> {
  return Number(/^MemAvailable:\s+(\d+)/m.exec(await readFile('/proc/meminfo', 'utf8'))?.[1]) / 1024;
}

function median(samples: readonly number[]): number {
  return percentiles(samples).p50;
}

async function measure(heaps: readonly number[], modes: readonly Mode[], rounds: number): Promise<Result[]> {
  const cases: Case[] = [];
  for (const heapMb of heaps) {
    for (const mode of modes) {
      const one = await prepare(heapMb, mode, PORT + heaps.indexOf(heapMb) * modes.length + modes.indexOf(mode));
      if (one) cases.push(one);
    }
  }
  const crcs = new Map(heaps.map((heapMb) => [heapMb, crcOfHeap(heapMb)]));
  const agent = new http.Agent({ keepAlive: true });
  for (let number = 0; number < rounds; number++) {
    for (const one of cases) await once(one, agent, crcs.get(one.heapMb) as number);
    say(`${number + 1}/${rounds}`);
  }
  agent.destroy();
  const results: Result[] = [];
  for (const one of cases) {
    const { heapMb, mode } = one;
    const parked = await park(one);
    results.push({
      heapMb,
      mode,
      restoreMs: median(one.restore),
      firstAnswerMs: median(one.first),
      nextAnswerMs: median(one.next),
      ownAfterFirstMb: median(one.afterFirst),
      ownAfterWalkMb: median(one.afterWalk),
      ...parked,
    });
    await mustRun('service', 'rm', one.name);
  }
  return results;
}

/** What the figures say of the goals; nothing of those for which figures are missing. */
function verdicts(results: readonly Result[]): string[] {
  const of = (mode: Mode, heapMb: number) => results.find((result) => result.mode === mode && result.heapMb === heapMb);
  const [small, large] = [of('mapped', GOALS.smallMb), of('mapped', GOALS.largeMb)];
  const copied = of('copied', GOALS.largeMb);
  const told: string[] = [];
  const tell = (what: string, value: number, wanted: string, met: boolean) =>
    told.push(`${met ? 'met' : 'MISSED'}: ${what}: ${value} (goal: ${wanted})`);
  if (small && large) {
    const ratio = round(large.firstAnswerMs / small.firstAnswerMs, 2);
    const what = `first answer, mapped, ${large.heapMb} MB over ${small.heapMb} MB`;
    tell(what, ratio, `at most ${GOALS.overSmall}`, ratio <= GOALS.overSmall);
  }
  if (large && copied) {
    const ratio = round(copied.firstAnswerMs / large.firstAnswerMs, 1);
    const faster = `first answer at ${large.heapMb} MB, copied over mapped`;
    tell(faster, ratio, `at least ${GOALS.underCopied}`, ratio >= GOALS.underCopied);
    const share = round(large.ownParkedMb / copied.ownParkedMb, 4);
    const what = `own memory parked at ${large.heapMb} MB, mapped over copied`;
    tell(what, share, `at most ${GOALS.ownOfCopied}`, share <= GOALS.ownOfCopied);
  }
  return told;
}

run(async () => {
  const { values } = parseArgs({
    options: {
      rounds: { type: 'string', default: '7' },
      heaps: { type: 'string', default: '64,512,2048' },
      modes: { type: 'string', default: MODES.join(',') },
      output: { type: 'string', short: 'o', default: 'table' },
    },
  });
  const whole = (count: number) => Number.isInteger(count) && count > 0;
  const rounds = Number(values.rounds);
  const heaps = values.heaps.split(',').map(Number);
  const modes = values.modes.split(',') as Mode[];
  const known = modes.every((mode) => MODES.includes(mode)) && ['table', 'json'].includes(values.output);
  if (!whole(rounds) || !heaps.every(whole) || !known) throw new Error(USAGE);
  const down = await setup();
  let results: Result[];
  try {
    results = await measure(heaps, modes, rounds);
  } finally {
    await down();
  }
  const goals = verdicts(results);
  if (values.output === 'json') {
    for (const goal of goals) say(goal);
    process.stdout.write(
      `${JSON.stringify(
        results.map((result) => ({
          heap_mb: result.heapMb,
          mode: result.mode,
          restore_ms: round(result.restoreMs, 1),
          first_answer_ms: round(result.firstAnswerMs, 1),
          rss_own_mb: round(result.ownParkedMb, 1),
          instances_measured: result.instancesMeasured,
          total_mb_10: result.totalMb === null ? null : round(result.totalMb, 1),
        })),
      )}\n`,
    );
    return;
  }
  const rows = results.map((result) => [
    String(result.heapMb),
    result.mode,
    ...[result.restoreMs, result.firstAnswerMs, result.nextAnswerMs].map((ms) => String(round(ms, 1))),
    ...[result.ownParkedMb, result.ownAfterFirstMb, result.ownAfterWalkMb].map((mb) => String(round(mb, 1))),
    result.totalMb === null ? 'does not fit' : String(round(result.totalMb, 1)),
  ]);
  const own = ['OWN MB, PARKED', 'FIRST REQUEST', 'WHOLE HEAP READ'];
  const head = ['HEAP MB', 'MEMORY', 'RESTORE ms', 'FIRST ANSWER', 'NEXT', ...own, `${MANY} TOGETHER`];
  process.stdout.write(`${table(head, rows)}\n\n${goals.map((goal) => `${goal}\n`).join('')}`);
});
