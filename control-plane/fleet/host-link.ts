import type {
  Command,
  CommandResult,
  ConnectResponse,
  HostSettings,
  LogPiece,
} from '../../proto/gen/initless/v1/fleet.js';
import { errorOf, InitlessError } from '../../proto/rpc/errors.js';
import { PushStream } from '../../proto/rpc/push-stream.js';
import { canonicalJson } from '../core/canonical.js';

/** What a command does. */
export type Action = NonNullable<Command['action']>;
/** How a command ended, other than in an error. */
export type Outcome = Exclude<NonNullable<CommandResult['outcome']>, { $case: 'problem' }>;

/** How a command is to be run. */
export interface CommandOptions {
  /** What is waited for, for messages: "waking flask on host1". */
  what: string;
  /** Bound, milliseconds; the agent keeps it, and we a little later. */
  timeoutMs: number;
  /** Stops it. */
  signal?: AbortSignal;
  /** Told each piece of a log that it asked for. */
  onLog?: (piece: LogPiece) => void;
}

/** An agent that does not keep a command's bound is not waited for much longer. */
const SLACK_MS = 5_000;
/** How long a command that was told to stop may take to do so. */
const CANCEL_MS = 30_000;

interface Pending {
  resolve: (outcome: Outcome) => void;
  reject: (error: unknown) => void;
  onLog: ((piece: LogPiece) => void) | undefined;
}

/** One connection to an agent: what is sent over it, and the commands that have not ended. */
export class HostLink {
  /** When it last said something, milliseconds. */
  heardAt: number;
  readonly name: string;
  /** What goes to the agent. */
  readonly outgoing: PushStream<ConnectResponse>;
  readonly #prefix: string;
  #count = 0;
  readonly #pending = new Map<string, Pending>();
  #ended: InitlessError | undefined;
  /** The settings that the agent was last told. */
  #told = '';

  /** @param prefix begins the ids of its commands; no two connections have the same. */
  constructor(name: string, prefix: string, now: number) {
    this.name = name;
    this.heardAt = now;
    this.#prefix = prefix;
    this.outgoing = new PushStream(`commands for ${name}`);
  }

  /** Why it ended; undefined while it lasts. */
  get ended(): InitlessError | undefined {
    return this.#ended;
  }

  /** Tells the agent that it was taken in. */
  welcome(settings: HostSettings): void {
    this.#told = canonicalJson(settings);
    this.#send({ $case: 'welcome', value: { settings } });
  }

  /** Answers a sign of life. */
  beat(): void {
    this.#send({ $case: 'heartbeat', value: {} });
  }

  /** Tells the agent settings that differ from those it was last told. */
  tellSettings(settings: HostSettings): void {
    const text = canonicalJson(settings);
    if (this.#ended !== undefined || text === this.#told) return;
    this.#told = text;
    this.#send({ $case: 'settings', value: settings });
  }

  /**
   * Has the agent do something, and waits for how it ends. Errors: what the agent says; DEADLINE and CANCELLED, with what
   * was pending; AGENT_DOWN when the connection is lost meanwhile.
   */
  async command(action: Action, options: CommandOptions): Promise<Outcome> {
    if (this.#ended !== undefined) throw this.#ended;
    if (options.signal?.aborted) throw cancelled(options.what);
    this.#count += 1;
    const id = `${this.#prefix}-${this.#count}`;
    const timers: NodeJS.Timeout[] = [];
    let stopListening = () => {};
    try {
      return await new Promise<Outcome>((resolve, reject) => {
        this.#pending.set(id, { resolve, reject, onLog: options.onLog });
        const late = (ms: number, error: InitlessError) => timers.push(setTimeout(() => reject(error), ms));
        const cancel = () => {
          this.#send({ $case: 'cancel', value: { id } });
          late(CANCEL_MS, cancelled(options.what));
        };
        late(
          options.timeoutMs + SLACK_MS,
          new InitlessError('DEADLINE', `gave up after ${options.timeoutMs} ms; pending was: ${options.what}`),
        );
        options.signal?.addEventListener('abort', cancel, { once: true });
        stopListening = () => options.signal?.removeEventListener('abort', cancel);
        this.#send({ $case: 'command', value: { id, timeoutMs: options.timeoutMs, action } });
      });
    } finally {
      stopListening();
      for (const timer of timers) clearTimeout(timer);
      this.#pending.delete(id);
    }
  }

  /** A command ended. What nobody waits for any more is dropped. */
  onResult(result: CommandResult): void {
    const pending = this.#pending.get(result.id);
    if (pending === undefined) return;
    const outcome = result.outcome;
    if (outcome === undefined) {
      pending.reject(new InitlessError('INTERNAL', `${this.name} ended a command without saying how`));
    } else if (outcome.$case === 'problem') pending.reject(errorOf(outcome.value));
    else pending.resolve(outcome);
  }

  /** A piece of a log that a command asked for. */
  onLog(piece: LogPiece): void {
    this.#pending.get(piece.commandId)?.onLog?.(piece);
  }

  /** The connection is over: every command ends with `error`. */
  end(error: InitlessError): void {
    if (this.#ended !== undefined) return;
    this.#ended = error;
    this.outgoing.end();
    for (const pending of this.#pending.values()) pending.reject(error);
    this.#pending.clear();
  }

  #send(message: NonNullable<ConnectResponse['message']>): void {
    try {
      this.outgoing.push({ message });
    } catch (cause) {
      this.end(new InitlessError('AGENT_DOWN', `the agent of ${this.name} does not read what it is sent`, { cause }));
    }
  }
}

function cancelled(what: string): InitlessError {
  return new InitlessError('CANCELLED', `stopped; pending was: ${what}`);
}
