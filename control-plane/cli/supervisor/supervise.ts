import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { sleep } from '../../../proto/rpc/deadline.js';
import { type Backoff, NO_BACKOFF, nextBackoff } from './backoff.js';
import type { Part, PartState, Plan, RunFiles } from './files.js';
import { identityOf } from './process-identity.js';
import { rotateLog } from './rotate-log.js';

/** A part is told to end, and killed when it has not by then. */
export const STOP_MS = 20_000;
const ROTATE_EVERY_MS = 10_000;

/**
 * Keeps the plan's parts running until the signal aborts, then stops them in the opposite order. What they are at is
 * written to the run folder at each change. Parts write their logs themselves, so that they outlive this process.
 *
 * @param say told one line at each start and end.
 */
export async function supervise(plan: Plan, files: RunFiles, signal: AbortSignal, say: (line: string) => void) {
  const states: PartState[] = plan.parts.map(({ name }) => ({
    name,
    process: undefined,
    since: new Date().toISOString(),
    restarts: 0,
    lastEnd: '',
  }));
  const changed = () => files.writeStates(states);
  changed();
  const stops = plan.parts.map(() => new AbortController());
  const keeping = plan.parts.map((part, index) =>
    keepRunning(part, states[index] as PartState, files, (stops[index] as AbortController).signal, changed, say),
  );
  const rotation = setInterval(() => {
    for (const { name } of plan.parts) rotateLog(files.log(name));
  }, ROTATE_EVERY_MS);
  if (!signal.aborted) await Promise.race([once(signal, 'abort'), ...keeping]);
  clearInterval(rotation);
  for (let index = plan.parts.length - 1; index >= 0; index -= 1) {
    stops[index]?.abort();
    await keeping[index];
  }
}

async function keepRunning(
  part: Part,
  state: PartState,
  files: RunFiles,
  stop: AbortSignal,
  changed: () => void,
  say: (line: string) => void,
): Promise<void> {
  let backoff: Backoff = NO_BACKOFF;
  for (let first = true; !stop.aborted; first = false) {
    if (!first) state.restarts += 1;
    const startedAt = Date.now();
    const child = start(part, files);
    state.process = child.pid === undefined ? undefined : identityOf(child.pid);
    state.since = new Date(startedAt).toISOString();
    changed();
    say(`${part.name} is started, process ${child.pid}`);
    const end = await ended(child, stop);
    state.process = undefined;
    state.lastEnd = end;
    backoff = nextBackoff(backoff, Date.now() - startedAt);
    changed();
    say(`${part.name} ${end}${stop.aborted ? '' : `; started again in ${backoff.delayMs} ms`}`);
    await sleep(backoff.delayMs, stop).catch(() => {}); // Told to stop while waiting: the loop's condition sees it.
  }
}

function start(part: Part, files: RunFiles): ChildProcess {
  const log = openSync(files.log(part.name), 'a', 0o600);
  try {
    const env = { ...process.env, ...part.env };
    return spawn(part.program ?? process.execPath, part.args, {
      ...{ stdio: ['ignore', log, log], detached: true, cwd: '/', env },
    });
  } finally {
    closeSync(log);
  }
}

/** Waits for a part's end, which is brought about once `stop` aborts, and says how it ended. */
async function ended(child: ChildProcess, stop: AbortSignal): Promise<string> {
  const end = new Promise<string>((resolve) => {
    child.once('error', (error) => resolve(`cannot be started: ${error.message}`));
    child.once('exit', (code, signal) => resolve(signal ? `was ended by ${signal}` : `ended with code ${code}`));
  });
  let killer: NodeJS.Timeout | undefined;
  const onStop = () => {
    child.kill('SIGTERM');
    killer = setTimeout(() => child.kill('SIGKILL'), STOP_MS);
  };
  if (stop.aborted) onStop();
  else stop.addEventListener('abort', onStop, { once: true });
  try {
    return await end;
  } finally {
    clearTimeout(killer);
    stop.removeEventListener('abort', onStop);
  }
}
