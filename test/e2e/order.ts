import path from 'node:path';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** What fails quickly comes first, what ends the system last. */
const ORDER = [
  'e2e/foreground',
  'e2e/grpc',
  'e2e/services',
  'e2e/restore',
  'e2e/isolation',
  'e2e/failures',
  'e2e/samples',
  'e2e/pools',
  'e2e/mounts',
  'e2e/memory',
  'e2e/clocks',
  'e2e/fleet',
  'fault/load',
  'fault/lazy',
  'fault/recovery',
  'fault/disk',
  'fault/cleanup',
];

/** Runs test files in {@link ORDER}, others before them, by name. */
export class InOrder extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const place = ({ moduleId }: TestSpecification) =>
      ORDER.findIndex((name) => moduleId.endsWith(`test/${name}.test.ts`));
    return [...files].sort(
      (a, b) => place(a) - place(b) || path.basename(a.moduleId).localeCompare(path.basename(b.moduleId)),
    );
  }
}
