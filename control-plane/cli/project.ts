import { join } from 'node:path';
import { InitlessError } from '../../proto/rpc/errors.js';
import { checkName, DEFAULT_PROJECT, stateDir } from './machine/names.js';

/** First port of a project, where none is given. */
export const DEFAULT_PORT_BASE = 7070;

/** What belongs together on a machine: names, ports and folders. Several projects live beside each other. */
export interface Project {
  name: string;
  ports: {
    /** Control plane, gRPC. */
    grpc: number;
    /** Control plane, HTTP: /healthz and /readyz. */
    http: number;
    /** First gateway, HTTP: the same two. The others' follow on the same port of 127.0.0.2 and so on. */
    gatewayHttp: number;
    /** Redis, where `initless up --redis` keeps one. */
    redis: number;
  };
  /** Folder of everything the project keeps on the machine. */
  stateDir: string;
  /** Folder of pid files and logs, below it. */
  runDir: string;
}

/**
 * The project that is meant: flags, else INITLESS_PROJECT and INITLESS_PORT_BASE, else "initless" from port 7070 on.
 * Errors: BAD_NAME, BAD_REQUEST (port).
 */
export function projectOf(flags: { project?: string; portBase?: number }, env: NodeJS.ProcessEnv): Project {
  const name = checkName('project', flags.project ?? (env.INITLESS_PROJECT || DEFAULT_PROJECT));
  const base = flags.portBase ?? (env.INITLESS_PORT_BASE ? Number(env.INITLESS_PORT_BASE) : DEFAULT_PORT_BASE);
  if (!Number.isInteger(base) || base < 1024 || base > 65_000) {
    throw new InitlessError('BAD_REQUEST', `the port base must be a whole number from 1024 to 65000, found ${base}`, {
      nextStep: 'correct --port-base or INITLESS_PORT_BASE',
    });
  }
  const state = stateDir(name);
  return {
    name,
    ports: { grpc: base, http: base + 1, gatewayHttp: base + 4, redis: base + 9 },
    stateDir: state,
    runDir: join(state, 'run'),
  };
}
