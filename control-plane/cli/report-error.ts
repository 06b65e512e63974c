import type { Writable } from 'node:stream';
import { CommanderError } from 'commander';
import type { Problem } from '../../proto/gen/initless/v1/types.js';
import { toInitlessError } from '../../proto/rpc/errors.js';
import { EXIT } from './context.js';
import { plainText } from './format.js';

/** Lines of output that are shown with an error, at most. */
const TAIL_LINES = 20;

/** The lines that say what went wrong: message, faults by place, the last output, the next step. */
export function errorLines(error: {
  message: string;
  nextStep: string;
  outputTail: readonly string[];
  violations?: readonly { field: string; description: string }[];
}): string[] {
  const faults = (error.violations ?? [])
    .filter(({ description }) => !error.message.includes(description))
    .map(({ field, description }) => `  ${field}: ${description}`);
  const [first, ...rest] = error.message.split('\n');
  return [
    first ?? '',
    ...rest.map((line) => `  ${line}`),
    ...faults,
    ...error.outputTail.slice(-TAIL_LINES).map((line) => `  | ${plainText(line)}`),
    ...(error.nextStep ? [`  next: ${error.nextStep}`] : []),
  ];
}

/** The same for a problem that is part of an answer. */
export function problemLines(problem: Problem): string[] {
  return errorLines(problem);
}

/**
 * Says on stderr what was thrown, and gives the exit code that goes with it. The one place where the program speaks
 * of errors. After Ctrl-C it says nothing: the user knows.
 *
 * @param interrupted whether the user had pressed Ctrl-C.
 */
export function reportError(stderr: Writable, thrown: unknown, interrupted: boolean): number {
  if (thrown instanceof CommanderError) return thrown.exitCode === 0 ? EXIT.ok : EXIT.usage;
  if (interrupted) return EXIT.interrupted;
  const error = toInitlessError(thrown);
  const [first, ...rest] = errorLines(error);
  stderr.write(`initless: ${[first, ...rest].join('\n')}\n`);
  if (error.code === 'INTERNAL' && error.stack) {
    // Not foreseen, so that nobody has written a next step: the stack is what helps.
    stderr.write(`${error.cause instanceof Error ? error.cause.stack : error.stack}\n`);
  }
  return EXIT.failed;
}
