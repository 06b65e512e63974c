import { Instance } from '../../agent/instance/instance.js';
import type { Place } from '../../agent/instance/place.js';
import type { Filler } from '../../agent/runtime/lazy.js';
import { identify, type ProcessId } from '../../agent/runtime/process.js';
import { ServiceAssignment } from '../../proto/gen/initless/v1/fleet.js';
import { Origin, ServiceConfig } from '../../proto/gen/initless/v1/types.js';

/** What stands for the daemon that fills an instance: the test's own process. */
export const FILLER: Filler = { daemon: identify(process.pid) as ProcessId, timeoutMs: 60_000 };

/** A revision of the service "web": two slots an instance, two instances at most, unless told otherwise. */
export function webRevision(more: Partial<ServiceConfig>, revision: string): ServiceAssignment {
  const config = ServiceConfig.fromPartial({
    serviceName: 'web',
    maxConcurrency: 2,
    maxPoolSize: 2,
    idleTimeoutMs: 60_000,
    preStartTimeoutMs: 60_000,
    ...more,
  });
  return ServiceAssignment.fromPartial({ config, revision });
}

/** An instance that was restored and runs; its process is the test's own. */
export function runningInstance(id: string, assignment: ServiceAssignment, address: string): Instance {
  const instance = new Instance(id, assignment, Origin.ORIGIN_RESTORED);
  instance.place = { id, sandbox: { address } } as Place;
  instance.process = identify(process.pid);
  instance.apply({ type: 'start' });
  instance.apply({ type: 'healthy' });
  return instance;
}
