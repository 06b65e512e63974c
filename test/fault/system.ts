import { expect } from 'vitest';
import { exactly, onTheHost } from '../e2e/host.js';
import { asJson, HOST, initless, instances, onHost, until } from '../e2e/support.js';

/** A process that `initless up` keeps running. */
export async function partPid(name: string): Promise<{ pid: number; restarts: number }> {
  const { parts } = await status();
  const part = parts.find((each) => each.name === name);
  if (!part?.pid) throw new Error(`${name} does not run`);
  return { pid: part.pid, restarts: part.restarts };
}

export interface Status {
  supervisor: { pid: number } | null;
  parts: { name: string; state: string; pid: number | null; restarts: number }[];
}

export async function status(): Promise<Status> {
  return JSON.parse((await initless('status', '-o', 'json')).stdout) as Status;
}

/** Waits until all that the project has is up and connected. */
export async function untilUp(): Promise<void> {
  await until(
    'control plane, gateway and agent to be up',
    async () => {
      if ((await initless('status')).code !== 0) return false;
      const hosts = await asJson<{ name: string; host?: { connected?: boolean } }[]>('host', 'ls');
      return hosts.some(({ name, host }) => name === HOST && host?.connected);
    },
    60_000,
  );
}

/** Process id, inside the host, of its agent; 0 while there is none. */
export async function agentPid(): Promise<number> {
  return Number(
    await onHost(`
      for dir in /proc/[0-9]*; do
        if tr '\\0' ' ' < $dir/cmdline 2> /dev/null | grep -q '^node .*/dist/agent/main.js'; then basename $dir; fi
      done
    `),
  );
}

/** Kills the agent and waits until another one is connected. */
export async function killAgent(): Promise<void> {
  const before = await agentPid();
  await onHost(`kill -KILL ${before}`);
  await until('another agent to be started', async () => {
    const now = await agentPid();
    return now !== 0 && now !== before;
  });
}

/** Waits until the host holds exactly the instances that are listed. */
export async function untilOnlyWhatIsListed(): Promise<void> {
  await until('the host to hold what is listed, and nothing else', async () => {
    const ids = (await instances()).map(({ id }) => id);
    const found = await onTheHost();
    expect(found).toMatchObject(exactly(ids));
    expect(found.namespaces).toHaveLength(ids.length);
    return true;
  });
}

/** Ends a part that `initless up` keeps running, at once, and waits until it has been started again. */
export async function killPart(name: string): Promise<void> {
  const { pid } = await partPid(name);
  process.kill(pid, 'SIGKILL');
  await until(`another ${name} to be started`, async () => {
    const now = (await status()).parts.find((part) => part.name === name)?.pid;
    return now && now !== pid;
  });
}
