import { pino } from 'pino';
import { startControlPlane } from '../../../control-plane/main.js';

/** The real control plane in a process of its own, which can be measured. Tells its ports; ends when told, or with its parent. */

const [stateDir, settingsPath] = process.argv.slice(2);
const controlPlane = await startControlPlane({
  project: 'bench-scale',
  stateDir: stateDir!,
  settingsPath: settingsPath!,
  listen: '127.0.0.1:0',
  httpListen: '127.0.0.1:0',
  logger: pino({ level: 'error' }, pino.destination(2)),
  env: {},
});
process.send?.({ grpcPort: controlPlane.grpcPort, httpPort: controlPlane.httpPort });
const stop = () => void controlPlane.stop().finally(() => process.exit(0));
process.on('SIGTERM', stop);
process.on('disconnect', stop);
