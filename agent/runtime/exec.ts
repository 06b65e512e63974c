import { spawn } from 'node:child_process';
import { InitlessError } from '../../proto/rpc/errors.js';

/** What a program that ended said. */
export interface ExecResult {
  stdout: string;
  stderr: string;
}

/** How a program is run. */
export interface ExecOptions {
  /** Bound in milliseconds; the program is then killed and DEADLINE thrown. Default 30,000. */
  timeoutMs?: number;
  /** Written to its standard input. */
  input?: string;
  /** What it is called in messages. Default: the program and its first arguments. */
  label?: string;
  /** Added to the environment. */
  env?: Record<string, string>;
  /** Working directory. */
  cwd?: string;
  /** Kills it when it aborts. */
  signal?: AbortSignal;
  /** What fd 1 and fd 2 are; file descriptors for a program whose children inherit them. Default: both are read. */
  output?: { stdout: number; stderr: number };
  /** Its children are killed with it: for scripts, of which nothing may go on once they were stopped. Default: false. */
  group?: boolean;
}

/** {@link run}, or what stands in for it. */
export type Run = (program: string, args: readonly string[], options?: ExecOptions) => Promise<ExecResult>;

/** A program's exit that was not 0; `outputTail` of the error that is made of it holds its last lines. */
export class ExecError extends InitlessError {
  readonly exitCode: number | null;

  constructor(label: string, exitCode: number | null, output: string) {
    const tail = lastLines(output, 20);
    super(
      saysDiskFull(output) ? 'DISK_FULL' : 'INTERNAL',
      `${label} ended with ${exitCode}: ${tail.at(-1) ?? 'no output'}`,
      {
        subject: label,
        outputTail: tail,
      },
    );
    this.exitCode = exitCode;
  }
}

/** Whether a program's output says that there was no room on a disk, in the C library's words. */
export function saysDiskFull(output: string): boolean {
  return output.includes('No space left on device');
}

/** The last `count` non-empty lines of `text`. */
export function lastLines(text: string, count: number): string[] {
  return text
    .split('\n')
    .map((line) => line.trimEnd())
    .filter((line) => line !== '')
    .slice(-count);
}

/** Output kept of one program; what is beyond is dropped, the program goes on. */
const MAX_OUTPUT = 4 * 1024 * 1024;

/** Runs a program to its end. Errors: {@link ExecError}, DEADLINE, CANCELLED, or INTERNAL when it cannot be started. */
export function run(program: string, args: readonly string[], options: ExecOptions = {}): Promise<ExecResult> {
  const {
    timeoutMs = 30_000,
    label = `${program} ${args.slice(0, 3).join(' ')}`,
    input,
    env,
    cwd,
    signal,
    output,
    group = false,
  } = options;
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(signal.reason);
      return;
    }
    const child = spawn(program, args, {
      cwd,
      env: env ? { ...process.env, ...env } : process.env,
      detached: group,
      stdio: [input === undefined ? 'ignore' : 'pipe', output?.stdout ?? 'pipe', output?.stderr ?? 'pipe'],
    });
    let stdout = '';
    let stderr = '';
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      if (stdout.length < MAX_OUTPUT) stdout += text;
    });
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      if (stderr.length < MAX_OUTPUT) stderr += text;
    });
    let ended: unknown;
    const stop = (reason: unknown) => {
      ended ??= reason;
      if (group && child.pid !== undefined) kill(-child.pid);
      else child.kill('SIGKILL');
    };
    const timer = setTimeout(() => {
      stop(new InitlessError('DEADLINE', `${label} did not end within ${timeoutMs} ms`));
    }, timeoutMs);
    const onAbort = () => stop(signal?.reason);
    signal?.addEventListener('abort', onAbort, { once: true });
    const settle = () => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
    };
    child.on('error', (cause) => {
      settle();
      reject(new InitlessError('INTERNAL', `cannot start ${label}: ${cause.message}`, { subject: program, cause }));
    });
    child.on('close', (code) => {
      settle();
      if (ended) reject(ended);
      else if (code === 0) resolve({ stdout, stderr });
      else reject(new ExecError(label, code, stderr || stdout));
    });
    if (input !== undefined) {
      // A program that ends without reading its input is judged by its exit code.
      child.stdin?.on('error', () => {});
      child.stdin?.end(input);
    }
  });
}

/** Sends SIGKILL to a process, or with a negative number to a group. One that has ended in between is no error. */
export function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}
