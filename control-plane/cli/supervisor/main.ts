import { RunFiles } from './files.js';
import { rotateLog } from './rotate-log.js';
import { supervise } from './supervise.js';

// Started by `initless up`, detached: `node main.js RUN_FOLDER`. Its log is RUN_FOLDER/supervisor.log.
const folder = process.argv[2];
if (folder === undefined) throw new Error('the run folder is missing');
const files = new RunFiles(folder);
const say = (line: string) => {
  rotateLog(files.log('supervisor'));
  process.stdout.write(`${new Date().toISOString()} ${line}\n`);
};
const told = new AbortController();
for (const name of ['SIGTERM', 'SIGINT'] as const) process.on(name, () => told.abort());
process.on('SIGHUP', () => {}); // The terminal it was started from may close.

const plan = files.readPlan();
if (!plan) throw new Error(`${folder} holds no plan`);
if (files.claim()) {
  try {
    await supervise(plan, files, told.signal, say);
  } finally {
    files.release();
  }
} else {
  say('another supervisor is running');
}
