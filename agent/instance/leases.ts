import { randomBytes } from 'node:crypto';
import type { HeldLease } from '../../proto/gen/initless/v1/agent.js';
import type { Instance } from './instance.js';

/**
 * What a gateway holds is kept this long, milliseconds, after its stream broke, or after this agent came back: time for
 * it to open another stream and say what it still uses.
 */
export const LEASE_GRACE_MS = 20_000;

/** Parked instances of one service that are reserved for one gateway at most; the others are for whoever asks. */
const RESERVED_AT_MOST = 8;

/**
 * A gateway's hold on an instance.
 *
 * One that is asleep only reserves it: the instance stays parked, with no other lease on it, until its gateway says that
 * it uses it. The gateway sends a request at the moment in which it says so, so its bytes may be there before its word, or
 * without it when the connection between the two is lost. Therefore: what is reserved for a gateway is thawed for that
 * gateway only, unless that gateway has said that it sent nothing. Where it cannot say so any more, the instance is killed
 * as it is, frozen.
 */
export interface Lease {
  /** Unique, also among those of earlier agents of this host: a gateway may still name one of theirs. */
  id: string;
  gateway: string;
  /** Requests in flight that it allows. */
  slots: number;
  /** Absent: it is used. */
  asleep?: boolean;
}

/** A lease that was just granted. */
export interface Grant extends Lease {
  instance: Instance;
  /** State the instance was in when the lease was asked for; undefined: it was made for it. */
  found: 'running' | 'parked' | undefined;
}

/** A name for a new lease. It begins with the instance's, so that {@link instanceOf} needs no book. */
export function newLeaseId(instance: string): string {
  return `${instance}/${randomBytes(6).toString('hex')}`;
}

/** Id of the instance that a lease is on. */
export function instanceOf(leaseId: string): string {
  return leaseId.slice(0, leaseId.lastIndexOf('/'));
}

/** The gateway that a parked instance is reserved for: the one with the fewest of the service. Undefined: each has enough. Pure. */
export function takerOf(
  service: string,
  gateways: readonly string[],
  instances: readonly Instance[],
): string | undefined {
  const reserved = instances.flatMap((instance) => (instance.service === service ? (instance.reserved ?? []) : []));
  const count = (gateway: string) => reserved.filter((lease) => lease.gateway === gateway).length;
  return gateways.filter((gateway) => count(gateway) < RESERVED_AT_MOST).sort((a, b) => count(a) - count(b))[0];
}

/** What a gateway's word about its leases comes to. */
export interface Reconciled {
  /** Stand, each on its instance. */
  stand: { instance: Instance; lease: Lease }[];
  /** Have ended: the gateway does not hold them any more, or there is no room for what it says. Lease ids. */
  ended: string[];
}

/**
 * Compares what a gateway says that it holds with what is known, and changes nothing. A lease that is not known, since
 * the agent ended before it had noted it, stands if its instance runs and has the slots left when all that the gateway
 * no longer holds is given back; so does one that is known with fewer slots. One that the gateway has not used stands if
 * its instance is parked and nobody else's.
 *
 * @param capacity slots that an instance has in all.
 */
export function reconcile(
  gateway: string,
  named: readonly HeldLease[],
  instances: readonly Instance[],
  capacity: (instance: Instance) => number,
): Reconciled {
  const byId = new Map(instances.map((instance) => [instance.id, instance]));
  const names = new Map(named.map((lease) => [lease.leaseId, lease]));
  const own = instances.flatMap(({ leases }) => [...leases.values()].filter((lease) => lease.gateway === gateway));
  const stand = new Map<string, { instance: Instance; lease: Lease }>();
  /** Slots taken on each instance: by other gateways, and by this one as far as it may go on. */
  const taken = new Map<Instance, number>();
  for (const instance of instances) {
    let slots = 0;
    for (const lease of instance.leases.values()) {
      if (lease.gateway !== gateway || names.has(lease.id)) slots += lease.slots;
    }
    taken.set(instance, slots);
  }
  for (const { leaseId: id, instance: on, slots, asleep } of names.values()) {
    const instance = byId.get(on);
    if (instance === undefined || instanceOf(id) !== on) continue;
    const known = instance.leases.get(id);
    if (known && known.gateway !== gateway) continue;
    const before = taken.get(instance) ?? 0;
    const after = before - (known?.slots ?? 0) + slots;
    const fits = slots <= (known?.slots ?? 0) || after <= capacity(instance);
    const alone = instance.leases.size === (known ? 1 : 0) && before === (known?.slots ?? 0);
    const ready = asleep ? instance.state === 'parked' && alone : instance.state === 'running';
    const stands = ready && slots >= 1 && fits;
    taken.set(instance, stands ? after : before - (known?.slots ?? 0));
    if (stands) stand.set(id, { instance, lease: { id, gateway, slots, ...(asleep && { asleep }) } });
  }
  return { stand: [...stand.values()], ended: own.map(({ id }) => id).filter((id) => !stand.has(id)) };
}
