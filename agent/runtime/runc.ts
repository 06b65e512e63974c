import { spawn } from 'node:child_process';
import { closeSync, existsSync, openSync } from 'node:fs';
import { mkdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import { sleep } from '../../proto/rpc/deadline.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { criuErrors } from './criu.js';
import { ExecError, run, saysDiskFull } from './exec.js';
import { readIfThere } from './files.js';
import type { InstanceFolder } from './rootfs.js';

/** runc's own state; on a tmpfs, so that it goes with the host's boot. */
const STATE = '/run/initless/runc';

/** Where a process's output goes: files opened for appending, never pipes that this agent reads (they would break with it). */
export interface OutputFiles {
  stdout: string;
  stderr: string;
}

/** How a process that was attached to ended. */
export interface Ended {
  /** Its exit code (128 + signal when one killed it), or null when runc could not be run. */
  code: number | null;
  /** runc's own errors; the start itself failed when there are any. */
  errors: string[];
}

/** A process whose parent we are. */
export interface Attached {
  /** Settles when it ends; never rejects. */
  ended: Promise<Ended>;
  /** Its process id, as soon as it has one. */
  pid(signal?: AbortSignal): Promise<number>;
}

/** runc on the instances of this host: it starts and dumps them. Restored ones it knows nothing of; see restore.ts. */
export class Runc {
  async #run(
    id: string,
    folder: InstanceFolder,
    args: string[],
    output: OutputFiles | undefined,
    env: Record<string, string>,
    timeoutMs: number,
    signal?: AbortSignal,
  ): Promise<void> {
    const log = path.join(folder.work, 'runc.log');
    const descriptors = output
      ? { stdout: openSync(output.stdout, 'a'), stderr: openSync(output.stderr, 'a') }
      : undefined;
    try {
      await run('runc', ['--root', STATE, '--log', log, '--log-format', 'json', ...args, id], {
        output: descriptors,
        env,
        timeoutMs,
        signal,
      });
    } catch (error) {
      if (!(error instanceof ExecError)) throw error;
      const said = await runcErrors(log);
      throw new InitlessError('INTERNAL', said.at(-1) ?? error.message, {
        subject: id,
        outputTail: said.length > 0 ? said : error.outputTail,
        cause: error,
      });
    } finally {
      if (descriptors) {
        closeSync(descriptors.stdout);
        closeSync(descriptors.stderr);
      }
    }
  }

  /**
   * Starts a bundle's process and stays its parent, so that its output arrives as it is printed and its exit code is
   * known. What is to be dumped is started so: CRIU can only give a restored process new output where the old one was
   * an anonymous pipe, and those are what runc makes for it here.
   */
  attach(id: string, folder: InstanceFolder, onOutput: (stream: 'stdout' | 'stderr', text: string) => void): Attached {
    const pidFile = path.join(folder.work, 'pid');
    const log = path.join(folder.work, 'runc.log');
    const args = ['--root', STATE, '--log', log, '--log-format', 'json'];
    args.push('run', '--bundle', folder.bundle, '--pid-file', pidFile, id);
    const child = spawn('runc', args, { stdio: ['ignore', 'pipe', 'pipe'] });
    child.stdout.setEncoding('utf8').on('data', (text: string) => onOutput('stdout', text));
    child.stderr.setEncoding('utf8').on('data', (text: string) => onOutput('stderr', text));
    const ended = new Promise<Ended>((resolve) => {
      child.once('error', (error) => resolve({ code: null, errors: [error.message] }));
      child.once('close', async (code) => resolve({ code, errors: await runcErrors(log) }));
    });
    const pid = async (signal?: AbortSignal): Promise<number> => {
      for (;;) {
        const text = await readIfThere(pidFile);
        if (text !== '') return Number(text);
        await sleep(2, signal);
      }
    };
    return { ended, pid };
  }

  /** Starts a bundle's process, detached. Gives its process id. Errors: INTERNAL with runc's own words. */
  async start(id: string, folder: InstanceFolder, output: OutputFiles, signal?: AbortSignal): Promise<number> {
    const pidFile = path.join(folder.work, 'pid');
    await this.#run(
      id,
      folder,
      ['run', '--detach', '--bundle', folder.bundle, '--pid-file', pidFile],
      output,
      {},
      30_000,
      signal,
    );
    return Number(await readFile(pidFile, 'utf8'));
  }

  /**
   * Dumps a running process into `images`; it ends with that.
   * Errors: DUMP_FAILED with CRIU's own reason from its log, DISK_FULL.
   */
  async checkpoint(
    id: string,
    folder: InstanceFolder,
    images: string,
    preload: string | undefined,
    timeoutMs: number,
    signal?: AbortSignal,
  ): Promise<void> {
    const args = ['checkpoint', '--image-path', images, '--work-path', folder.work, '--manage-cgroups-mode', 'ignore'];
    try {
      await this.#run(id, folder, args, undefined, preload ? { LD_PRELOAD: preload } : {}, timeoutMs, signal);
    } catch (error) {
      if (signal?.aborted) throw error;
      const said = await criuErrors(path.join(folder.work, 'dump.log'));
      const cause = error as InitlessError;
      if (saysDiskFull(said.join())) {
        throw new InitlessError('DISK_FULL', `no space left on the disk for the checkpoint of ${id}`, {
          subject: images,
          nextStep: 'free some space on the disk of checkpoint_dir, then apply the service again',
          outputTail: said,
          cause,
        });
      }
      throw new InitlessError('DUMP_FAILED', `CRIU cannot checkpoint the process: ${said[0] ?? cause.message}`, {
        subject: id,
        nextStep:
          'the service is served by cold starts; see README, "What can be checkpointed", for what CRIU refuses and the usual ways out',
        outputTail: said.length > 0 ? said : cause.outputTail,
        cause,
      });
    }
  }

  /** Kills a container, frozen or not, and forgets it. One that runc does not know, as those restored, is no error. */
  async remove(id: string): Promise<void> {
    if (!existsSync(path.join(STATE, id))) return;
    try {
      await run('runc', ['--root', STATE, 'delete', '--force', id], { timeoutMs: 15_000 });
    } catch (error) {
      if (!(error instanceof ExecError) || !/does not exist/.test(error.message)) throw error;
    }
  }

  /** Ids of the containers that runc knows. */
  async list(): Promise<string[]> {
    await mkdir(STATE, { recursive: true, mode: 0o700 });
    const { stdout } = await run('runc', ['--root', STATE, 'list', '--quiet']);
    return stdout.split('\n').filter((line) => line !== '');
  }
}

/** The messages of runc's JSON log that are errors, oldest first. */
async function runcErrors(file: string): Promise<string[]> {
  const text = await readIfThere(file);
  const messages: string[] = [];
  for (const line of text.split('\n')) {
    if (!line.startsWith('{')) continue;
    const entry = JSON.parse(line) as { level?: string; msg?: string };
    if (entry.level === 'error' && entry.msg) messages.push(entry.msg);
  }
  return messages;
}
