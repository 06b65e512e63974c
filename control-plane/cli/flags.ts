import { type Command, InvalidArgumentError } from 'commander';
import type { CliContext } from './context.js';

/**
 * Adds a command's behaviour. `work` is given the context, the command's arguments and its options, in this order; it
 * gives the exit code, nothing standing for 0.
 */
export type Register = <Args extends unknown[]>(
  command: Command,
  // biome-ignore lint/suspicious/noConfusingVoidType: a command that has no code of its own ends without a return
  work: (context: CliContext, ...args: Args) => Promise<number | void>,
) => void;

/** Seconds as a flag gives them: more than 0, a day at most. */
export function parseSeconds(text: string): number {
  const value = Number(text);
  if (!(value > 0 && value <= 86_400)) {
    throw new InvalidArgumentError('Seconds are meant, more than 0 and at most 86400.');
  }
  return value;
}

/** A whole number as a flag gives it, from `min` to `max`. */
export function parseWhole(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === '' || !Number.isInteger(value) || value < min || value > max) {
      throw new InvalidArgumentError(`A whole number from ${min} to ${max} is meant.`);
    }
    return value;
  };
}
