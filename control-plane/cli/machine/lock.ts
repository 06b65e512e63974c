import { spawn } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { deadline } from '../../../proto/rpc/deadline.js';
import { InitlessError } from '../../../proto/rpc/errors.js';
import { STATE_ROOT } from './names.js';
import type { MachineOptions } from './options.js';

/** Longer than the longest thing done under the lock: making base image and host image. */
const WAIT_MS = 40 * 60_000;
const NOTICE_MS = 2_000;

/**
 * Runs `work` while no other process of the machine runs under the same lock: two that make the same image would
 * remove each other's. flock(1) holds it, for as long as our end of its standard input is open: whatever ends this
 * process gives the lock back. Throws DEADLINE when it cannot be had, and what `work` throws.
 */
export async function withLock<T>(name: string, options: MachineOptions, work: () => Promise<T>): Promise<T> {
  const folder = join(STATE_ROOT, 'tmp');
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const path = join(folder, `${name}.lock`);
  const { signal, clear } = deadline(WAIT_MS, `the lock ${path}`, options.signal);
  const notice = setTimeout(() => options.progress?.('waiting for another initless command to finish'), NOTICE_MS);
  const holder = spawn('flock', [path, 'sh', '-c', 'echo held; exec cat'], { stdio: ['pipe', 'pipe', 'inherit'] });
  const ended = new Promise<void>((resolve) => holder.once('close', () => resolve()));
  // Writing to one that has ended is told by 'close' already.
  holder.stdin.on('error', () => {});
  const onAbort = () => holder.kill('SIGKILL');
  signal.addEventListener('abort', onAbort, { once: true });
  try {
    await new Promise<void>((resolve, reject) => {
      holder.once('error', reject);
      holder.stdout.once('data', () => resolve());
      holder.once('close', (code) => {
        reject(signal.reason ?? new InitlessError('INTERNAL', `flock ${path} ended with code ${code}`));
      });
    });
    clear();
    clearTimeout(notice);
    return await work();
  } finally {
    clear();
    clearTimeout(notice);
    signal.removeEventListener('abort', onAbort);
    holder.stdin.end();
    if (holder.pid !== undefined) await ended;
  }
}
