import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { readFile, rm, truncate, writeFile } from 'node:fs/promises';
import type { Logger } from 'pino';
import type { EngineStatus } from '../../proto/gen/initless/v1/types.js';
import { sleep } from '../../proto/rpc/deadline.js';
import { toInitlessError } from '../../proto/rpc/errors.js';
import type { DockerEngine } from './docker.js';
import { lastLines } from './exec.js';
import { readIfThere } from './files.js';

const LOG = '/var/log/dockerd.log';
const PID_FILE = '/run/docker.pid';
const CONTAINERD_PID_FILE = '/run/docker/containerd/containerd.pid';
const LOG_LIMIT = 16 * 1024 * 1024;

/**
 * Keeps the host's dockerd running: starts it, adopts one that an earlier agent started, starts it again when it ends,
 * with a growing pause, and says how it is.
 */
export class DockerDaemon {
  readonly #engine: DockerEngine;
  readonly #log: Logger;
  readonly #nameservers: readonly string[];
  #status: EngineStatus = { ready: false, version: '', restarts: 0, error: 'not started yet' };
  readonly #onChange: (status: EngineStatus) => void;

  constructor(
    engine: DockerEngine,
    nameservers: readonly string[],
    log: Logger,
    onChange: (status: EngineStatus) => void,
  ) {
    this.#engine = engine;
    this.#nameservers = nameservers;
    this.#log = log;
    this.#onChange = onChange;
  }

  /** How it is now. */
  get status(): EngineStatus {
    return this.#status;
  }

  /** Supervises until `signal` aborts. dockerd itself is left running then: a restarted agent adopts it. */
  async supervise(signal: AbortSignal): Promise<void> {
    let pause = 500;
    while (!signal.aborted) {
      const child = (await this.#alive()) ? undefined : await this.#start();
      const since = performance.now();
      let ended = false;
      child?.once('exit', () => {
        ended = true;
      });
      while (!signal.aborted && !ended) {
        await this.#probe();
        if (child === undefined && !this.#status.ready && !(await this.#alive())) break;
        await sleep(this.#status.ready ? 2_000 : 200, signal).catch(() => {});
      }
      if (signal.aborted) return;
      if (performance.now() - since > 60_000) pause = 500;
      this.#set({ ready: false, version: '', restarts: this.#status.restarts + 1, error: await this.#lastWords() });
      this.#log.error({ error: this.#status.error }, 'dockerd ended; starting it again');
      await sleep(pause, signal).catch(() => {});
      pause = Math.min(pause * 2, 30_000);
    }
  }

  async #probe(): Promise<void> {
    try {
      const version = await this.#engine.version();
      if (!this.#status.ready) this.#log.info({ version }, 'the Docker engine is ready');
      this.#set({ ready: true, version, restarts: this.#status.restarts, error: '' });
    } catch (error) {
      this.#set({ ...this.#status, ready: false, error: toInitlessError(error).message });
    }
  }

  #set(status: EngineStatus): void {
    const changed = status.ready !== this.#status.ready || status.restarts !== this.#status.restarts;
    this.#status = status;
    if (changed) this.#onChange(status);
  }

  /** Whether a dockerd that was started earlier in this boot of the host still runs. */
  async #alive(): Promise<boolean> {
    const pid = await pidIn(PID_FILE);
    return pid !== undefined && (await commandOf(pid)).startsWith('dockerd');
  }

  async #start(): Promise<ChildProcess> {
    // Pid files of an earlier boot of the host name processes that have nothing to do with Docker, and stop dockerd.
    for (const file of [PID_FILE, CONTAINERD_PID_FILE]) {
      const pid = await pidIn(file);
      if (pid !== undefined && !/dockerd|containerd/.test(await commandOf(pid))) await rm(file, { force: true });
    }
    // Docker sets the FORWARD policy to DROP only when it is the one to switch forwarding on.
    await writeFile('/proc/sys/net/ipv4/ip_forward', '1');
    await truncate(LOG).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw error;
    });
    const log = openSync(LOG, 'a');
    const args = ['--storage-driver', 'overlay2', '--bip', '10.199.0.1/24', '--log-opt', 'max-size=8m'];
    for (const server of this.#nameservers) args.push('--dns', server);
    const child = spawn('dockerd', args, { detached: true, stdio: ['ignore', log, log] });
    closeSync(log);
    child.on('error', (error) => this.#log.error({ error }, 'cannot start dockerd'));
    child.unref();
    this.#log.info({ pid: child.pid }, 'started dockerd');
    return child;
  }

  async #lastWords(): Promise<string> {
    try {
      return lastLines((await readFile(LOG, 'utf8')).slice(-LOG_LIMIT), 3).join('; ');
    } catch (error) {
      return `no log: ${(error as Error).message}`;
    }
  }
}

async function pidIn(file: string): Promise<number | undefined> {
  const pid = Number((await readIfThere(file)).trim());
  return Number.isInteger(pid) && pid > 0 ? pid : undefined;
}

async function commandOf(pid: number): Promise<string> {
  try {
    return (await readFile(`/proc/${pid}/comm`, 'utf8')).trim();
  } catch {
    // No such process.
    return '';
  }
}
