import { Writable } from 'node:stream';
import { runCli } from '../../control-plane/cli/program.js';
import { InitlessError } from '../../proto/rpc/errors.js';

/** What one run of the program left behind. */
export interface CliResult {
  code: number;
  stdout: string;
  stderr: string;
}

/** A run of the program that is under way. */
export interface CliRun {
  result: Promise<CliResult>;
  /** What stderr holds so far. */
  stderr(): string;
  /** What stdout holds so far. */
  stdout(): string;
  /** Presses Ctrl-C. */
  interrupt(): void;
}

class Captured extends Writable {
  text = '';

  override _write(chunk: Buffer | string, _encoding: string, done: () => void): void {
    this.text += chunk.toString();
    done();
  }
}

/** Starts the program in this process with captured output, against the control plane at `server`. */
export function startCli(server: string, ...args: string[]): CliRun {
  const stdout = new Captured();
  const stderr = new Captured();
  const controller = new AbortController();
  const result = runCli(args, {
    stdout,
    stderr,
    env: { INITLESS_SERVER: server },
    cwd: process.cwd(),
    signal: controller.signal,
  }).then((code) => ({ code, stdout: stdout.text, stderr: stderr.text }));
  return {
    result,
    stderr: () => stderr.text,
    stdout: () => stdout.text,
    interrupt: () => controller.abort(new InitlessError('CANCELLED', 'ended by SIGINT')),
  };
}

/** Runs the program to its end. */
export function cli(server: string, ...args: string[]): Promise<CliResult> {
  return startCli(server, ...args).result;
}
