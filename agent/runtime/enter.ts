import { type ChildProcess, spawn } from 'node:child_process';
import { sleep, withDeadline } from '../../proto/rpc/deadline.js';
import { ExecError } from './exec.js';

/** Takes steps, and may then become a program; see enter.c. */
const ENTER = '/usr/local/lib/initless/enter';
/** Spare ones: a restore takes two. */
const SPARES = 4;
/** Spares are started when none was taken for this long, milliseconds: a start stops this process for a while. */
const REFILL_MS = 200;
/** Bound on the end of one that was killed, milliseconds. */
const KILL_MS = 5_000;
/** Bound on steps that only make system calls, milliseconds. */
const STEPS_TIMEOUT_MS = 30_000;

/** A process that takes steps as it is told them. It ends by itself when this process does before it was told all. */
export class EnterProcess {
  // Its streams are not there where it could not be started.
  readonly #child: ChildProcess;
  readonly #ended: Promise<void>;

  constructor() {
    const child: ChildProcess = spawn(ENTER, ['rest'], { stdio: ['pipe', 'ignore', 'pipe'] });
    this.#child = child;
    let said = '';
    this.#ended = new Promise((resolve, reject) => {
      child.once('error', reject);
      child.once('close', (code) => (code === 0 ? resolve() : reject(new ExecError('enter', code, said))));
    });
    // There are none where it could not be started.
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      said += text;
    });
    // One that ends without reading its input is judged by its exit code.
    child.stdin?.on('error', () => {});
    // Awaited only once it is told the last steps.
    this.#ended.catch(() => {});
  }

  /** Whether it waits for steps still. */
  get waits(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null && this.#child.pid !== undefined;
  }

  /** Has it take steps now; others will follow. */
  begin(steps: readonly string[]): void {
    this.#child.stdin?.write(asInput([...steps, 'rest']));
  }

  /**
   * Has it take its last steps, and waits for its end, or that of the program that it became. `pending` names it.
   * Errors: {@link ExecError}, DEADLINE, the reason of `signal`; it is killed then.
   */
  async finish(steps: readonly string[], pending: string, timeoutMs: number, signal?: AbortSignal): Promise<void> {
    try {
      signal?.throwIfAborted();
      await withDeadline(timeoutMs, pending, signal, () => {
        this.#child.stdin?.end(asInput(steps));
        return this.#ended;
      });
    } catch (error) {
      // What it was doing must be over before anybody undoes it.
      await this.kill();
      throw error;
    }
  }

  /** Ends it; waits for that, but not for one that the kernel holds. */
  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await Promise.race([this.#ended.catch(() => {}), sleep(KILL_MS)]);
  }
}

function asInput(steps: readonly string[]): string {
  return steps.map((step) => `${step}\0`).join('');
}

const spares: EnterProcess[] = [];
let refill: NodeJS.Timeout | undefined;

/**
 * One that was started before, where there is one. Starting a process from this one takes 7 ms, in which it does nothing
 * else: the kernel copies the page tables of all its memory.
 */
export function takeEnterProcess(): EnterProcess {
  clearTimeout(refill);
  refill = setTimeout(startSpare, REFILL_MS);
  refill.unref();
  for (let spare = spares.shift(); spare !== undefined; spare = spares.shift()) if (spare.waits) return spare;
  return new EnterProcess();
}

/** One at a time, so that what comes in meanwhile waits for no more than one. */
function startSpare(): void {
  if (spares.length >= SPARES) return;
  try {
    spares.push(new EnterProcess());
  } catch {
    // Short of memory or descriptors: whoever needs one is told.
    return;
  }
  refill = setTimeout(startSpare, REFILL_MS / 4);
  refill.unref();
}

/** Takes steps in a process of their own, and waits until they are done. Errors: {@link ExecError}, DEADLINE, the reason of `signal`. */
export function takeSteps(steps: readonly string[], signal?: AbortSignal): Promise<void> {
  return takeEnterProcess().finish([...steps, 'done'], `the steps ${steps.join(' ')}`, STEPS_TIMEOUT_MS, signal);
}
