import type { AdminServiceImplementation } from '../../../proto/gen/initless/v1/admin.js';
import { fleetCalls } from './fleet.js';
import { hostCalls } from './hosts.js';
import type { AdminParts } from './parts.js';
import { serviceCalls } from './services.js';
import { streamCalls } from './streams.js';

/** What people and the CLI ask of the control plane. */
export function adminService(parts: AdminParts): AdminServiceImplementation {
  return { ...serviceCalls(parts), ...hostCalls(parts), ...fleetCalls(parts), ...streamCalls(parts) };
}
