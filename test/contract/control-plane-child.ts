import { pino } from 'pino';
import { startControlPlane } from '../../control-plane/main.js';

/** A control plane in a process of its own, which a test can kill. Prints its port. */
const [stateDir, codeDir] = process.argv.slice(2);
const controlPlane = await startControlPlane({
  project: 'test',
  stateDir: stateDir!,
  codeDir: codeDir!,
  listen: '127.0.0.1:0',
  httpListen: '127.0.0.1:0',
  logger: pino({ level: 'silent' }),
  env: {},
});
process.stdout.write(`port ${controlPlane.grpcPort}\n`);
