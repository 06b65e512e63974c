import { defineConfig } from 'vitest/config';
import { InOrder } from './test/e2e/order.js';

export default defineConfig({
  test: {
    sequence: { sequencer: InOrder },
    projects: [
      {
        // Pure parts, and servers against fakes on loopback: seconds, no root, no engine.
        test: {
          name: 'fast',
          include: ['test/unit/**/*.test.ts', 'test/contract/**/*.test.ts', 'test/sim/**/*.test.ts'],
          testTimeout: 30_000,
          hookTimeout: 30_000,
          maxWorkers: 2,
          minWorkers: 1,
        },
      },
      {
        // What takes long: soaks, density. `npm run test:full` runs them after everything else.
        test: {
          name: 'full',
          include: ['test/full/**/*.test.ts'],
          globalSetup: ['test/e2e/system.ts'],
          testTimeout: 3_600_000,
          hookTimeout: 900_000,
          fileParallelism: false,
          maxWorkers: 1,
          minWorkers: 1,
        },
      },
      {
        // The whole system on this machine, in a project of its own: real engine, runc and CRIU. One file at a time.
        test: {
          name: 'e2e',
          include: ['test/e2e/**/*.test.ts', 'test/fault/**/*.test.ts'],
          globalSetup: ['test/e2e/system.ts'],
          testTimeout: 300_000,
          hookTimeout: 900_000,
          fileParallelism: false,
          maxWorkers: 1,
          minWorkers: 1,
        },
      },
    ],
  },
});
