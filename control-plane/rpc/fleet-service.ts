import type { FleetServiceImplementation } from '../../proto/gen/initless/v1/fleet.js';
import type { ContextStore } from '../contexts/context-store.js';
import type { Fleet } from '../fleet/fleet.js';

/** The control plane's side towards agents. */
export function fleetService(fleet: Fleet, contexts: ContextStore): FleetServiceImplementation {
  return {
    connect: (requests, context) => fleet.connect(requests, context.signal),

    async *fetchContext({ digest }) {
      for await (const chunk of contexts.read(digest)) yield { chunk };
    },
  };
}
