import { spawn } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import Docker from 'dockerode';
import { sleep, withDeadline } from '../../../proto/rpc/deadline.js';
import { InitlessError } from '../../../proto/rpc/errors.js';
import { removeCgroupIfEmpty } from './cgroups.js';
import { withAdminPath } from './exec.js';
import { withLock } from './lock.js';
import { ENGINE_STATE_DIR, LABELS } from './names.js';
import type { MachineOptions } from './options.js';
import { commandLine, processesNamed, readPidFile } from './processes.js';

/** Where an engine is looked for and where ours listens. */
const SOCKET = '/var/run/docker.sock';
const PID_FILE = join(ENGINE_STATE_DIR, 'dockerd.pid');
const LOG_FILE = join(ENGINE_STATE_DIR, 'dockerd.log');
/** dockerd keeps its containerd's pid here and believes it without looking at the process. */
const CONTAINERD_PID_FILE = '/var/run/docker/containerd/containerd.pid';

const PING_MS = 5_000;
const START_MS = 60_000;
const OTHER_START_MS = 30_000;
const STOP_MS = 60_000;

/** Whether an engine is there, and whose it is. */
export interface EngineStatus {
  /** "silent": something accepts connections but does not answer. */
  state: 'answering' | 'absent' | 'silent';
  /** Its version, such as "26.1.5"; empty when it does not answer. */
  version: string;
  /** Whether its process is one that {@link engineUp} started. */
  startedByUs: boolean;
  /** Why it does not answer; empty when it does. */
  detail: string;
}

/** A client for the machine's engine. */
export function engineClient(): Docker {
  return new Docker({ socketPath: SOCKET });
}

/** Process id of the engine that we started, if it is alive; a stale pid file, also after a reboot, is seen through. */
function ourEngine(): number | undefined {
  const pid = readPidFile(PID_FILE);
  return pid !== undefined && commandLine(pid)?.includes(PID_FILE) ? pid : undefined;
}

/** Asks the engine for its version. Never throws but for an abort. */
export async function engineStatus(options: MachineOptions = {}): Promise<EngineStatus> {
  const startedByUs = ourEngine() !== undefined;
  try {
    const version = await withDeadline(PING_MS, `an answer from the Docker engine on ${SOCKET}`, options.signal, () =>
      engineClient().version(),
    );
    return { state: 'answering', version: version.Version, startedByUs, detail: '' };
  } catch (error) {
    options.signal?.throwIfAborted();
    const code = (error as NodeJS.ErrnoException).code;
    const absent = code === 'ENOENT' || code === 'ECONNREFUSED';
    const detail = error instanceof Error ? error.message : String(error);
    return { state: absent ? 'absent' : 'silent', version: '', startedByUs, detail };
  }
}

/**
 * Uses the engine that answers, or starts one as Debian packages it, detached from us.
 * Throws ENGINE_DOWN when one is there and does not answer, or ours does not come up; SETUP_FAILED without dockerd.
 */
export async function engineUp(options: MachineOptions = {}): Promise<EngineStatus> {
  const found = await engineStatus(options);
  if (found.state === 'answering') return found;
  if (found.state === 'silent') {
    throw new InitlessError('ENGINE_DOWN', `the Docker engine on ${SOCKET} does not answer: ${found.detail}`, {
      subject: SOCKET,
      nextStep: 'look at its log and restart it; run the command again as root if permission was denied',
    });
  }
  const other = processesNamed('dockerd');
  if (other.length > 0) return waitForOther(other[0]!, options);

  options.progress?.('starting a Docker engine');
  const pid = await startEngine();
  try {
    return await withDeadline(START_MS, 'the Docker engine to answer', options.signal, async (signal) => {
      for (;;) {
        const status = await engineStatus({ signal });
        if (status.state === 'answering') return status;
        // Another set-up may have started one at the same moment; then ours has ended and the other one will answer.
        if (commandLine(pid) === undefined && processesNamed('dockerd').length === 0) {
          throw new InitlessError('ENGINE_DOWN', 'the Docker engine ended as soon as it was started');
        }
        await sleep(100, signal);
      }
    });
  } catch (error) {
    options.signal?.throwIfAborted();
    throw new InitlessError('ENGINE_DOWN', error instanceof Error ? error.message : String(error), {
      subject: LOG_FILE,
      outputTail: logTail(),
      nextStep: `see ${LOG_FILE}; it needs root, iptables and mounted cgroups`,
      cause: error,
    });
  }
}

