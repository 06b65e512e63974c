import { spawn } from 'node:child_process';
import { deadline } from '../../../proto/rpc/deadline.js';
import { type ErrorCode, InitlessError } from '../../../proto/rpc/errors.js';

/** How {@link run} runs a command. */
export interface RunOptions {
  /** Bound in milliseconds; then the command is killed. */
  timeoutMs: number;
  /** Code of the error for a command that is missing or fails. */
  errorCode: ErrorCode;
  /** What errors call it; otherwise the command with its first arguments. */
  label?: string;
  signal?: AbortSignal;
  env?: NodeJS.ProcessEnv;
  /** Told each line of the command's standard error as it comes. */
  onStderrLine?: (line: string) => void;
}

const MAX_STDOUT_LENGTH = 8 * 1024 * 1024;
const TAIL_LINES = 20;
const PIPE_GRACE_MS = 2_000;

/** What a program started with sudo or by cron often misses: administrators' programs are in PATH. */
export function withAdminPath(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return { ...env, PATH: `${env.PATH ?? '/usr/bin:/bin'}:/usr/local/sbin:/usr/sbin:/sbin` };
}

/**
 * Runs a command to its end and gives its standard output (its first 8 MiB). Throws `errorCode` with the last lines of
 * its standard error when it cannot be started or fails, DEADLINE when it takes too long; it is killed then, as on abort.
 */
export async function run(command: string, args: readonly string[], options: RunOptions): Promise<string> {
  const what = options.label ?? [command, ...args.slice(0, 2)].join(' ');
  const { signal, clear } = deadline(options.timeoutMs, `'${what}' to end`, options.signal);
  try {
    signal.throwIfAborted();
    return await runUntil(signal, what, command, args, options);
  } finally {
    clear();
  }
}

async function runUntil(
  signal: AbortSignal,
  what: string,
  command: string,
  args: readonly string[],
  options: RunOptions,
): Promise<string> {
  const child = spawn(command, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: withAdminPath(options.env ?? process.env),
  });
  const kill = () => {
    child.kill('SIGKILL');
    // A process that it left behind may hold the pipes open: do not wait for that one.
    setTimeout(() => {
      child.stdout.destroy();
      child.stderr.destroy();
    }, PIPE_GRACE_MS).unref();
  };
  signal.addEventListener('abort', kill, { once: true });

  let stdout = '';
  let partial = '';
  const tail: string[] = [];
  const takeLine = (line: string) => {
    if (line.trim() === '') return;
    tail.push(line);
    if (tail.length > TAIL_LINES) tail.shift();
    options.onStderrLine?.(line);
  };
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    if (stdout.length < MAX_STDOUT_LENGTH) stdout += chunk;
  });
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    const lines = (partial + chunk).split('\n');
    partial = lines.pop() ?? '';
    for (const line of lines) takeLine(line);
  });

  try {
    // The end of the process is waited for also after it was killed, so that nothing it used is pulled from under it.
    const end = await new Promise<{ code: number | null; death: NodeJS.Signals | null }>((resolve, reject) => {
      child.once('error', reject);
      child.once('close', (code, death) => resolve({ code, death }));
    });
    signal.throwIfAborted();
    takeLine(partial);
    if (end.code === 0) return stdout;
    const how = end.death ? `was ended by ${end.death}` : `failed with code ${end.code}`;
    throw new InitlessError(options.errorCode, `'${what}' ${how}`, { subject: command, outputTail: tail });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    throw new InitlessError(options.errorCode, `'${command}' is not installed`, {
      subject: command,
      nextStep: "run 'npm run setup'",
      cause: error,
    });
  } finally {
    signal.removeEventListener('abort', kill);
  }
}
