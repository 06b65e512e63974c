import { InitlessError } from '../proto/rpc/errors.js';

/** Why a request is not served. */
export interface Refusal {
  error: InitlessError;
  /** When it makes sense to try again, milliseconds from now. Undefined: not known. */
  retryAfterMs?: number;
}

/** Where others are served, the next slot is rarely further away than this, milliseconds. */
const SOON_MS = 1_000;

/** As many wait for the service as may. */
export function queueFull(service: string, waiting: number): Refusal {
  const error = new InitlessError('QUEUE_FULL', `${waiting} requests already wait for an instance of ${service}`, {
    subject: service,
    nextStep: 'try again a little later, or raise max_pool_size or queue_limit',
  });
  return { error, retryAfterMs: SOON_MS };
}

/** The stream to the only agent that could serve is down. */
export function agentDown(service: string, host: string): Refusal {
  const error = new InitlessError('AGENT_DOWN', `the agent of host ${host} cannot be reached`, {
    subject: service,
    nextStep: "look at the host with 'initless host ls'; 'initless host up' starts it when it is down",
  });
  return { error };
}

/** What a request that waits may be waiting for. */
export interface Pending {
  /** Instances that serve others. */
  busy: number;
  /** Hosts that were asked for an instance and have not answered yet. */
  asked: readonly string[];
  /** Hosts whose agent cannot be reached. */
  away: readonly string[];
  /** Why the last one that was asked had none. */
  denial: InitlessError | undefined;
}

/** The request waited as long as it may. */
export function timedOut(service: string, waitedMs: number, { busy, asked, away, denial }: Pending): Refusal {
  const pending: string[] = [];
  if (busy > 0) pending.push(`a free slot of ${busy === 1 ? 'its instance' : `its ${busy} instances`}`);
  if (asked.length > 0) pending.push(`a lease from host ${asked.join(', ')}`);
  if (away.length > 0) pending.push(`the agent of host ${away.join(', ')}, which cannot be reached`);
  if (denial !== undefined) pending.push(`another try, since the last lease was denied: ${denial.message}`);
  const error = new InitlessError(
    'QUEUE_TIMEOUT',
    `${service} had no instance for the request within ${waitedMs} ms; pending was: ${pending.join('; ') || 'a host that serves it'}`,
    {
      subject: service,
      nextStep:
        busy > 0 || denial?.code === 'EXHAUSTED'
          ? 'try again later, or raise max_concurrency, max_pool_size or queue_timeout'
          : `see why with 'initless events --service ${service}' and 'initless host ls', or raise queue_timeout`,
    },
  );
  return { error, retryAfterMs: SOON_MS };
}

/** The route names no host. */
export function noHost(service: string): Refusal {
  const error = new InitlessError('NO_HOST', `no host serves ${service} yet`, {
    subject: service,
    nextStep: "see what it waits for with 'initless service inspect', and the hosts with 'initless host ls'",
  });
  return { error };
}

/** The service was disabled or removed while the request waited. */
export function withdrawn(service: string): Refusal {
  const error = new InitlessError('DISABLED', `${service} is no longer served`, {
    subject: service,
    nextStep: "see what became of it with 'initless service ls'",
  });
  return { error };
}
