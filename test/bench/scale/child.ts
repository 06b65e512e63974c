import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';

/** How long a child may take to start, or to stop. */
const CHILD_MS = 30_000;

/** Starts one of the programs beside this file with a channel for messages, from source as well as built. */
export function startChild(name: string, args: readonly string[], nodeArgs: readonly string[] = []): ChildProcess {
  const built = import.meta.url.endsWith('.js');
  const runner = built
    ? []
    : [fileURLToPath(new URL('../../../node_modules/vite-node/vite-node.mjs', import.meta.url))];
  const file = fileURLToPath(new URL(`${name}${built ? '.js' : '.ts'}`, import.meta.url));
  return spawn(process.execPath, [...nodeArgs, ...runner, file, ...args], { stdio: ['ignore', 2, 2, 'ipc'] });
}

/** The first thing that a child says. Rejects when it ends before, or says nothing for too long. */
export async function firstMessage<T>(child: ChildProcess, what: string): Promise<T> {
  const signal = AbortSignal.timeout(CHILD_MS);
  const ended = once(child, 'exit', { signal }).then(() => Promise.reject(new Error(`${what} ended at its start`)));
  ended.catch(() => undefined);
  const [message] = (await Promise.race([once(child, 'message', { signal }), ended])) as [T];
  return message;
}

/** Has a child end; one that does not is killed. */
export async function stopChild(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exit = once(child, 'exit', { signal: AbortSignal.timeout(CHILD_MS) });
  child.kill('SIGTERM');
  await exit.catch(() => child.kill('SIGKILL'));
}
