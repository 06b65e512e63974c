import { hostname } from 'node:os';
import { parseArgs } from 'node:util';
import { InitlessError, toInitlessError } from '../proto/rpc/errors.js';
import { splitAddress } from './address.js';
import { type GatewayOptions, runGateway } from './gateway.js';
import { createLog } from './log.js';

/** Requests in flight have this long, milliseconds, to end when the gateway stops. */
const DRAIN_MS = 10_000;

/** The gateway as a program: flags, else INITLESS_* variables, else defaults. */
async function main(): Promise<void> {
  const options = readOptions(process.argv.slice(2), process.env);
  const stopping = new AbortController();
  for (const name of ['SIGTERM', 'SIGINT'] as const) {
    process.on(name, () => {
      // Whoever asks twice does not want to wait for what is in flight.
      if (stopping.signal.aborted) process.exit(130);
      stopping.abort(new InitlessError('CANCELLED', `received ${name}`));
    });
  }
  await runGateway(options, stopping.signal);
}

function readOptions(args: string[], env: NodeJS.ProcessEnv): GatewayOptions {
  const { values } = parseArgs({
    args,
    options: {
      'control-plane': { type: 'string' },
      'http-listen': { type: 'string' },
      listen: { type: 'string', multiple: true },
      id: { type: 'string' },
    },
  });
  const httpListen = values['http-listen'] ?? env.INITLESS_GATEWAY_HTTP ?? '127.0.0.1:7074';
  // Of two gateways on one machine only one can listen there, and after a restart it is the same.
  const id = values.id ?? env.INITLESS_GATEWAY_ID ?? `${hostname()}/${httpListen}`;
  return {
    controlPlane: values['control-plane'] ?? env.INITLESS_SERVER ?? 'localhost:7070',
    http: hostAndPort(httpListen),
    listen: values.listen ?? ['127.0.0.1', '::1'],
    id,
    drainMs: DRAIN_MS,
    log: createLog({ gateway: id }),
  };
}

function hostAndPort(text: string): { host: string; port: number } {
  const address = splitAddress(text);
  if (!/^.+:\d{1,5}$/.test(text) || address.port > 65_535) {
    throw new InitlessError('BAD_REQUEST', `an address must be HOST:PORT, found ${JSON.stringify(text)}`, {
      nextStep: 'correct --http-listen',
    });
  }
  return address;
}

try {
  await main();
  process.exit(0);
} catch (thrown) {
  const { message, nextStep } = toInitlessError(thrown);
  process.stderr.write(`initless gateway: ${message}\n${nextStep ? `  next: ${nextStep}\n` : ''}`);
  process.exit(1);
}
