import { type Measurement, Origin, type Service, ServiceState } from '../../proto/gen/initless/v1/types.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import type { Admin } from './admin.js';
import type { CliContext } from './context.js';
import { formatMs, originWord } from './format.js';
import { renderTable } from './output.js';
import { round, type Summary, summarise } from './statistics.js';

/** Bound on one round of one service: two starts, each with a `start_timeout` of 120 s and some slack. */
const ROUND_MS = 360_000;

/** What timing one service's starts gave; the form of `initless test -o json`. Times in milliseconds. */
export interface TestResult {
  service: string;
  rounds: number;
  docker_run_ms: Summary;
  restored_ms: Summary;
  /** Median of `docker run` divided by the median of the restored start. */
  ratio: number;
}

/** Names of the services to time: the ones given, else all that are enabled. */
export function servicesToTest(services: readonly Service[], wanted: readonly string[]): string[] {
  if (wanted.length > 0) return [...wanted];
  return services
    .filter(({ state }) => state !== ServiceState.SERVICE_STATE_DISABLED)
    .flatMap(({ config }) => config?.serviceName ?? []);
}

/**
 * The result of one service's measurements.
 *
 * Errors: COLD_ORIGIN when a start that should have been restored was not, INTERNAL when a kind of start is missing.
 */
export function resultOf(service: string, measurements: readonly Measurement[]): TestResult {
  const restored = measurements.filter(({ kind }) => kind === 'restored');
  const dockerRun = measurements.filter(({ kind }) => kind === 'docker_run');
  const cold = restored.find(({ origin }) => origin !== Origin.ORIGIN_RESTORED);
  if (cold) {
    throw new InitlessError(
      'COLD_ORIGIN',
      `${service}: in round ${cold.round} the start that should have been restored was ${originWord(cold.origin)}`,
      { subject: service, nextStep: `'initless events --service ${service}' says why the restore failed` },
    );
  }
  if (restored.length === 0 || dockerRun.length === 0) {
    throw new InitlessError(
      'INTERNAL',
      `${service}: the control plane sent ${restored.length} restored starts and ${dockerRun.length} by docker run`,
    );
  }
  const docker = summarise(dockerRun.map(({ ms }) => ms));
  const restore = summarise(restored.map(({ ms }) => ms));
  return {
    service,
    rounds: restored.length,
    docker_run_ms: rounded(docker),
    restored_ms: rounded(restore),
    ratio: round(docker.p50 / restore.p50, 2),
  };
}

function rounded({ min, p50, p95, max }: Summary): Summary {
  return { min: round(min, 1), p50: round(p50, 1), p95: round(p95, 1), max: round(max, 1) };
}

/** The table of `initless test`, times in milliseconds. */
export function resultTable(results: readonly TestResult[]): string {
  const columns = (summary: Summary) => [summary.min, summary.p50, summary.p95, summary.max].map((ms) => ms.toFixed(1));
  return renderTable(
    ['SERVICE', 'ROUNDS', 'START', 'MIN ms', 'P50 ms', 'P95 ms', 'MAX ms', 'RATIO'],
    results.flatMap((result) => [
      [result.service, String(result.rounds), 'docker run', ...columns(result.docker_run_ms), ''],
      [
        result.service,
        String(result.rounds),
        'restored',
        ...columns(result.restored_ms),
        `${result.ratio.toFixed(1)}x`,
      ],
    ]),
  );
}

/** Times one service's starts; each measurement is said as it comes when `tell` is given. Errors: as {@link resultOf}. */
export async function measure(
  context: CliContext,
  admin: Admin,
  service: string,
  rounds: number,
  tell?: (line: string) => void,
): Promise<TestResult> {
  const measurements: Measurement[] = [];
  for await (const { measurement } of admin.stream(
    `TestService ${service}`,
    context.timeoutMs(rounds * ROUND_MS),
    (client, options) => client.testService({ serviceName: service, rounds }, options),
  )) {
    if (!measurement) continue;
    measurements.push(measurement);
    const kind = measurement.kind === 'restored' ? originWord(measurement.origin) : 'docker run';
    tell?.(`${service} ${measurement.round}/${rounds}: ${kind.padEnd(10)} ${formatMs(measurement.ms)}`);
  }
  return resultOf(service, measurements);
}
