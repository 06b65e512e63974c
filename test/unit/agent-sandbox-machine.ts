import { ExecError, type ExecOptions, type ExecResult } from '../../agent/runtime/exec.js';
import { KernelNetns } from '../../agent/runtime/netns.js';
import { outerAddress, sandboxIndex, sandboxName } from '../../agent/runtime/sandbox.js';

/** A command that has been given and has not ended. */
interface Running {
  what: string;
  /** Ends it: as it should, or failing before or after it has done its work. */
  end: (how?: 'well' | 'fails' | 'fails late') => void;
}

/** What a command is, in a word and the number of the sandbox that it is about. */
function kindOf(program: string, args: readonly string[], options: ExecOptions): string {
  const { label = '', input = '' } = options;
  if (program === 'sh' && label.startsWith('making')) return `make ${sandboxIndex(label.split(' ').at(-1) ?? '')}`;
  if (program === 'sh' && label.startsWith('removing')) return `destroy ${sandboxIndex(label.split(' ').at(-1) ?? '')}`;
  if (program === 'nsenter') return `look ${sandboxIndex(label.split(' ').at(-1) ?? '')}`;
  if (program === 'ip' && args[1] === 'pids') return `pids ${sandboxIndex(args[2] ?? '')}`;
  if (program === 'conntrack') return `forget ${args.at(-1)}`;
  if (input.includes('table ip initless')) return 'rules';
  return `bind ${sandboxIndex(label.split(' ').at(-1) ?? '')}`;
}

/**
 * A host's network as the commands given to it leave it: namespaces, leases, and what tenants left behind. Commands end
 * by themselves, or, with `byHand`, one by one when a test says so; an aborted one is killed half-way.
 */
export class Machine {
  readonly namespaces = new Set<number>();
  /** Where each leased port leads: "ADDRESS . PORT". */
  readonly leases = new Map<number, string>();
  /** Sandboxes that a tenant has been in, with what he left; an empty text is nothing. */
  readonly left = new Map<number, string>();
  /** Outer addresses that the connection tracking knows. */
  readonly tracked = new Set<string>();
  readonly marks = new Set<number>();
  readonly done: string[] = [];
  running: Running[] = [];
  byHand = false;
  /** Which commands fail, by what they are; told for each. */
  fails: (what: string) => 'fails' | 'fails late' | undefined = () => undefined;
  /** What must not have happened, and did. */
  readonly faults: string[] = [];
  /** Sandboxes that have a tenant. */
  readonly held = new Set<number>();

  readonly run = (program: string, args: readonly string[], options: ExecOptions = {}): Promise<ExecResult> => {
    const what = kindOf(program, args, options);
    const { signal } = options;
    return new Promise((resolve, reject) => {
      if (signal?.aborted) {
        reject(signal.reason);
        return;
      }
      let ended = false;
      const end = (how: 'well' | 'fails' | 'fails late' = 'well') => {
        if (ended) return;
        ended = true;
        this.running = this.running.filter((other) => other !== running);
        signal?.removeEventListener('abort', onAbort);
        this.done.push(what);
        try {
          if (how === 'fails') throw new ExecError(what, 1, `${what} failed`);
          const stdout = this.#do(what, options.input ?? args.at(-1) ?? '');
          if (how === 'fails late') throw new ExecError(what, 1, `${what} failed late`);
          resolve({ stdout, stderr: '' });
        } catch (error) {
          reject(error);
        }
      };
      const onAbort = () => {
        if (ended) return;
        ended = true;
        this.running = this.running.filter((other) => other !== running);
        // Killed when its work was done, of all moments.
        this.#do(what, options.input ?? args.at(-1) ?? '');
        reject(signal?.reason);
      };
      const running = { what, end };
      this.running.push(running);
      signal?.addEventListener('abort', onAbort, { once: true });
      if (!this.byHand) queueMicrotask(() => end(this.fails(what)));
    });
  };

  #do(what: string, text: string): string {
    const [kind = '', about = ''] = what.split(' ');
    const index = Number(about);
    if (kind === 'rules') {
      this.leases.clear();
      for (const [, port, to] of text.matchAll(/(\d+) : (10\.200\.\d+\.\d+ \. \d+)/g)) {
        this.leases.set(Number(port), to as string);
      }
    }
    if (kind === 'make') {
      if (this.namespaces.has(index)) throw new ExecError(what, 1, 'File exists');
      this.namespaces.add(index);
      this.left.set(index, '');
    }
    if (kind === 'bind') this.#bind(text);
    if (kind === 'pids' || kind === 'look') {
      if (!this.namespaces.has(index)) throw new ExecError(what, 1, 'No such file or directory');
    }
    if (kind === 'look') return `link eth0\n${outerAddress(index)}\n${this.left.get(index)}`;
    if (kind === 'forget' && !this.tracked.delete(about)) {
      throw new ExecError(what, 1, 'conntrack v1.4.8 (conntrack-tools): 0 flow entries have been deleted.');
    }
    if (kind === 'destroy') {
      if (this.held.has(index)) this.faults.push(`sandbox ${index} was removed while it had a tenant`);
      this.namespaces.delete(index);
      const port = /delete element ip initless leases \{ (\d+) \}/.exec(text)?.[1];
      if (port !== undefined) this.leases.delete(Number(port));
    }
    return '';
  }

  #bind(text: string): void {
    const removed = Number(/delete element ip initless leases \{ (\d+) \}/.exec(text)?.[1] ?? Number.NaN);
    const [, added, to = ''] = /add element ip initless leases \{ (\d+) : ([^}]+) \}/.exec(text) ?? [];
    if (!Number.isNaN(removed) && !this.leases.has(removed)) throw new ExecError('nft', 1, 'No such file or directory');
    if (removed !== Number(added) && this.leases.has(Number(added))) throw new ExecError('nft', 1, 'File exists');
    this.leases.set(Number(added), to);
  }
}

/** The sandboxes of a machine. */
export class MachineNetns extends KernelNetns {
  readonly #machine: Machine;

  constructor(machine: Machine) {
    super(machine.run);
    this.#machine = machine;
  }

  override present(): number[] {
    return [...this.#machine.namespaces];
  }

  override mark(index: number, spare: boolean): void {
    if (spare) this.#machine.marks.add(index);
    else this.#machine.marks.delete(index);
  }

  override clearMarks(): void {
    this.#machine.marks.clear();
  }
}

/** Lets everything that needs no more than its turn go on. */
export async function turns(): Promise<void> {
  for (let i = 0; i < 3; i++) await new Promise<void>((resolve) => setImmediate(resolve));
}

/** Names of sandboxes. */
export function names(indexes: Iterable<number>): string[] {
  return [...indexes].sort((a, b) => a - b).map(sandboxName);
}
