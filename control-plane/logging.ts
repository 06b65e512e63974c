import { type Logger, pino } from 'pino';
import pretty from 'pino-pretty';

/** A logger on standard output: JSON lines, or readable ones on a terminal. */
export function createLogger(name: string, level = 'info'): Logger {
  if (!process.stdout.isTTY) return pino({ name, level });
  return pino({ name, level }, pretty({ colorize: true, ignore: 'pid,hostname,name', translateTime: 'HH:MM:ss.l' }));
}
