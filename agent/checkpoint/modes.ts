import { MemoryMode, type MemoryTrial } from '../../proto/gen/initless/v1/types.js';
import type { Verdict } from '../memory/allocators.js';

const { MEMORY_MODE_MAPPED: MAPPED, MEMORY_MODE_COPIED: COPIED, MEMORY_MODE_LAZY: LAZY } = MemoryMode;

/** What is known of a dump before any mode is tried. */
export interface DumpFacts {
  /** `memory` of the service; unspecified: auto. */
  wanted: MemoryMode;
  /** Undefined: mapping was not looked into, since another mode is wanted. */
  verdict: Verdict | undefined;
  /** Bytes that the dump holds. */
  bytes: number;
  /** Bytes of them that would be mapped; undefined: it was not, or could not be, rewritten. */
  mapped: number | undefined;
}

/** A mode, and why that one. */
export interface Choice {
  mode: MemoryMode;
  /** A sentence without its full stop. */
  reason: string;
}

/** Filling this much in the background pays for a daemon. */
const LAZY_BYTES = 256 * 1024 * 1024;
/** As much mapped saves memory that counts, so that time alone does not decide. */
const SHARED_BYTES = 4 * 1024 * 1024;
/** What one mode must be faster than another to be taken for its speed: single trials vary. */
const FASTER = 0.8;

/** Whether a service is to be started so that its memory may be mapped. */
export function mayBeMapped(wanted: MemoryMode): boolean {
  return wanted === MemoryMode.MEMORY_MODE_UNSPECIFIED || wanted === MAPPED;
}

/** Modes to try of a dump, in order. Copied memory is tried whenever another one may turn out wrong. Pure. */
export function modesToTry({ wanted, bytes, mapped }: DumpFacts): MemoryMode[] {
  if (wanted === COPIED) return [COPIED];
  if (wanted === LAZY) return [LAZY, COPIED];
  const modes = mapped === undefined ? [] : [MAPPED];
  const large = bytes >= LAZY_BYTES && mapped === undefined;
  return large && wanted !== MAPPED ? [...modes, LAZY, COPIED] : [...modes, COPIED];
}

/** The best mode of those that were tried and are right; undefined: none is. Pure. */
export function chooseMode(facts: DumpFacts, trials: readonly MemoryTrial[]): Choice | undefined {
  const { wanted, verdict, bytes, mapped } = facts;
  const trialOf = (mode: MemoryMode) => trials.find((trial) => trial.mode === mode);
  const right = (mode: MemoryMode) => {
    const trial = trialOf(mode);
    return trial?.problem === undefined ? trial : undefined;
  };
  if (wanted !== MemoryMode.MEMORY_MODE_UNSPECIFIED && right(wanted)) {
    return { mode: wanted, reason: `memory: ${nameOf(wanted)} is configured, and its trial was right` };
  }
  const copied = right(COPIED);
  const shared = right(MAPPED);
  if (shared) {
    const much = (mapped ?? 0) >= SHARED_BYTES;
    if (copied === undefined || much || shared.firstAnswerMs <= copied.firstAnswerMs / FASTER) {
      return {
        mode: MAPPED,
        reason: `${megabytes(mapped ?? 0)} of ${megabytes(bytes)} are mapped; ${verdict?.reason}`,
      };
    }
    return { mode: COPIED, reason: `only ${megabytes(mapped ?? 0)} could be mapped, and copying answers sooner` };
  }
  const lazy = right(LAZY);
  const why = notMapped(facts, trialOf(MAPPED));
  if (lazy && (copied === undefined || lazy.firstAnswerMs < copied.firstAnswerMs * FASTER)) {
    return { mode: LAZY, reason: `${why}; copying ${megabytes(bytes)} takes longer` };
  }
  if (copied === undefined) return undefined;
  const failed = wanted === LAZY ? `memory: lazy is configured, but its trial failed: ${problem(trialOf(LAZY))}` : why;
  return { mode: COPIED, reason: failed };
}

function notMapped({ wanted, verdict, mapped }: DumpFacts, trial: MemoryTrial | undefined): string {
  const configured = wanted === MAPPED ? 'memory: mapped is configured, but ' : '';
  if (trial?.problem) return `${configured}the trial of mapped memory failed: ${problem(trial)}`;
  if (verdict?.guard === 'never-mapped') return `${configured}it is never mapped: ${verdict.reason}`;
  if (mapped === undefined) return `${configured}none of its memory can be mapped`;
  return `${configured}mapped memory was not tried`;
}

function problem(trial: MemoryTrial | undefined): string {
  return trial?.problem?.message ?? 'it was not tried';
}

/** "mapped", "copied" or "lazy". */
export function nameOf(mode: MemoryMode): string {
  return { [MAPPED]: 'mapped', [COPIED]: 'copied', [LAZY]: 'lazy' }[mode as 1 | 2 | 3] ?? 'auto';
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(bytes < 10e6 ? 1 : 0)} MB`;
}
