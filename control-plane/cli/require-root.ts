import { InitlessError } from '../../proto/rpc/errors.js';

/** Refuses to go on without root: engine, namespaces, cgroups and the state folder all need it. Errors: SETUP_FAILED. */
export function requireRoot(what: string): void {
  if (process.geteuid?.() === 0) return;
  throw new InitlessError('SETUP_FAILED', `${what} needs root`, { nextStep: 'run it as root, for instance with sudo' });
}
