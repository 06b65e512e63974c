import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { get } from 'node:http';
import { connect } from 'node:net';
import { fileURLToPath } from 'node:url';
import { sleep, withDeadline } from '../../../proto/rpc/deadline.js';
import { InitlessError } from '../../../proto/rpc/errors.js';
import type { Part, PartState, Plan, RunFiles } from './files.js';
import { isAlive, type ProcessIdentity, signalProcess } from './process-identity.js';
import { STOP_MS } from './supervise.js';

const START_MS = 10_000;
const READY_MS = 45_000;
/** A part that ended this often while it was waited for will not get ready. */
const FUTILE_RESTARTS = 3;
const TAIL_LINES = 15;

/** A part as `initless status` shows it. */
export interface PartStatus extends PartState {
  ready: boolean;
  log: string;
}

/**
 * Sees to it that a supervisor with this plan runs and its parts are ready. One with another plan is replaced, parts
 * that a killed supervisor left are ended first.
 *
 * Errors: SETUP_FAILED (a part does not get ready; its last lines), PORT_TAKEN (by a part in the foreground), DEADLINE.
 * @returns whether anything had to be started.
 */
export async function startSupervisor(
  files: RunFiles,
  plan: Plan,
  signal: AbortSignal,
  progress: (line: string) => void,
): Promise<boolean> {
  files.prepare();
  const running = files.supervisor() !== undefined;
  const same = JSON.stringify(files.readPlan()) === JSON.stringify(plan);
  if (running && same) {
    await waitReady(files, plan, signal);
    return false;
  }
  if (running) progress('settings or code have changed: restarting control plane and gateway');
  await stopSupervisor(files, signal);
  await refuseTakenPorts(plan);
  files.writePlan(plan);
  files.writeStates([]);
  const log = openSync(files.log('supervisor'), 'a', 0o600);
  try {
    spawn(process.execPath, [fileURLToPath(new URL('./main.js', import.meta.url)), files.folder], {
      stdio: ['ignore', log, log],
      detached: true,
      cwd: '/',
    }).unref();
  } finally {
    closeSync(log);
  }
  await withDeadline(START_MS, 'the supervisor to start', signal, async (bound) => {
    while (!files.supervisor()) await sleep(50, bound);
  });
  await waitReady(files, plan, signal);
  return true;
}

/** Whoever answers in place of a part would make it look ready. */
async function refuseTakenPorts(plan: Plan): Promise<void> {
  for (const { name, readyUrl } of plan.parts) {
    const { host } = new URL(readyUrl);
    if (await isReady(readyUrl)) {
      throw new InitlessError('PORT_TAKEN', `another ${name} answers on ${host}, not started by 'initless up'`, {
        subject: host,
        nextStep: `end it (it may run in the foreground in another terminal), or choose other ports with --port-base`,
      });
    }
  }
}

async function waitReady(files: RunFiles, plan: Plan, signal: AbortSignal): Promise<void> {
  for (const part of plan.parts) {
    const before = restartsOf(files, part);
    await withDeadline(READY_MS, `${part.name} to be ready (log: ${files.log(part.name)})`, signal, async (bound) => {
      while (!(await isReady(part.readyUrl))) {
        if (restartsOf(files, part) - before >= FUTILE_RESTARTS) throw notReady(files, part);
        await sleep(100, bound);
      }
    });
  }
}

function restartsOf(files: RunFiles, part: Part): number {
  return files.readStates().find(({ name }) => name === part.name)?.restarts ?? 0;
}

function notReady(files: RunFiles, part: Part): InitlessError {
  const end = files.readStates().find(({ name }) => name === part.name)?.lastEnd ?? '';
  return new InitlessError('SETUP_FAILED', `${part.name} does not stay up: it ${end}`, {
    subject: part.name,
    nextStep: `see ${files.log(part.name)}; 'initless down' ends the attempts`,
    outputTail: tail(files.log(part.name)),
  });
}

function tail(path: string): string[] {
  return readFileSync(path, 'utf8').trimEnd().split('\n').slice(-TAIL_LINES);
}

/** Stops the supervisor and its parts, also parts that a killed one left. False when there was nothing to stop. */
export async function stopSupervisor(files: RunFiles, signal: AbortSignal): Promise<boolean> {
  const supervisor = files.supervisor();
  let found = false;
  if (supervisor) {
    const parts = files.readPlan()?.parts.length ?? 0;
    found = await end(supervisor, 'the supervisor', (parts + 1) * STOP_MS, signal);
  }
  for (const { name, process } of [...files.readStates()].reverse()) {
    if (process && (await end(process, name, STOP_MS, signal))) found = true;
  }
  files.release();
  return found;
}

/** Ends a process: told at first, killed after `ms`. False when it was not there. */
async function end(identity: ProcessIdentity, what: string, ms: number, signal: AbortSignal): Promise<boolean> {
  if (!signalProcess(identity, 'SIGTERM')) return false;
  for (const until = Date.now() + ms; isAlive(identity) && Date.now() < until; ) await sleep(50, signal);
  if (signalProcess(identity, 'SIGKILL')) {
    await withDeadline(5_000, `${what} (process ${identity.pid}) to end after SIGKILL`, signal, async (bound) => {
      while (isAlive(identity)) await sleep(50, bound);
    });
  }
  return true;
}

/** How the project's parts are doing; undefined process: not running. */
export async function partStatuses(files: RunFiles): Promise<PartStatus[]> {
  const parts = files.readPlan()?.parts ?? [];
  const states = files.readStates();
  return Promise.all(
    parts.map(async (part) => {
      const state = states.find(({ name }) => name === part.name);
      const alive = state?.process && isAlive(state.process) ? state.process : undefined;
      return {
        name: part.name,
        since: state?.since ?? '',
        restarts: state?.restarts ?? 0,
        lastEnd: state?.lastEnd ?? '',
        process: alive,
        ready: alive !== undefined && (await isReady(part.readyUrl)),
        log: files.log(part.name),
      };
    }),
  );
}

/** Whether a health address answers with 200, or takes a connection, within two seconds. Anything else is a no. */
export function isReady(url: string): Promise<boolean> {
  const { protocol, hostname, port } = new URL(url);
  if (protocol === 'tcp:') return takesConnections(hostname, Number(port));
  return new Promise((resolve) => {
    const request = get(url, { timeout: 2_000, agent: false }, (response) => {
      response.resume();
      resolve(response.statusCode === 200);
    });
    request.on('timeout', () => request.destroy());
    request.on('error', () => resolve(false));
    request.on('close', () => resolve(false));
  });
}

function takesConnections(host: string, port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host, port, timeout: 2_000 });
    const say = (answer: boolean) => {
      resolve(answer);
      socket.destroy();
    };
    socket.on('connect', () => say(true));
    socket.on('timeout', () => say(false));
    socket.on('error', () => say(false));
  });
}
