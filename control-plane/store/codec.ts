import { createHash } from 'node:crypto';
import { Problem, ServiceConfig } from '../../proto/gen/initless/v1/types.js';
import type {
  HostRecord,
  MadeRevision,
  Making,
  PendingRevision,
  RevisionRecord,
  ServiceRecord,
} from '../core/model.js';

/**
 * Records as they stand on disk: one line of JSON with the version of its form and a checksum of its content, so that a
 * flipped bit is refused and a later version can read what an earlier one wrote.
 */

/** Version of the form. It grows with a change that this version could not read. */
export const RECORD_VERSION = 1;

/** Why a record cannot be read. */
export class DamagedRecord extends Error {}

/** A service's record as a text. */
export function encodeService(record: ServiceRecord): string {
  return seal({
    ...record,
    config: ServiceConfig.toJSON(record.config),
    current: record.current && encodeMade(record.current),
    pending: record.pending && { ...encodeRevision(record.pending), making: encodeMaking(record.pending.making) },
    previous: record.previous.map(encodeMade),
  });
}

/** The record a text stands for. Errors: {@link DamagedRecord}. */
export function decodeService(text: string): ServiceRecord {
  const raw = unseal(text) as unknown as ServiceRecord;
  const record: ServiceRecord = {
    name: raw.name,
    source: raw.source,
    config: ServiceConfig.fromJSON(raw.config),
    folder: raw.folder,
    folderGone: raw.folderGone,
    removed: raw.removed,
    updatedAt: raw.updatedAt,
    host: raw.host,
    // A record of the time when a service was on one host, and kept one revision, has neither list.
    hosts: raw.hosts ?? (raw.host === '' ? [] : [raw.host]),
    previous: [raw.previous ?? []].flat().map(decodeMade),
  };
  if (raw.rolledBack) record.rolledBack = true;
  if (raw.current) record.current = decodeMade(raw.current);
  if (raw.pending) {
    const pending: PendingRevision = { ...decodeRevision(raw.pending), making: decodeMaking(raw.pending.making) };
    record.pending = pending;
  }
  return record;
}

/** A host's record as a text. */
export function encodeHost(record: HostRecord): string {
  return seal(record);
}

/** The record a text stands for. Errors: {@link DamagedRecord}. */
export function decodeHost(text: string): HostRecord {
  const raw = unseal(text) as unknown as HostRecord;
  const { name, leaseAddress, identity = '', cordoned = false, drainingSince, drainForced } = raw;
  return {
    ...{ name, leaseAddress, identity, cordoned },
    ...(drainingSince !== undefined && { drainingSince }),
    ...(drainForced && { drainForced }),
  };
}

/** How a service is used, plain JSON, as a text. */
export function encodeHistory(history: unknown): string {
  return seal({ history });
}

/** What a text says of how a service is used. Errors: {@link DamagedRecord}. */
export function decodeHistory(text: string): unknown {
  return unseal(text).history;
}

function encodeRevision(revision: RevisionRecord) {
  const { id, contextDigest, createdAt, config } = revision;
  return { id, contextDigest, createdAt, config: ServiceConfig.toJSON(config) };
}

function decodeRevision(raw: RevisionRecord): RevisionRecord {
  const { id, contextDigest, createdAt, config } = raw;
  return { id, contextDigest, createdAt, config: ServiceConfig.fromJSON(config) };
}

function encodeMade(revision: MadeRevision) {
  return {
    ...encodeRevision(revision),
    imageId: revision.imageId,
    host: revision.host,
    madeAt: revision.madeAt,
    problem: revision.problem && Problem.toJSON(revision.problem),
    making: revision.making && encodeMaking(revision.making),
  };
}

function decodeMade(raw: MadeRevision): MadeRevision {
  const made: MadeRevision = { ...decodeRevision(raw), imageId: raw.imageId, host: raw.host, madeAt: raw.madeAt };
  if (raw.problem) made.problem = Problem.fromJSON(raw.problem);
  if (raw.making) made.making = decodeMaking(raw.making);
  return made;
}

function encodeMaking(making: Making) {
  return making.kind === 'failed' ? { ...making, problem: Problem.toJSON(making.problem) } : making;
}

function decodeMaking(raw: Making): Making {
  return raw.kind === 'failed' ? { kind: 'failed', problem: Problem.fromJSON(raw.problem), at: raw.at } : raw;
}

function seal(content: object): string {
  const text = JSON.stringify(content);
  return JSON.stringify({ version: RECORD_VERSION, sha256: checksum(text), content: text });
}

function unseal(text: string): Record<string, unknown> {
  let envelope: { version?: unknown; sha256?: unknown; content?: unknown };
  try {
    envelope = JSON.parse(text) as typeof envelope;
  } catch {
    throw new DamagedRecord('it is not JSON');
  }
  if (typeof envelope.content !== 'string' || envelope.sha256 !== checksum(envelope.content)) {
    throw new DamagedRecord('its checksum is wrong');
  }
  if (envelope.version !== RECORD_VERSION) {
    throw new DamagedRecord(`it was written by another version (form ${String(envelope.version)})`);
  }
  return JSON.parse(envelope.content) as Record<string, unknown>;
}

function checksum(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}
