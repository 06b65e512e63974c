import pLimit from 'p-limit';
import type { HealthCheck } from '../../proto/gen/initless/v1/types.js';
import { repeat } from '../../proto/rpc/deadline.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { type Attempt, attempt } from '../runtime/health.js';
import type { Instance } from './instance.js';

/** Pause between two health checks of a running instance that is well. */
const WELL_PAUSE_MS = 5_000;
/** Pause after one that failed. */
const FAILED_PAUSE_MS = 500;
/** How often it is looked whose turn it is. */
const TICK_MS = 250;
/** Health checks at a time on this host. */
const AT_A_TIME = 16;

/** What is known of one instance's health since it runs. Times as performance.now(). */
export interface Pulse {
  /** Next health check. */
  dueAt: number;
  /** First of the health checks that have failed since the last one that passed. */
  failingSince: number | undefined;
}

/** The pulse after a health check that began at `began` and ended at `now`. Pure. */
export function nextPulse(pulse: Pulse, outcome: Attempt['kind'], began: number, now: number): Pulse {
  if (outcome === 'healthy') return { dueAt: now + WELL_PAUSE_MS, failingSince: undefined };
  return { dueAt: now + FAILED_PAUSE_MS, failingSince: pulse.failingSince ?? began };
}

/** Whether an instance counts as hung: every health check has failed for `hangTimeoutMs`; 0: never. Pure. */
export function isHung(pulse: Pulse, hangTimeoutMs: number, now: number): boolean {
  return hangTimeoutMs > 0 && pulse.failingSince !== undefined && now - pulse.failingSince >= hangTimeoutMs;
}

/** What the watch over running instances needs. */
export interface LivenessParts {
  /** The instances of this host. */
  list(): readonly Instance[];
  /** Told of one that hangs, with why. */
  onHung(instance: Instance, why: InitlessError): void;
  /** Asks for its health once; never throws but for an abort. */
  attempt?: typeof attempt;
}

/**
 * Asks running instances for their health every few seconds, so that one that hangs is replaced although its process
 * lives. Parked ones are frozen: they are asked before they park and again once they run.
 */
export class Liveness {
  readonly #parts: LivenessParts;
  readonly #pulses = new Map<Instance, Pulse>();
  readonly #limit = pLimit(AT_A_TIME);

  constructor(parts: LivenessParts) {
    this.#parts = parts;
  }

  /** Watches until `signal` aborts. */
  run(signal: AbortSignal): Promise<void> {
    return repeat(TICK_MS, signal, () => this.look(performance.now(), signal));
  }

  /** Begins the health checks that are due. */
  look(now: number, signal: AbortSignal): void {
    const running = new Set(this.#parts.list().filter((instance) => instance.state === 'running'));
    for (const instance of this.#pulses.keys()) if (!running.has(instance)) this.#pulses.delete(instance);
    for (const instance of running) {
      const check = instance.assignment.config?.healthCheck;
      const pulse = this.#pulses.get(instance);
      if (pulse === undefined) {
        // It was healthy a moment ago: that is how it came to run.
        this.#pulses.set(instance, { dueAt: now + WELL_PAUSE_MS, failingSince: undefined });
      } else if (check !== undefined && pulse.dueAt <= now) {
        pulse.dueAt = Number.POSITIVE_INFINITY;
        void this.#limit(() => this.#ask(instance, pulse, check, signal));
      }
    }
  }

  async #ask(instance: Instance, pulse: Pulse, check: HealthCheck, signal: AbortSignal): Promise<void> {
    const began = performance.now();
    let outcome: Attempt;
    try {
      outcome = await (this.#parts.attempt ?? attempt)(instance.address, check, signal);
    } catch (error) {
      if (signal.aborted) return;
      throw error;
    }
    if (this.#pulses.get(instance) !== pulse) return;
    if (instance.state !== 'running') {
      // It was frozen or removed while it was asked: no answer says nothing of it.
      this.#pulses.delete(instance);
      return;
    }
    const now = performance.now();
    const next = nextPulse(pulse, outcome.kind, began, now);
    this.#pulses.set(instance, next);
    const hangTimeoutMs = instance.assignment.config?.hangTimeoutMs ?? 0;
    if (outcome.kind !== 'healthy' && isHung(next, hangTimeoutMs, now)) {
      this.#parts.onHung(instance, hung(instance, check, outcome, hangTimeoutMs));
    }
  }
}

function hung(
  instance: Instance,
  check: HealthCheck,
  last: Exclude<Attempt, { kind: 'healthy' }>,
  hangTimeoutMs: number,
): InitlessError {
  const came = last.kind === 'silent' ? last.reason : `status ${last.status}, which is not what is wanted`;
  return new InitlessError(
    'INSTANCE_LOST',
    `${instance.id} hangs: every health check GET ${check.path} has failed for ${hangTimeoutMs / 1000} s; last: ${came}`,
    {
      subject: instance.id,
      nextStep:
        "see what it printed with 'initless service logs'; one that answers late at times wants a longer 'hang_timeout'",
    },
  );
}
