import { createHash } from 'node:crypto';
import { beforeAll, describe, expect, it } from 'vitest';
import { sleep } from '../../proto/rpc/deadline.js';
import { copyOf, deploy } from '../e2e/deploy.js';
import {
  type Answer,
  events,
  gatewayWakes,
  getJson,
  goneOf,
  initless,
  instances,
  onHost,
  request,
  sleepService,
  until,
  wokenBy,
} from '../e2e/support.js';
import { agentPid, killAgent, untilOnlyWhatIsListed, untilUp } from './system.js';

/** A service whose instances run while a daemon fills their memory, every page of which is known. */
const HEAP = { name: 'heap', url: 'http://localhost:8284' };
/** The same, with one that is kept parked. */
const PARKED = { name: 'parked-heap', url: 'http://localhost:8286' };
const PAGES = 131_072;

beforeAll(async () => {
  await untilUp();
  await deploy(await copyOf('heap', { service_name: HEAP.name, host_port: 8284, idle_timeout: 1 }));
});

/** What the service answers of a page, if the page is there. */
function digestOf(page: number): string {
  const bytes = Buffer.alloc(4096);
  for (let at = 0; at < bytes.length; at += 8) bytes.writeBigUInt64LE(BigInt(page + 1), at);
  return createHash('sha256').update(bytes).digest('hex');
}

/** Asks for pages, each a different one, with so many clients until it is stopped. */
class Reading {
  /** Answers with 200 that are not what the page holds. */
  readonly wrong: string[] = [];
  /** What came instead of an answer with 200. */
  readonly failures: string[] = [];
  answered = 0;
  readonly #clients: Promise<void>[];
  #over = false;
  #next = 0;

