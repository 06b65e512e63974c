/** A lease as it counts. */
export interface LeaseView {
  /** Host that it is on. */
  host: string;
  /** Requests in flight that it allows, and those that there are. */
  slots: number;
  inFlight: number;
  /** It is only reserved: its instance is parked. */
  asleep: boolean;
  /** It takes requests. */
  usable: boolean;
}

/** What a gateway has of one host for a service. */
export interface HostCapacity {
  host: string;
  /** Requests in flight there. */
  inFlight: number;
  /** Requests that its leases allow, reserved ones too; of those that take no more, what is in flight over them. */
  slots: number;
  /** Requests that could be sent there at this moment. */
  free: number;
  /** Those of its leases that are only reserved. */
  reserved: number;
}

/**
 * What a gateway has for a service on all hosts, in one view.
 *
 * @param hosts those of its route, in order; others are there only as far as something is held of them.
 */
export function capacityOf(leases: readonly LeaseView[], hosts: readonly string[]): HostCapacity[] {
  const names = new Set([...hosts, ...leases.map(({ host }) => host)]);
  return [...names].map((host) => {
    const capacity: HostCapacity = { host, inFlight: 0, slots: 0, free: 0, reserved: 0 };
    for (const lease of leases) {
      if (lease.host !== host) continue;
      const slots = lease.usable ? Math.max(lease.slots, lease.inFlight) : lease.inFlight;
      capacity.inFlight += lease.inFlight;
      capacity.slots += slots;
      capacity.free += slots - lease.inFlight;
      if (lease.asleep) capacity.reserved += 1;
    }
    return capacity;
  });
}
