import type { Clock } from './clock.js';

/**
 * One connection between an agent and the control plane. What is said over it arrives a little later, in order, or not at
 * all. While it is blocked nothing arrives and nobody is told; what was said meanwhile arrives when it no longer is.
 */
export class SimLink {
  open = true;
  /** When the control plane last heard the agent, which says something every second. */
  heardAt: number;
  readonly #clock: Clock;
  readonly #delay: () => number;
  #blocked = false;
  #backlog: (() => void)[] = [];
  readonly #lastAt = { up: 0, down: 0 };

  /** @param delay of the next message, milliseconds. */
  constructor(clock: Clock, delay: () => number) {
    this.#clock = clock;
    this.#delay = delay;
    this.heardAt = clock.now;
  }

  /** Says something: to the control plane (`up`) or to the agent (`down`). */
  say(way: 'up' | 'down', deliver: () => void): void {
    if (!this.open) return;
    const at = Math.max(this.#lastAt[way], this.#clock.now + this.#delay());
    this.#lastAt[way] = at;
    this.#clock.after(at - this.#clock.now, () => this.#arrive(deliver));
  }

  /** When the control plane last heard the agent, by its heartbeats too. */
  heard(now: number): number {
    return this.#blocked || !this.open ? this.heardAt : now;
  }

  block(): void {
    if (this.#blocked) return;
    this.#blocked = true;
    this.heardAt = this.#clock.now;
  }

  unblock(): void {
    this.#blocked = false;
    const late = this.#backlog;
    this.#backlog = [];
    for (const deliver of late) this.#clock.after(1, () => this.#arrive(deliver));
  }

  close(): void {
    if (this.open && !this.#blocked) this.heardAt = this.#clock.now;
    this.open = false;
    this.#backlog = [];
  }

  #arrive(deliver: () => void): void {
    if (!this.open) return;
    if (this.#blocked) this.#backlog.push(deliver);
    else deliver();
  }
}
