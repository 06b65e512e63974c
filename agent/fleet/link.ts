import { setMaxListeners } from 'node:events';
import { Readable } from 'node:stream';
import type { Logger } from 'pino';
import {
  type Command,
  type CommandResult,
  type ConnectRequest,
  type ConnectResponse,
  FleetServiceDefinition,
  type HostSettings,
} from '../../proto/gen/initless/v1/fleet.js';
import { Event } from '../../proto/gen/initless/v1/types.js';
import { connect, createRpcClient } from '../../proto/rpc/client.js';
import { deadline, sleep, withDeadline } from '../../proto/rpc/deadline.js';
import { fromGrpcError, InitlessError, problemOf } from '../../proto/rpc/errors.js';
import { PushStream } from '../../proto/rpc/push-stream.js';

/** How often the whole state is reported when nothing changes. */
const REPORT_MS = 5_000;
/** A sign of life is sent this often, and answered. */
const BEAT_MS = 1_000;
/** A control plane that has said nothing for this long is not there any more, whatever the connection looks like. */
const SILENT_MS = 6_000;
/** Changes are reported this long after the first of them, so that a burst is one report. */
const SETTLE_MS = 20;
const MAX_PAUSE_MS = 2_000;

/** What a command came to. */
export type Outcome = NonNullable<CommandResult['outcome']>;

/** What the agent does for its control plane. */
export interface FleetHandlers {
  hello(): ConnectRequest;
  report(): ConnectRequest;
  settings(settings: HostSettings): Promise<void>;
  /** Carries a command out; `send` is for what comes before its result. */
  execute(command: Command, send: (message: ConnectRequest) => void, signal: AbortSignal): Promise<Outcome>;
}

/** The agent's stream to the control plane: dialled, kept, dialled again. Nothing that serves requests needs it. */
export class FleetLink {
  readonly #address: string;
  readonly #handlers: FleetHandlers;
  readonly #log: Logger;
  readonly #channel: ReturnType<typeof connect>;
  readonly #client: ReturnType<typeof createRpcClient<typeof FleetServiceDefinition>>;
  readonly #running = new Map<string, AbortController>();
  #out: PushStream<ConnectRequest> | undefined;
  #reportTimer: NodeJS.Timeout | undefined;

  constructor(address: string, handlers: FleetHandlers, log: Logger) {
    this.#address = address;
    this.#handlers = handlers;
    this.#log = log;
    this.#channel = connect(address);
    this.#client = createRpcClient(FleetServiceDefinition, this.#channel);
  }

  /** Whether a control plane has taken this agent in. */
  get connected(): boolean {
    return this.#out !== undefined;
  }

