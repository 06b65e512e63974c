import { constants } from 'node:os';
import { InitlessError } from '../../proto/rpc/errors.js';
import { EXIT } from './context.js';
import { runCli } from './program.js';

// `initless events -f | head -1`: the reader has gone, there is nobody to tell.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(EXIT.ok);
    throw error;
  });
}

const told = new AbortController();
for (const name of ['SIGINT', 'SIGTERM'] as const) {
  process.on(name, () => {
    // The second time the user means it.
    if (told.signal.aborted) process.exit(128 + constants.signals[name]);
    told.abort(new InitlessError('CANCELLED', `ended by ${name}`));
  });
}

const code = await runCli(process.argv.slice(2), {
  stdout: process.stdout,
  stderr: process.stderr,
  env: process.env,
  cwd: process.cwd(),
  signal: told.signal,
});
// What a command left open (an idle connection to the engine, say) must not hold the program.
process.exitCode = code;
setTimeout(() => process.exit(code), 500).unref();
