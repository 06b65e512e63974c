import type { Command } from 'commander';
import { type CliContext, EXIT } from '../context.js';
import { examine, type Finding } from '../doctor.js';
import type { Register } from '../flags.js';
import { type OutputFormat, outputOption, printValue } from '../output.js';

/** Adds `doctor`. */
export function addDoctorCommand(program: Command, register: Register): void {
  register(
    program
      .command('doctor')
      .summary('say what is missing on this machine')
      .description(
        'Looks at the machine - root, kernel, programs, engine, CRIU in each host, ports, disk - and says of each whether ' +
          'it is ok or what to do. Ends with 1 when something is not ok.',
      )
      .addOption(outputOption()),
    (context, options: { output: OutputFormat }) => doctor(context, options.output),
  );
}

async function doctor(context: CliContext, format: OutputFormat): Promise<number> {
  const findings: Finding[] = [];
  for await (const finding of examine(context)) {
    findings.push(finding);
    if (format === 'table') context.stdout.write(`${findingLine(finding)}\n`);
  }
  if (format !== 'table') printValue(context.stdout, format, findings, () => '');
  return findings.some(({ state }) => state === 'bad') ? EXIT.failed : EXIT.ok;
}

/** "ok     kernel: 6.12.1"; what is not ok ends with what to do. */
export function findingLine({ check, state, text, nextStep }: Finding): string {
  return `${state.padEnd(6)} ${check}: ${text}${nextStep ? ` - ${nextStep}` : ''}`;
}
