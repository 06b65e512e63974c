import type { Command } from 'commander';
import { InitlessError, toInitlessError } from '../../../proto/rpc/errors.js';
import { type CliContext, EXIT } from '../context.js';
import { parseWhole, type Register } from '../flags.js';
import { measure, resultTable, servicesToTest, type TestResult } from '../measure.js';
import { outputOption } from '../output.js';
import { reportError } from '../report-error.js';

interface TestOptions {
  rounds: number;
  output: 'table' | 'json';
}

/** Adds `test`. */
export function addTestCommand(program: Command, register: Register): void {
  register(
    program
      .command('test')
      .summary("time services' starts: docker run against restored")
      .description(
        "Times services' starts, `docker run` until healthy and restored until healthy in turn. Fails when a start that " +
          'should have been restored was a cold one. Also: initless -t',
      )
      .argument('[service...]', 'services; all that are enabled where none is given')
      .option('-n, --rounds <n>', 'rounds, each one of both', parseWhole(1, 1000), 5)
      .addOption(outputOption(['table', 'json'])),
    (context, services: string[], options: TestOptions) => test(context, services, options),
  );
}

/** What one service's failure says does not keep the others from being timed. */
async function test(context: CliContext, wanted: readonly string[], options: TestOptions): Promise<number> {
  const results: TestResult[] = [];
  let failed = false;
  await context.withAdmin(async (admin) => {
    const { services } = await admin.call('ListServices', context.timeoutMs(30_000), (client, callOptions) =>
      client.listServices({}, callOptions),
    );
    const names = servicesToTest(services, wanted);
    if (names.length === 0) {
      throw new InitlessError('NOT_FOUND', 'there is no enabled service to time', {
        nextStep: "deploy one with 'initless service apply DIR --wait'",
      });
    }
    for (const name of names) {
      try {
        results.push(await measure(context, admin, name, options.rounds, context.say));
      } catch (thrown) {
        if (context.signal.aborted || toInitlessError(thrown).code === 'CONTROL_PLANE_DOWN') throw thrown;
        failed = true;
        reportError(context.stderr, thrown, false);
      }
    }
  });
  if (options.output === 'json') context.stdout.write(`${JSON.stringify(results)}\n`);
  else if (results.length > 0) context.stdout.write(`${resultTable(results)}\n`);
  return failed ? EXIT.failed : EXIT.ok;
}
