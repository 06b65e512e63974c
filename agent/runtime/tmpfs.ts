import path from 'node:path';
import { readIfThere } from './files.js';

/** Beside a dump's images: the tmpfs that a restore makes itself; see {@link TmpfsPlan}. */
export const TMPFS_FILE = 'tmpfs.json';

/**
 * A tmpfs of a dumped instance with all that is in it, for the restore to make and to hand to CRIU as a mount from outside.
 * CRIU itself would run tar for it, which takes 4 to 8 ms, to unpack a few folders, links and devices, or nothing.
 */
export interface TmpfsPlan {
  /** The name that the images call it by. */
  key: string;
  /** As mount(2) takes them. */
  source: string;
  options: string;
  readOnly: boolean;
  /** The first is its root, "." */
  entries: TmpfsEntry[];
}

/** A folder, link or device in a tmpfs, after the folder that it is in. */
export type TmpfsEntry = {
  /** Relative to the root. */
  path: string;
  uid: number;
  gid: number;
} & (
  | { type: 'directory'; mode: number }
  | { type: 'link'; target: string }
  | { type: 'c' | 'b'; mode: number; major: number; minor: number }
);

/** The plans beside a dump's images; none for a dump that CRIU restores all of. */
export async function readTmpfsPlans(images: string): Promise<TmpfsPlan[]> {
  const text = await readIfThere(path.join(images, TMPFS_FILE));
  return text === '' ? [] : (JSON.parse(text) as TmpfsPlan[]);
}

/** Steps for enter.c that make one at `dir`. */
export function tmpfsSteps(plan: TmpfsPlan, dir: string): string[] {
  const steps = ['tmpfs', dir, plan.source, plan.options];
  for (const entry of plan.entries) {
    const owner = [String(entry.uid), String(entry.gid)];
    const at = path.join(dir, entry.path);
    if (entry.type === 'link') steps.push('link', at, ...owner, entry.target);
    else if (entry.type === 'directory') steps.push('folder', at, ...owner, entry.mode.toString(8));
    else
      steps.push('device', at, ...owner, entry.mode.toString(8), entry.type, String(entry.major), String(entry.minor));
  }
  return plan.readOnly ? [...steps, 'read-only', dir] : steps;
}
