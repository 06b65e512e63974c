import type { BuildOutput, Service } from '../../proto/gen/initless/v1/types.js';
import { ServiceState } from '../../proto/gen/initless/v1/types.js';
import type { Admin } from './admin.js';
import { type CliContext, EXIT } from './context.js';
import { plainText } from './format.js';
import { problemLines } from './report-error.js';

/** Bound on the making of a revision that a command waits for. Maven, pip and apt may all have to fetch first. */
export const BUILD_WAIT_MS = 30 * 60_000;

/** How the making of a revision ended. */
export interface Outcome {
  exitCode: number;
  /** Lines for people: what became of it, why, what to do. */
  lines: string[];
}

/**
 * What a service's state says once the work on it has ended.
 *
 * A newest revision that could not be made is a failure also where an earlier one goes on serving.
 */
export function outcomeOf(service: Service): Outcome {
  const name = service.config?.serviceName ?? 'service';
  const where = `http://localhost:${service.config?.hostPort ?? 0}/`;
  const failed = service.pending?.problem;
  if (failed) {
    const serving = service.current ? `; revision ${service.current.id} goes on serving` : '';
    return {
      exitCode: EXIT.failed,
      lines: [`${name} failed: revision ${service.pending?.id} could not be made${serving}`, ...problemLines(failed)],
    };
  }
  const problem = service.problem ?? service.current?.problem;
  const why = problem ? problemLines(problem) : [];
  switch (service.state) {
    case ServiceState.SERVICE_STATE_READY:
      return { exitCode: EXIT.ok, lines: [`${name} is ready: ${where}`, ...listenerLines(service)] };
    case ServiceState.SERVICE_STATE_DEGRADED:
      return {
        exitCode: EXIT.degraded,
        lines: [
          `${name} serves on ${where}, but every start is a cold one: it could not be checkpointed`,
          ...why,
          ...listenerLines(service),
        ],
      };
    case ServiceState.SERVICE_STATE_FAILED:
      return { exitCode: EXIT.failed, lines: [`${name} failed`, ...why] };
    case ServiceState.SERVICE_STATE_DISABLED:
      return { exitCode: EXIT.ok, lines: [`${name} is disabled: no gateway listens for it`, ...why] };
    case ServiceState.SERVICE_STATE_PENDING:
    case ServiceState.SERVICE_STATE_BUILDING:
    case ServiceState.SERVICE_STATE_UNSPECIFIED:
    case ServiceState.UNRECOGNIZED:
      return { exitCode: EXIT.failed, lines: [`${name} is not ready yet`, ...why] };
  }
}

function listenerLines(service: Service): string[] {
  return service.listeners
    .filter((listener) => !listener.listening && listener.error !== '')
    .map((listener) => `  gateway ${listener.gateway} does not listen for it: ${listener.error}`);
}

/** A line of a build as it is shown: "image    | Step 3/7 ...". */
export function buildLine(output: BuildOutput): string {
  return `${output.stage.padEnd(8)} | ${plainText(output.line).trimEnd()}`;
}

/**
 * Shows what making a service's newest revision prints until it ends, and gives the service as it is then.
 * Errors: those of StreamBuildOutput; DEADLINE (the work goes on).
 */
export async function followBuild(
  context: CliContext,
  admin: Admin,
  name: string,
  show: (output: BuildOutput) => void,
): Promise<Service | undefined> {
  const ms = context.timeoutMs(BUILD_WAIT_MS);
  for await (const { piece } of admin.stream(`the making of ${name} (the work goes on)`, ms, (client, options) =>
    client.streamBuildOutput({ serviceName: name }, options),
  )) {
    if (piece?.$case === 'output') show(piece.value);
    if (piece?.$case === 'ended') return piece.value;
  }
  const answer = await admin.call(`GetService ${name}`, context.timeoutMs(30_000), (client, options) =>
    client.getService({ serviceName: name }, options),
  );
  return answer.service;
}

/** Follows a build on stderr, says how it ended, and gives the exit code. After Ctrl-C it says how to go on. */
export async function followAndReport(context: CliContext, admin: Admin, name: string): Promise<number> {
  let service: Service | undefined;
  try {
    service = await followBuild(context, admin, name, (output) => context.say(buildLine(output)));
  } catch (thrown) {
    if (!context.signal.aborted) throw thrown;
    context.say(`\nthe work on ${name} goes on; 'initless service output ${name}' follows it`);
    return EXIT.interrupted;
  }
  return sayOutcome(context, service);
}

/** Says how the work on a service ended: success on stdout, all else on stderr. */
export function sayOutcome(context: CliContext, service: Service | undefined): number {
  if (!service) return EXIT.failed;
  const outcome = outcomeOf(service);
  const stream = outcome.exitCode === EXIT.ok ? context.stdout : context.stderr;
  stream.write(`${outcome.lines.join('\n')}\n`);
  return outcome.exitCode;
}