  constructor(clients: number) {
    const until = Date.now() + 120_000;
    this.#clients = Array.from({ length: clients }, async () => {
      while (!this.#over && Date.now() < until) await this.#one();
    });
  }

  async #one(): Promise<void> {
    // From the end: those that are filled last.
    const page = PAGES - 1 - ((this.#next++ * 977) % PAGES);
    try {
      const { status, body } = await request(`${HEAP.url}/page?n=${page}`);
      this.answered += 1;
      if (status !== 200) this.failures.push(`${status} ${body}`);
      else if (body !== digestOf(page)) this.wrong.push(`page ${page}: ${body}`);
    } catch (error) {
      this.failures.push((error as Error).message);
    }
  }

  async stop(): Promise<void> {
    this.#over = true;
    await Promise.all(this.#clients);
  }
}

/**
 * Waits, on the host, until an instance of the service is restored, or runs, lets its daemon work only for a moment now and
 * then for so many seconds, so that the fill takes long on any machine, and sends the daemon a signal. Gives both.
 */
async function slowed(
  from: 'restored' | 'running',
  seconds: number,
  signal: string,
): Promise<{ instance: string; daemon: string }> {
  const running = `/run/initless/instances/${HEAP.name}-*.json`;
  const said = await onHost(`
    cd /var/lib/docker/initless/instances
    now() { date +%s%3N; }
    end=$(($(now) + 30000))
    until [ -s ${HEAP.name}-*/work/pid ] && [ -s ${HEAP.name}-*/work/lazy-pages.pid ]; do [ $(now) -lt $end ]; done
    ${from === 'running' ? `until [ -e ${running} ]; do [ $(now) -lt $end ]; done` : ''}
    instance=$(echo ${HEAP.name}-*)
    daemon=$(cat $instance/work/lazy-pages.pid)
    end=$(($(now) + ${seconds * 1000}))
    while [ $(now) -lt $end ]; do
      kill -STOP $daemon
      sleep 0.02
      kill -CONT $daemon
      moment=0
      while [ $moment -lt 200 ]; do moment=$((moment + 1)); done
    done
    kill -${signal} $daemon
    echo $instance $daemon
  `);
  const [instance = '', daemon = ''] = said.trim().split(' ');
  return { instance, daemon };
}

/** Requests for pages that are filled last, and how many of them have been answered. */
interface Asked {
  came: () => number;
  all: Promise<Answer[]>;
}

const ASKED = Array.from({ length: 32 }, (_, index) => PAGES - 1 - 100 * index);

function asking(): Asked {
  let came = 0;
  const all = ASKED.map(async (page) => {
    const answer = await request(`${HEAP.url}/page?n=${page}`);
    came += 1;
    return answer;
  });
  return { came: () => came, all: Promise.all(all) };
}

/** An instance whose daemon has been stopped at the beginning of its work, and the requests that it was woken for. */
async function halfFilled(): Promise<{ instance: string; daemon: string; asked: Asked }> {
  // A fill that was over before it could be stopped shows nothing.
  for (let tries = 0; ; tries++) {
    await sleepService(HEAP.name);
    const stopped = slowed('running', 0, 'STOP');
    const asked = asking();
    const found = await stopped;
    // Whatever is let through by mistake has time to arrive; a page that was served before is none.
    await sleep(1_000);
    if (asked.came() < ASKED.length) return { ...found, asked };
    await expectRight(asked);
    if (tries === 9) throw new Error('every fill was over before its daemon could be stopped');
  }
}

async function expectRight({ all }: Asked): Promise<void> {
  const answers = (await all).map(({ status, body }) => `${status} ${body}`);
  expect(answers).toEqual(ASKED.map((page) => `200 ${digestOf(page)}`));
}

describe('an instance that is filled while it runs', () => {
  it('answers before that, and rightly; then nothing of its daemon is left', async () => {
    await sleepService(HEAP.name);
    const { instance } = await wokenBy(HEAP.name, async () => {
      const { status, body } = await request(`${HEAP.url}/page?n=${PAGES - 1}`);
      expect(`${status} ${body}`).toBe(`200 ${digestOf(PAGES - 1)}`);
    });
    expect((instance as { memory?: string }).memory).toBe('MEMORY_MODE_LAZY');
    await untilOnlyWhatIsListed();
  });

  it('cannot be parked before, and can be afterwards', async () => {
    const { instance, daemon, asked } = await halfFilled();
    const refused = await initless('instance', 'park', instance);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain('still being filled');
    await onHost(`kill -CONT ${daemon}`);
    await expectRight(asked);
    await until('it to be parked', async () => (await initless('instance', 'park', instance)).code === 0);
    const { body } = await request(`${HEAP.url}/page?n=5`);
    expect(body).toBe(digestOf(5));
  });
});

describe('when the daemon of an instance is killed', () => {
  it('in the middle of its work, under load, every answer is right all the same', { timeout: 240_000 }, async () => {
    const reasons: string[] = [];
    for (const [from, seconds] of [
      ['restored', 0],
      ['restored', 0.2],
      ['running', 0],
      ['running', 0.1],
      ['running', 0.3],
      ['running', 0.6],
    ] as const) {
      await sleepService(HEAP.name);
      const killed = slowed(from, seconds, 'KILL');
      const reading = new Reading(6);
      try {
        const { instance } = await killed;
        const gone = await goneOf(HEAP.name, instance);
        expect(gone.problem?.message).toMatch(/lazy-pages daemon|ended before it was healthy|could not restore/);
        reasons.push(gone.goneReason ?? '');
        const before = reading.answered;
        await until('the service to answer', async () => reading.answered > before + 50);
      } finally {
        await reading.stop();
      }
      expect({ wrong: reading.wrong, failures: reading.failures }).toEqual({ wrong: [], failures: [] });
    }
    expect(reasons).toContain('GONE_REASON_RESTORE_FAILED');
    expect((await instances(HEAP.name)).map(({ origin }) => origin)).toEqual(['ORIGIN_RESTORED']);
    await untilOnlyWhatIsListed();
  });

  it('requests that wait for a missing page are answered by another instance, or fail', async () => {
    const { instance, daemon, asked } = await halfFilled();
    const post = request(`${HEAP.url}/page?n=${PAGES - 50}`, { method: 'POST' });
    await sleep(300);
    await onHost(`kill -KILL ${daemon}`);
    await expectRight(asked);
    const { status, body } = await post;
    expect(status).toBe(502);
    expect(JSON.parse(body)).toMatchObject({ error: { code: 'UPSTREAM_FAILED' } });
    const gone = await goneOf(HEAP.name, instance);
    expect(gone).toMatchObject({
      goneReason: 'GONE_REASON_RESTORE_FAILED',
      problem: { message: expect.stringMatching(/lazy-pages daemon .* ended before .* \(killed by SIGKILL\)/) },
    });
    await untilOnlyWhatIsListed();
  });
});

describe('when the agent is killed while an instance is being filled', () => {
  it('the next one goes on with both, and what was held gets out', async () => {
    const { instance, daemon, asked } = await halfFilled();
    await killAgent();
    await untilUp();
    expect(asked.came()).toBeLessThan(ASKED.length);
    await onHost(`kill -CONT ${daemon}`);
    await expectRight(asked);
    expect((await instances(HEAP.name)).map(({ id }) => id)).toEqual([instance]);
    await untilOnlyWhatIsListed();
  });

  it('and its daemon too, the next one ends the instance, and nothing of what it said gets out', async () => {
    const { instance, daemon, asked } = await halfFilled();
    const before = await agentPid();
    await onHost(`kill -KILL ${before} ${daemon}`);
    await until('another agent to be started', async () => ![0, before].includes(await agentPid()));
    // An agent that was killed again and again is started after a pause; requests may not wait so long.
    for (const [index, { status, body }] of (await asked.all).entries()) {
      if (status === 200) expect(body).toBe(digestOf(ASKED[index] as number));
      else expect(`${status} ${body}`).toContain('503 {"error":{"code":"AGENT_DOWN"');
    }
    await untilUp();
    expect((await instances(HEAP.name)).map(({ id }) => id)).not.toContain(instance);
    await untilOnlyWhatIsListed();
  });
});

describe('an instance that is brought up for a pool', () => {
  it('is filled before it is parked, and is like any other then', async () => {
    await sleepService(HEAP.name);
    await deploy(
      await copyOf('heap', { service_name: PARKED.name, host_port: 8286, idle_timeout: 0.1, pre_start_pool_size: 1 }),
    );
    const { id } = await until('one to be parked', async () =>
      (await instances(PARKED.name)).find(({ state }) => state === 'INSTANCE_STATE_PARKED'),
    );
    const started = (await events(PARKED.name)).filter(({ instance }) => instance === id).map(({ kind }) => kind);
    expect(started).toContain('instance.parked');
    expect(await onHost('ls -d /sys/fs/cgroup/*/initless/*.lazy 2> /dev/null || true')).toBe('');
    const before = await gatewayWakes(PARKED.name);
    expect(await getJson<number>(`${PARKED.url}/pages`)).toBe(PAGES);
    expect((await request(`${PARKED.url}/page?n=77`)).body).toBe(digestOf(77));
    expect((await gatewayWakes(PARKED.name)).parked).toBe(before.parked + 1);
  });
});
