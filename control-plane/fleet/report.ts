import { isDeepStrictEqual } from 'node:util';
import type { HostReport } from '../../proto/gen/initless/v1/fleet.js';
import type { HostState } from '../core/model.js';

/** What decisions and people see of a report at once. Memory and ports change all the time: the next look is soon enough. */
type Seen = Pick<
  HostState,
  'reported' | 'engine' | 'instances' | 'checkpoints' | 'assignments' | 'volumeServices' | 'revisions'
>;

/**
 * A host's state after its report, and whether anything changed that has to be looked at now. What says the same as before
 * stays the same object, so that what was worked out from it holds on.
 */
export function withReport(host: HostState, report: HostReport): { after: HostState; changed: boolean } {
  const { name } = host;
  const said: Seen = {
    reported: true,
    engine: report.engine,
    instances: report.instances.map((one) => ({ ...one, host: name })),
    checkpoints: report.checkpoints.map((one) => ({ ...one, host: name })),
    assignments: report.assignments,
    volumeServices: report.volumeServices,
    revisions: report.revisions,
  };
  let changed = false;
  const kept = Object.fromEntries(
    Object.entries(said).map(([key, value]) => {
      const before = host[key as keyof Seen];
      if (isDeepStrictEqual(before, value)) return [key, before];
      changed = true;
      return [key, value];
    }),
  ) as unknown as Seen;
  const { memoryAvailable, portsFree } = report;
  return { after: { ...host, ...kept, memoryAvailable, portsFree }, changed };
}
