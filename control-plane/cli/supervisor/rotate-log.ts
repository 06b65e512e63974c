import { copyFileSync, renameSync, rmSync, statSync, truncateSync } from 'node:fs';

/** Size from which a log is rotated. */
export const LOG_BYTES = 10 * 1024 * 1024;
/** Earlier logs that are kept: FILE.1 is the latest. */
const KEPT = 3;

/**
 * Rotates a log that has grown to `limit` bytes. It is copied and emptied, not renamed: the process that writes it, with
 * O_APPEND, keeps its descriptor and needs no supervisor to be alive. A line written in between may be lost.
 *
 * @returns whether it was rotated.
 */
export function rotateLog(path: string, limit = LOG_BYTES): boolean {
  const size = statSync(path, { throwIfNoEntry: false })?.size ?? 0;
  if (size < limit) return false;
  rmSync(`${path}.${KEPT}`, { force: true });
  for (let n = KEPT - 1; n >= 1; n -= 1) {
    if (statSync(`${path}.${n}`, { throwIfNoEntry: false })) renameSync(`${path}.${n}`, `${path}.${n + 1}`);
  }
  copyFileSync(path, `${path}.1`);
  truncateSync(path);
  return true;
}
