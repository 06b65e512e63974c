import { Event } from '../proto/gen/initless/v1/types.js';
import { PushStream } from '../proto/rpc/push-stream.js';

/** Events that are kept for those who come later. */
const KEPT = 1_000;

/** What an event says; number and time are added. */
export type EventFields = Partial<Omit<Event, 'sequence'>> & Pick<Event, 'kind' | 'message'>;

/** The last events, numbered without gaps since the control plane started, and those who watch for more. */
export class EventLog {
  #events: Event[] = [];
  #sequence = 0;
  readonly #watchers = new Set<(event: Event) => void>();

  /** Adds an event and tells everyone who watches. */
  add(fields: EventFields): Event {
    this.#sequence += 1;
    const event = Event.fromPartial({ ...fields, at: fields.at ?? new Date(), sequence: this.#sequence });
    this.#events.push(event);
    if (this.#events.length > KEPT) this.#events.shift();
    for (const tell of this.#watchers) tell(event);
    return event;
  }

  /** Calls `tell` with every event from now on, until the returned function is called. */
  subscribe(tell: (event: Event) => void): () => void {
    this.#watchers.add(tell);
    return () => this.#watchers.delete(tell);
  }

  /**
   * The last events, oldest first.
   *
   * @param service only this one's. Empty: all.
   */
  last(service: string, count: number): Event[] {
    return count === 0 ? [] : this.#events.filter((event) => isAbout(event, service)).slice(-count);
  }

  /**
   * The last events, then those that come, until `signal` aborts. Errors: BUSY when the reader does not keep up.
   *
   * @param service only this one's. Empty: all.
   * @param count how many of the past.
   */
  async *watch(service: string, count: number, signal: AbortSignal): AsyncGenerator<Event> {
    const stream = new PushStream<Event>('events');
    let overrun: unknown;
    const stop = this.subscribe((event) => {
      if (!isAbout(event, service)) return;
      try {
        stream.push(event);
      } catch (error) {
        overrun = error;
        stream.end();
      }
    });
    const end = () => stream.end();
    signal.addEventListener('abort', end, { once: true });
    if (signal.aborted) end();
    try {
      yield* this.last(service, count);
      yield* stream;
      if (overrun !== undefined) throw overrun;
    } finally {
      stop();
      signal.removeEventListener('abort', end);
    }
  }
}

function isAbout(event: Event, service: string): boolean {
  return service === '' || event.service === service;
}