/** An engine that we did not start may still be on its way up. */
async function waitForOther(pid: number, options: MachineOptions): Promise<EngineStatus> {
  options.progress?.(`a dockerd runs (process ${pid}); waiting for it to answer on ${SOCKET}`);
  for (const end = Date.now() + OTHER_START_MS; Date.now() < end; ) {
    const status = await engineStatus(options);
    if (status.state === 'answering') return status;
    await sleep(200, options.signal);
  }
  throw new InitlessError('ENGINE_DOWN', `a dockerd runs (process ${pid}) and does not answer on ${SOCKET}`, {
    subject: SOCKET,
    nextStep: `let it listen on unix://${SOCKET}, or stop it so that one can be started`,
  });
}

/** Starts dockerd in a session of its own and gives its process id. */
async function startEngine(): Promise<number> {
  mkdirSync(ENGINE_STATE_DIR, { recursive: true, mode: 0o700 });
  // No dockerd runs here (looked at above), so these two are left from a crash.
  rmSync(PID_FILE, { force: true });
  const containerd = readPidFile(CONTAINERD_PID_FILE);
  if (containerd !== undefined && !processesNamed('containerd').includes(containerd)) rmSync(CONTAINERD_PID_FILE);
  if (statSync(LOG_FILE, { throwIfNoEntry: false })) renameSync(LOG_FILE, `${LOG_FILE}.1`);

  const log = openSync(LOG_FILE, 'a', 0o600);
  try {
    const child = spawn('dockerd', ['--pidfile', PID_FILE, '--log-level', 'warn'], {
      detached: true,
      cwd: '/',
      stdio: ['ignore', log, log],
      env: withAdminPath(engineEnvironment()),
    });
    return await new Promise<number>((resolve, reject) => {
      child.once('spawn', () => {
        child.unref();
        resolve(child.pid!);
      });
      child.once('error', reject);
    });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    throw new InitlessError('SETUP_FAILED', 'dockerd, the Docker engine, is not installed', {
      nextStep: "run 'npm run setup', which installs the package docker.io",
      cause: error,
    });
  } finally {
    closeSync(log);
  }
}

/** What an engine needs of our environment; the rest, which may hold secrets, is none of its business. */
function engineEnvironment(): NodeJS.ProcessEnv {
  const wanted = /^(PATH|HOME|LANG|TMPDIR|DOCKER_RAMDISK|SSL_CERT_(FILE|DIR)|(http|https|no)_proxy)$/i;
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => wanted.test(name)));
}

function logTail(): string[] {
  try {
    return readFileSync(LOG_FILE, 'utf8').trimEnd().split('\n').slice(-15);
  } catch (error) {
    return [`${LOG_FILE} cannot be read: ${error instanceof Error ? error.message : String(error)}`];
  }
}

/**
 * Stops the engine if {@link engineUp} started it and no container runs on it any more.
 * Throws DEADLINE when it does not end in time.
 */
export async function engineDown(options: MachineOptions = {}): Promise<{ stopped: boolean; reason: string }> {
  if (ourEngine() === undefined) return NOT_OURS;
  // A host of another project may be on its way up: while its image is made, no container shows it.
  return withLock('hosts', options, () => stopUnlessUsed(options));
}

const NOT_OURS = { stopped: false, reason: 'the engine was not started by us' };

async function stopUnlessUsed(options: MachineOptions): Promise<{ stopped: boolean; reason: string }> {
  const pid = ourEngine();
  if (pid === undefined) return NOT_OURS;
  const status = await engineStatus(options);
  if (status.state === 'answering') {
    const running = await withDeadline(PING_MS, "the engine's list of containers", options.signal, () =>
      engineClient().listContainers(),
    );
    if (running.length > 0) {
      const names = running.map((container) => container.Names[0]?.replace(/^\//, '') ?? container.Id);
      const ours = running.every((container) => LABELS.project in container.Labels);
      return {
        stopped: false,
        reason: `${ours ? 'hosts of another project' : 'other containers'} still run on it: ${names.join(', ')}`,
      };
    }
  }
  options.progress?.('stopping the Docker engine');
  process.kill(pid, 'SIGTERM');
  await withDeadline(STOP_MS, `dockerd (process ${pid}) to end`, options.signal, async (signal) => {
    while (ourEngine() !== undefined) await sleep(100, signal);
  });
  rmSync(PID_FILE, { force: true });
  removeCgroupIfEmpty('/docker');
  return { stopped: true, reason: '' };
}
