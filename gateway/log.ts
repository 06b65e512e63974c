import { type Logger, pino } from 'pino';
import pretty from 'pino-pretty';

/** A logger to stdout: JSON, or readable lines where that is a terminal. */
export function createLog(fields: Record<string, string>): Logger {
  const options = { base: fields, timestamp: pino.stdTimeFunctions.isoTime };
  return process.stdout.isTTY ? pino(options, pretty({ sync: true })) : pino(options);
}
