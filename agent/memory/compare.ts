import { InitlessError } from '../../proto/rpc/errors.js';
import { type Comparison, type KernelBytes, MAX_DIFFERENCES, ProcessComparer } from './compare-process.js';
import { hex } from './image-file.js';
import { PAGE, type ProcessMemory } from './model.js';

/** What is compared with what. */
export interface RestoredTree {
  /** What CRIU dumped, before any of it was rewritten. */
  dumped: readonly ProcessMemory[];
  /** Number of each process on this host, by its number in the dump. All must have been stopped before their first instruction. */
  hosts: ReadonlyMap<number, number>;
  /** Each thread's registered rseq(2) area: the restore registers it anew, and the kernel writes CPU numbers to it. */
  ignored: readonly KernelBytes[];
}

/**
 * Compares every page of restored, stopped processes with what was dumped: the dump's pages byte by byte, and where the
 * dump has none of an area without a file, that zeros are read. What of a private mapping of a file the dump does not hold
 * comes from that file; of it is checked that it is still mapped from the same place in a file.
 *
 * Reading through /proc/PID/mem makes the pages that are read part of the process, as touching them would: those that an
 * instance touches by itself have to be found out with another one.
 *
 * Errors: CHECKPOINT_DAMAGED where the dump cannot be read, INSTANCE_LOST where a process ended, the signal's reason.
 */
export async function compareMemory(tree: RestoredTree, signal: AbortSignal): Promise<Comparison> {
  const began = performance.now();
  const result: Comparison = { pages: 0, zeroPages: 0, bytes: 0, ms: 0, differences: [], excluded: [] };
  for (const memory of tree.dumped) {
    const host = tree.hosts.get(memory.pid);
    if (host === undefined) {
      throw new InitlessError('INSTANCE_LOST', `process ${memory.pid} of the dump is not among those restored`);
    }
    const ignored = tree.ignored.filter(({ pid }) => pid === memory.pid);
    const comparer = new ProcessComparer(memory, host, ignored, result, signal);
    try {
      await comparer.compare();
    } catch (error) {
      if (!['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
      throw new InitlessError('INSTANCE_LOST', `process ${memory.pid} ended while it was compared with its dump`, {
        cause: error,
      });
    }
    if (result.differences.length >= MAX_DIFFERENCES) break;
  }
  result.bytes = (result.pages + result.zeroPages) * PAGE;
  result.ms = Math.round(performance.now() - began);
  return result;
}

/** The error of a restore whose memory is not what was dumped; undefined where there is no difference. */
export function differenceError({ differences }: Comparison, subject: string): InitlessError | undefined {
  const [first] = differences;
  if (first === undefined) return undefined;
  const lines = differences.map(
    ({ pid, address, area, expectedHead, foundHead }) =>
      `process ${pid} at ${hex(address)}, ${area}: dumped ${expectedHead}, restored ${foundHead}`,
  );
  const count = differences.length < MAX_DIFFERENCES ? `${differences.length}` : `${MAX_DIFFERENCES} or more`;
  return new InitlessError(
    'RESTORE_FAILED',
    `${subject} was not restored as it was dumped (${count} differences): ${lines[0]}`,
    { subject, outputTail: lines, nextStep: "set 'memory: copied' for this service, and report this" },
  );
}
