import { readdir, readFile } from 'node:fs/promises';
import type { KernelBytes } from './compare-process.js';
import { readThreads, type ThreadStack } from './images.js';
import { namespaceNumbers, unlessGone } from './kernel-view.js';

/** More than several frames have: the widest has 11 kB of registers in it. */
const MAX_FRAMES = 64n * 1024n;

/**
 * Where the kernel has put what a signal's handler returns to, in processes that were stopped before their first
 * instruction: a timer that expires during the restore sends one before the stop takes hold.
 * @param hosts number of each process on this host, by its number in the dump.
 * Errors: CHECKPOINT_DAMAGED, those of reading /proc.
 */
export async function signalFrames(dump: string, hosts: ReadonlyMap<number, number>): Promise<KernelBytes[]> {
  const frames: KernelBytes[] = [];
  const threads = new Map((await readThreads(dump)).map((thread) => [`${thread.pid} ${thread.tid}`, thread]));
  for (const [pid, host] of hosts) {
    for (const task of (await unlessGone(readdir(`/proc/${host}/task`))) ?? []) {
      const dir = `/proc/${host}/task/${task}`;
      const [status, call] = await Promise.all([
        unlessGone(readFile(`${dir}/status`, 'utf8')),
        unlessGone(readFile(`${dir}/syscall`, 'utf8')),
      ]);
      const thread = threads.get(`${pid} ${namespaceNumbers(status ?? '').at(-1)}`);
      const sp = stackPointer(call ?? '');
      const frame = thread && sp !== undefined && frameOf(thread, sp);
      if (frame) frames.push(frame);
    }
  }
  return frames;
}

/** The stack pointer in the text of /proc/PID/syscall: the last but one. Undefined where it runs. Pure. */
export function stackPointer(text: string): bigint | undefined {
  const sp = text.trim().split(' ').at(-2);
  return sp?.startsWith('0x') ? BigInt(sp) : undefined;
}

/**
 * The frames of signals that a thread has had since its dump; undefined where there are none. They lie from its stack pointer
 * up to where that was at the dump, or to the end of its stack for handlers. Pure.
 */
export function frameOf({ pid, sp, redZone, alternate }: ThreadStack, now: bigint): KernelBytes | undefined {
  if (now === sp) return undefined;
  const isOn = (stack: { start: bigint; end: bigint }, at: bigint) => stack.start <= at && at < stack.end;
  const moved = alternate !== undefined && isOn(alternate, now) && !isOn(alternate, sp);
  const end = moved ? alternate.end : sp - BigInt(redZone);
  if (now >= end || end - now > MAX_FRAMES) return undefined;
  return { pid, address: now, length: Number(end - now) };
}
