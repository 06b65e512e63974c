import { readdir, readFile, writeFile } from 'node:fs/promises';
import { describe, expect, it } from 'vitest';
import { copyOf, deploy } from '../e2e/deploy.js';
import { gatewayWakes, getJson, instances, onHost, until } from '../e2e/support.js';
import { agentPid, partPid } from '../fault/system.js';

/** One for each minute of a day. */
const CYCLES = 1_440;
/** Before the first look: caches, connection pools and the code's own optimisation settle in these. */
const WARM_UP = 60;

/** What must not grow. */
interface Footprint {
  /** Open descriptors of the agent. */
  agentDescriptors: number;
  gatewayDescriptors: number;
  namespaces: number;
  mounts: number;
  processes: number;
  /** Cgroups in each hierarchy, dead ones that something still holds among them; from /proc/cgroups. */
  cgroups: Record<string, number>;
  /** Resident memory, MB. */
  agentMemory: number;
  gatewayMemory: number;
}

async function footprint(): Promise<Footprint> {
  // A dead memory cgroup is kept as long as page cache is charged to it, such as the blocks of a folder that its instance
  // was the first to write to. The kernel takes those back when it needs memory; whatever is left after that is a leak.
  await writeFile('/proc/sys/vm/drop_caches', '1');
  const gateway = (await partPid('gateway')).pid;
  const agent = await agentPid();
  const [here, host] = await Promise.all([local(gateway), inHost(agent)]);
  return { ...here, ...host };
}

async function inHost(agent: number) {
  const text = await onHost(`
    ls /proc/${agent}/fd | wc -l
    ip netns list | wc -l
    wc -l < /proc/mounts
    ls -d /proc/[0-9]* | wc -l
    sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/${agent}/status
    tail -n +2 /proc/cgroups | cut -f 1,3
  `);
  const [descriptors, namespaces, mounts, processes, memory, ...cgroups] = text.trim().split('\n');
  return {
    agentDescriptors: Number(descriptors),
    namespaces: Number(namespaces),
    mounts: Number(mounts),
    processes: Number(processes),
    agentMemory: Math.round(Number(memory) / 1024),
    cgroups: Object.fromEntries(
      cgroups.map((line) => {
        const [name, count] = line.split('\t');
        return [name ?? '', Number(count)];
      }),
    ),
  };
}

async function local(pid: number) {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  return {
    gatewayDescriptors: (await readdir(`/proc/${pid}/fd`)).length,
    gatewayMemory: Math.round(Number(/^VmRSS:\s*(\d+)/m.exec(status)?.[1]) / 1024),
  };
}

describe.each([
  { name: 'soak-fresh', port: 8277, reuse: false },
  { name: 'soak-reused', port: 8278, reuse: true },
])('1,440 cycles of $name (reuse: $reuse): parked, woken, idle', ({ name, port, reuse }) => {
  it('leave memory, descriptors, namespaces, mounts and cgroups where they were', { timeout: 3_600_000 }, async () => {
    await deploy(
      await copyOf('state', {
        service_name: name,
        host_port: port,
        pre_start_pool_size: 1,
        // 60 ms: each request finds the instance parked again, or another one in its place.
        idle_timeout: 0.001,
        reuse,
      }),
    );
    const cycle = async () => {
      await getJson(`http://localhost:${port}`);
      await until(
        `${name} to be parked and idle`,
        async () => {
          const found = await instances(name);
          return found.length === 1 && found[0]?.state === 'INSTANCE_STATE_PARKED';
        },
        30_000,
        20,
      );
    };
    for (let i = 0; i < WARM_UP; i++) await cycle();
    const before = await footprint();
    const parked = (await gatewayWakes(name)).parked;
    for (let i = 0; i < CYCLES; i++) await cycle();
    // What is removed late is removed by then.
    const after = await until(
      'the footprint to be what it was',
      async () => {
        const now = await footprint();
        expect(now.agentDescriptors).toBeLessThanOrEqual(before.agentDescriptors + 5);
        expect(now.gatewayDescriptors).toBeLessThanOrEqual(before.gatewayDescriptors + 5);
        expect(now.namespaces).toBeLessThanOrEqual(before.namespaces + 2);
        expect(now.mounts).toBeLessThanOrEqual(before.mounts + 2);
        expect(now.processes).toBeLessThanOrEqual(before.processes + 5);
        for (const [hierarchy, count] of Object.entries(before.cgroups)) {
          expect({ hierarchy, count: now.cgroups[hierarchy] ?? 0 }).toEqual({
            hierarchy,
            count: expect.toSatisfy((found: number) => found <= count + 10),
          });
        }
        return now;
      },
      60_000,
      1_000,
    );
    expect((await gatewayWakes(name)).parked - parked).toBe(CYCLES);
    // A heap breathes; a leak of one object a cycle would show in the next figure's growth over these many cycles.
    expect(after.agentMemory).toBeLessThan(before.agentMemory + 40);
    expect(after.gatewayMemory).toBeLessThan(before.gatewayMemory + 40);
    console.log(JSON.stringify({ name, before, after }));
  });
});
