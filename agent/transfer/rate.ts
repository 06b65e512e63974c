import { sleep } from '../../proto/rpc/deadline.js';

/** A bound on bytes per second that all copies of this host share. */
export class Rate {
  #perSecond = 0;
  /** When what was let through so far is paid for, milliseconds (performance.now()). */
  #paidAt = 0;

  /** @param perSecond bytes; 0: no bound. */
  set(perSecond: number): void {
    this.#perSecond = perSecond;
  }

  /** Waits until `bytes` more may be sent. Rejects with the signal's reason. */
  async take(bytes: number, signal: AbortSignal): Promise<void> {
    if (this.#perSecond === 0) return;
    const now = performance.now();
    this.#paidAt = Math.max(this.#paidAt, now) + (bytes / this.#perSecond) * 1_000;
    const wait = this.#paidAt - now;
    if (wait > 1) await sleep(wait, signal);
  }
}