  /** Stays connected until `signal` aborts. */
  async run(signal: AbortSignal): Promise<void> {
    let pause = 200;
    let lost = '';
    while (!signal.aborted) {
      try {
        await this.#session(signal, () => {
          pause = 200;
          lost = '';
        });
      } catch (error) {
        const reason = fromGrpcError(error, `the control plane on ${this.#address}`).message;
        if (!signal.aborted && reason !== lost)
          this.#log.warn({ reason }, 'not connected to the control plane; trying again');
        lost = reason;
      }
      await sleep(pause, signal).catch(() => {});
      pause = Math.min(pause * 2, MAX_PAUSE_MS);
    }
    for (const command of this.#running.values()) command.abort(signal.reason);
    this.#channel.close();
  }

  async #session(signal: AbortSignal, onWelcome: () => void): Promise<void> {
    const out = new PushStream<ConnectRequest>('reports to the control plane');
    out.push(this.#handlers.hello());
    const session = new AbortController();
    const stop = () => session.abort(signal.reason);
    signal.addEventListener('abort', stop, { once: true });
    const reports = setInterval(() => this.changed(), REPORT_MS);
    let heardAt = performance.now();
    const beats = setInterval(() => {
      if (performance.now() - heardAt > SILENT_MS) {
        const text = `the control plane on ${this.#address} has said nothing for ${SILENT_MS} ms`;
        session.abort(new InitlessError('CONTROL_PLANE_DOWN', text));
      } else this.#send({ message: { $case: 'heartbeat', value: {} } });
    }, BEAT_MS);
    try {
      for await (const response of this.#client.connect(out, { signal: session.signal })) {
        heardAt = performance.now();
        if (response.message?.$case === 'welcome') {
          const { settings } = response.message.value;
          const refused = settings && (await this.#use(settings));
          this.#out = out;
          onWelcome();
          this.#log.info({ controlPlane: this.#address }, 'connected to the control plane');
          out.push(this.#handlers.report());
          if (refused) this.event(refused);
        } else if (response.message?.$case === 'settings') {
          const refused = await this.#use(response.message.value);
          if (refused) this.event(refused);
          this.changed();
        } else {
          this.#take(response);
        }
      }
      throw new InitlessError('CONTROL_PLANE_DOWN', 'the control plane ended the stream');
    } catch (error) {
      throw session.signal.aborted && !signal.aborted ? session.signal.reason : error;
    } finally {
      clearInterval(reports);
      clearInterval(beats);
      signal.removeEventListener('abort', stop);
      this.#out = undefined;
      out.end();
      session.abort();
    }
  }

  /**
   * Applies settings. What cannot be applied is told, and does not end the connection: it would not be better after the
   * next one, and everything else goes on.
   */
  async #use(settings: HostSettings): Promise<Event | undefined> {
    try {
      await this.#handlers.settings(settings);
      return undefined;
    } catch (error) {
      const problem = problemOf(error);
      this.#log.error({ settings, error: problem.message }, 'the settings of the control plane cannot be applied');
      const message = `the settings cannot be applied: ${problem.message}`;
      return Event.fromPartial({ at: new Date(), kind: 'host.settings_refused', message, problem });
    }
  }

  #take({ message }: ConnectResponse): void {
    if (message?.$case === 'command') void this.#execute(message.value);
    if (message?.$case === 'cancel') {
      this.#running
        .get(message.value.id)
        ?.abort(new InitlessError('CANCELLED', 'the control plane cancelled the command'));
    }
  }

  async #execute(command: Command): Promise<void> {
    // A command that comes again after a reconnect is still under way; its result will be sent.
    if (this.#running.has(command.id)) return;
    const controller = new AbortController();
    setMaxListeners(0, controller.signal);
    this.#running.set(command.id, controller);
    let outcome: Outcome;
    const kind = command.action?.$case ?? 'nothing';
    try {
      outcome = await withDeadline(command.timeoutMs, `the command '${kind}'`, controller.signal, (signal) => {
        setMaxListeners(0, signal);
        return this.#handlers.execute(command, (message) => this.#send(message), signal);
      });
    } catch (error) {
      const problem = problemOf(error);
      this.#log.warn({ command: kind, code: problem.code, error: problem.message }, 'a command failed');
      outcome = { $case: 'problem', value: problem };
    } finally {
      this.#running.delete(command.id);
    }
    // What the command changed must be known before its result is.
    this.#send(this.#handlers.report());
    this.#send({ message: { $case: 'result', value: { id: command.id, outcome } } });
  }

  #send(message: ConnectRequest): void {
    this.#out?.push(message);
  }

  /** Tells of something that happened; lost while there is no control plane. */
  event(event: Event): void {
    this.#send({ message: { $case: 'event', value: event } });
  }

  /** Reports the whole state soon. */
  changed(): void {
    this.#reportTimer ??= setTimeout(() => {
      this.#reportTimer = undefined;
      this.#send(this.#handlers.report());
    }, SETTLE_MS);
  }

  /** A build context as a tar archive. Errors, on the stream: NOT_FOUND, CONTROL_PLANE_DOWN, DEADLINE. */
  context(digest: string, signal: AbortSignal): Readable {
    const client = this.#client;
    async function* chunks(): AsyncGenerator<Buffer> {
      const bound = deadline(600_000, `the build context ${digest}`, signal);
      try {
        for await (const { chunk } of client.fetchContext({ digest }, { signal: bound.signal }))
          yield Buffer.from(chunk);
      } catch (error) {
        throw fromGrpcError(error, 'fetching the build context');
      } finally {
        bound.clear();
      }
    }
    return Readable.from(chunks(), { objectMode: false });
  }
}
