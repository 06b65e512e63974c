import { GoneReason, InstanceState } from '../../proto/gen/initless/v1/types.js';
import { InitlessError } from '../../proto/rpc/errors.js';

/** The states of an instance's life, as in DESIGN: one table, no other place changes a state. */
export type State = 'sandboxed' | 'restoring' | 'parked' | 'running' | 'draining' | 'gone';

/** Why an instance ended. */
export type Reason =
  | 'idle'
  | 'expired'
  | 'restore_failed'
  | 'health_timeout'
  | 'crashed'
  | 'oom'
  | 'host_lost'
  | 'drained'
  | 'superseded'
  | 'operator';

/** What can happen to an instance. */
export type LifecycleEvent =
  /** CRIU, or a cold start, begins. */
  | { type: 'start' }
  /** The health check passed. */
  | { type: 'healthy' }
  /** It was frozen. */
  | { type: 'park' }
  /** It was thawed. */
  | { type: 'thaw' }
  /** It is to be removed; the kill has not been issued yet. */
  | { type: 'drain'; reason: Reason }
  /** A lease came before the kill. */
  | { type: 'reclaim' }
  /** It ended, or its start did. */
  | { type: 'end'; reason: Reason };

const TABLE: Record<State, Partial<Record<LifecycleEvent['type'], State>>> = {
  sandboxed: { start: 'restoring', end: 'gone' },
  restoring: { healthy: 'running', end: 'gone' },
  running: { park: 'parked', drain: 'draining', end: 'gone' },
  parked: { thaw: 'running', drain: 'draining', end: 'gone' },
  draining: { reclaim: 'running', end: 'gone' },
  gone: {},
};

/** The state after `event`. Errors: INTERNAL for a pair that is not in the table. */
export function transition(state: State, event: LifecycleEvent): State {
  const next = TABLE[state][event.type];
  if (next === undefined) {
    throw new InitlessError('INTERNAL', `an instance that is ${state} cannot take the event '${event.type}'`);
  }
  return next;
}

const STATES: Record<State, InstanceState> = {
  sandboxed: InstanceState.INSTANCE_STATE_SANDBOXED,
  restoring: InstanceState.INSTANCE_STATE_RESTORING,
  parked: InstanceState.INSTANCE_STATE_PARKED,
  running: InstanceState.INSTANCE_STATE_RUNNING,
  draining: InstanceState.INSTANCE_STATE_DRAINING,
  gone: InstanceState.INSTANCE_STATE_GONE,
};

const REASONS: Record<Reason, GoneReason> = {
  idle: GoneReason.GONE_REASON_IDLE,
  expired: GoneReason.GONE_REASON_EXPIRED,
  restore_failed: GoneReason.GONE_REASON_RESTORE_FAILED,
  health_timeout: GoneReason.GONE_REASON_HEALTH_TIMEOUT,
  crashed: GoneReason.GONE_REASON_CRASHED,
  oom: GoneReason.GONE_REASON_OOM,
  host_lost: GoneReason.GONE_REASON_HOST_LOST,
  drained: GoneReason.GONE_REASON_DRAINED,
  superseded: GoneReason.GONE_REASON_SUPERSEDED,
  operator: GoneReason.GONE_REASON_OPERATOR,
};

/** A reason that came over the wire; what is not known is that something newer took the place. */
export function reasonFromWire(reason: GoneReason): Reason {
  const found = (Object.keys(REASONS) as Reason[]).find((one) => REASONS[one] === reason);
  return found ?? 'superseded';
}

/** A state as it goes over the wire. */
export function stateOnWire(state: State): InstanceState {
  return STATES[state];
}

/** A reason as it goes over the wire. */
export function reasonOnWire(reason: Reason | undefined): GoneReason {
  return reason === undefined ? GoneReason.GONE_REASON_UNSPECIFIED : REASONS[reason];
}
