import type { Problem, ServiceConfig } from '../../proto/gen/initless/v1/types.js';
import type { MadeRevision, Making, ServiceRecord, Wanted } from './model.js';
import { revisionId, sameConfig } from './revision.js';

/** A service as it comes in, checked. */
export interface Incoming {
  source: ServiceRecord['source'];
  config: ServiceConfig;
  /** Folder below `code_dir`. Empty: uploaded. */
  folder: string;
  /** Digest of the archive. */
  contextDigest: string;
  /** Digest of the folder without `config.yaml`. */
  contentDigest: string;
}

/** Begin at once. */
export const WANTED: Wanted = { kind: 'wanted', force: false, attempts: 0, notBefore: 0 };

/**
 * What becomes of a service's record when the service comes in, new or again.
 *
 * @param explicit a person asked for it: what failed, or could not be checkpointed, is tried again. What is merely read
 * again (a start, a file that was touched) is not.
 */
export function accept(
  existing: ServiceRecord | undefined,
  incoming: Incoming,
  explicit: boolean,
  now: number,
): { record: ServiceRecord; changed: boolean } {
  const { source, config, folder } = incoming;
  const id = revisionId(incoming.contentDigest, config);
  const fresh = { id, contextDigest: incoming.contextDigest, createdAt: now, config };
  const base = { name: config.serviceName, source, config, folder, folderGone: false, removed: false };
  if (existing === undefined || existing.removed) {
    const record: ServiceRecord = {
      ...base,
      updatedAt: now,
      host: '',
      hosts: [],
      previous: [],
      pending: { ...fresh, making: WANTED },
    };
    return { record, changed: true };
  }
  const next: ServiceRecord = { ...existing, ...base };
  const { current, pending } = existing;
  if (current?.id === id) {
    delete next.pending;
    const failed = current.making?.kind === 'failed' || (current.problem !== undefined && !current.making);
    if (explicit && failed) next.current = { ...current, making: { ...WANTED, force: true } };
    // Whoever applies what serves wants it to go on so.
    if (explicit) delete next.rolledBack;
  } else if (existing.rolledBack && !explicit && existing.previous.some((one) => one.id === id)) {
    // Somebody went back from it; that it is still in its folder does not undo that.
    return { record: existing, changed: false };
  } else if (pending?.id === id) {
    if (explicit && pending.making.kind === 'failed') next.pending = { ...pending, making: WANTED };
  } else {
    next.pending = { ...fresh, making: WANTED };
  }
  const changed =
    next.pending !== existing.pending ||
    next.current !== existing.current ||
    existing.folderGone ||
    existing.folder !== folder ||
    !sameConfig(config, existing.config);
  return { record: { ...next, updatedAt: changed ? now : existing.updatedAt }, changed };
}

/** What becomes of it when its folder is not there any more. */
export function folderVanished(record: ServiceRecord, now: number): ServiceRecord {
  return { ...record, folderGone: true, updatedAt: now };
}

/** What becomes of it when it is removed: nothing is served, and every host forgets it. */
export function markRemoved(record: ServiceRecord, now: number): ServiceRecord {
  return { ...record, removed: true, updatedAt: now };
}

/** What came of making a revision on a host. */
export type MakingResult =
  | { kind: 'made'; imageId: string; problem: Problem | undefined }
  | { kind: 'failed'; problem: Problem }
  /** The host was lost, or its engine was: nothing is known of the revision itself. */
  | { kind: 'lost'; problem: Problem }
  /** We stopped it. */
  | { kind: 'cancelled' };

/** Earlier revisions that a record names at most; how many are kept on hosts is a setting. */
const MAX_PREVIOUS = 100;
/** Pauses before a build that was cut short is begun again, by the number of times that it was. */
const RETRY_AFTER_MS = [2_000, 10_000, 30_000];

/** What becomes of a service's record when making one of its revisions ended. */
export function applyMaking(
  record: ServiceRecord,
  revision: string,
  host: string,
  result: MakingResult,
  now: number,
): ServiceRecord {
  const { current, pending } = record;
  if (current?.id === revision) return { ...record, current: remade(current, host, result, now) };
  if (pending?.id !== revision) return record;
  if (result.kind !== 'made') return { ...record, pending: { ...pending, making: next(pending.making, result, now) } };
  const { making: _, ...base } = pending;
  const made: MadeRevision = { ...base, imageId: result.imageId, host, madeAt: now };
  if (result.problem !== undefined) made.problem = result.problem;
  const { pending: __, rolledBack: ___, ...rest } = record;
  return { ...rest, current: made, previous: withPrevious(record.previous, current, made.id) };
}

/** The latest first, each once, without what serves. */
function withPrevious(
  previous: readonly MadeRevision[],
  last: MadeRevision | undefined,
  serves: string,
): MadeRevision[] {
  const all = last === undefined ? previous : [withoutMaking(last), ...previous];
  const ids = all.map((one) => one.id);
  return all.filter((one, index) => one.id !== serves && ids.indexOf(one.id) === index).slice(0, MAX_PREVIOUS);
}

/**
 * What becomes of a service's record when somebody goes back to an earlier revision. Undefined: there is none of that id.
 *
 * @param revision Empty: the one that served before.
 */
export function rollBack(record: ServiceRecord, revision: string, now: number): ServiceRecord | undefined {
  const { pending: _, ...rest } = record;
  const earlier = record.previous.find((one) => revision === '' || one.id === revision);
  if (earlier === undefined) return undefined;
  const previous = withPrevious(record.previous, record.current, earlier.id);
  return { ...rest, current: earlier, previous, rolledBack: true, updatedAt: now };
}

/** What becomes of it when a host that has its current revision is back before it was made again. */
export function keepMade(record: ServiceRecord): ServiceRecord {
  return record.current === undefined ? record : { ...record, current: withoutMaking(record.current) };
}

function remade(current: MadeRevision, host: string, result: MakingResult, now: number): MadeRevision {
  if (result.kind !== 'made') {
    // What is not to be made again any more ended in vain, and nothing is to be done about it.
    return current.making === undefined ? current : { ...current, making: next(current.making, result, now) };
  }
  const keepsCheckpoint = current.problem === undefined && current.host === host;
  if (result.problem !== undefined && keepsCheckpoint) {
    // The checkpoint that is there is better than none.
    return { ...current, making: { kind: 'failed', problem: result.problem, at: now } };
  }
  const { problem: _, ...base } = withoutMaking(current);
  const made = { ...base, imageId: result.imageId, host, madeAt: now };
  return result.problem === undefined ? made : { ...made, problem: result.problem };
}

function withoutMaking(revision: MadeRevision): MadeRevision {
  const { making: _, ...rest } = revision;
  return rest;
}

function next(making: Making, result: Exclude<MakingResult, { kind: 'made' }>, now: number): Making {
  switch (result.kind) {
    case 'cancelled':
      return making;
    case 'failed':
      return { kind: 'failed', problem: result.problem, at: now };
    case 'lost': {
      const attempts = making.kind === 'wanted' ? making.attempts : 0;
      const pause = RETRY_AFTER_MS[attempts];
      if (pause === undefined) return { kind: 'failed', problem: result.problem, at: now };
      const force = making.kind === 'wanted' && making.force;
      return { kind: 'wanted', force, attempts: attempts + 1, notBefore: now + pause };
    }
  }
}
