import type { ServiceConfig } from '../../proto/gen/initless/v1/types.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { badConfig } from '../config/faults.js';
import { isEnabled, type ServiceRecord } from '../core/model.js';

/** What is asked of a service beyond its own file. */
export interface Surroundings {
  /** All other services. */
  others: readonly ServiceRecord[];
  /** Ports of our own that no service may have. */
  ownPorts: readonly number[];
  /** The file, for messages. */
  file: string;
  /** Line of a key in it. */
  lineOf: (key: string) => number;
}

/** Checks a service against the others and against our own ports. Errors: PORT_TAKEN, BAD_CONFIG. */
export function checkAgainstOthers(config: ServiceConfig, around: Surroundings): void {
  const { others, file, lineOf } = around;
  const fault = (key: string, found: string, expected: string) =>
    badConfig(file, [{ file, line: lineOf(key), key, found, expected }]);
  if (around.ownPorts.includes(config.hostPort)) {
    throw fault('host_port', String(config.hostPort), 'a port that initless does not listen on itself');
  }
  for (const other of others) {
    if (other.name === config.serviceName || other.removed) continue;
    if (other.config.checkpointName === config.checkpointName) {
      throw fault('checkpoint_name', config.checkpointName, `a name that the service ${other.name} does not have`);
    }
    if (config.isEnabled && isEnabled(other) && other.config.hostPort === config.hostPort) {
      throw new InitlessError(
        'PORT_TAKEN',
        `${file}:${lineOf('host_port')}: host_port: ${config.hostPort} is the port of the service ${other.name}`,
        { subject: config.serviceName, nextStep: 'choose another host_port' },
      );
    }
  }
}
