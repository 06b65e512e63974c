import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { AdminServiceImplementation, ApplyServiceRequest } from '../../../proto/gen/initless/v1/admin.js';
import { InitlessError } from '../../../proto/rpc/errors.js';
import { CONFIG_FILE } from '../../contexts/limits.js';
import { explain } from '../../core/explain.js';
import { markRemoved, rollBack, WANTED } from '../../core/intake.js';
import type { ServiceRecord } from '../../core/model.js';
import { agentDown, isBuilding } from '../../core/view.js';
import { type AdminParts, oddAnswer, serving, view } from './parts.js';

/** Largest piece of an upload in one message. */
const MAX_CHUNK_BYTES = 1024 * 1024;
/** What an agent needs around a start, and for a second try of a restore. */
const WAKE_SLACK_MS = 30_000;

type ServiceCalls = Pick<
  AdminServiceImplementation,
  | 'applyService'
  | 'getService'
  | 'listServices'
  | 'removeService'
  | 'rollbackService'
  | 'explainService'
  | 'wakeService'
  | 'createCheckpoint'
  | 'getInfo'
>;

/** Calls about services. */
export function serviceCalls(parts: AdminParts): ServiceCalls {
  const { registry, intake, reconciler, events } = parts;
  return {
    async applyService(requests) {
      const { record, changed } = await apply(parts, requests);
      return { service: view(parts, record), changed };
    },

    async getService({ serviceName }) {
      return { service: view(parts, registry.get(serviceName)) };
    },

    async listServices() {
      return { services: registry.list().map((record) => view(parts, record)) };
    },

    async removeService({ serviceName }) {
      await refuseFolder(parts, registry.get(serviceName));
      await registry.change(serviceName, (record) => markRemoved(record, Date.now()));
      events.add({ kind: 'service.removed', service: serviceName, message: `${serviceName} was removed` });
      await intake.collect();
      return {};
    },

    async rollbackService({ serviceName, revision }) {
      const record = await registry.change(serviceName, (existing) => goBack(parts, existing, revision));
      const id = record.current?.id ?? '';
      const message = `${serviceName} goes back to revision ${id}`;
      events.add({ kind: 'service.rolled_back', service: serviceName, revision: id, message });
      return { service: view(parts, record) };
    },

    async explainService({ serviceName }) {
      return explain(registry.get(serviceName), reconciler.snapshot(), Date.now());
    },

    async wakeService({ serviceName, host }, { signal }) {
      const { record, link } = serving(parts, serviceName, host);
      const { startTimeoutMs, healthCheckTimeoutMs } = record.config;
      const what = `waking ${serviceName} on ${link.name}`;
      const timeoutMs = startTimeoutMs + 2 * healthCheckTimeoutMs + WAKE_SLACK_MS;
      const outcome = await link.command(
        { $case: 'wake', value: { service: serviceName } },
        { what, timeoutMs, signal },
      );
      if (outcome.$case !== 'instance') throw oddAnswer(what, outcome.$case);
      return { instance: { ...outcome.value, host: link.name } };
    },

    async createCheckpoint({ serviceName }) {
      const before = registry.get(serviceName);
      const snapshot = reconciler.snapshot();
      const { host } = before;
      if (!snapshot.hosts.some((one) => one.connected)) {
        throw new InitlessError('NO_HOST', 'no host is connected', { nextStep: "run 'initless host up host1'" });
      }
      if (host !== '' && !snapshot.hosts.some((one) => one.name === host && one.connected)) {
        const { message, nextStep } = agentDown(host);
        throw new InitlessError('AGENT_DOWN', message, { subject: host, nextStep });
      }
      const record = await registry.change(serviceName, (existing) => {
        const wanted = [existing.pending, existing.current].some((one) => one?.making?.kind === 'wanted');
        if (wanted || isBuilding(existing, reconciler.snapshot())) {
          throw new InitlessError('BUSY', `${serviceName} is being made at this moment`, {
            subject: serviceName,
            nextStep: 'wait until it is made',
          });
        }
        return makeAgain(existing);
      });
      return { service: view(parts, record) };
    },

    async getInfo() {
      return parts.info();
    },
  };
}

async function apply(parts: AdminParts, requests: AsyncIterable<ApplyServiceRequest>) {
  const incoming = requests[Symbol.asyncIterator]();
  const first = await incoming.next();
  const source = first.done ? undefined : first.value.source;
  switch (source?.$case) {
    case 'folder':
      return await parts.intake.takeFolder(source.value, true);
    case 'upload':
      return await parts.intake.takeUpload(source.value.origin, chunksOf(incoming));
    default:
      throw new InitlessError('BAD_REQUEST', 'the first message says which folder, or starts an upload', {
        nextStep: 'send {"folder": "NAME"} for a folder below code_dir, or {"upload": {}} and then chunks',
      });
  }
}

async function* chunksOf(incoming: AsyncIterator<ApplyServiceRequest>): AsyncGenerator<Uint8Array> {
  for (;;) {
    const next = await incoming.next();
    if (next.done) return;
    const source = next.value.source;
    if (source?.$case !== 'chunk') throw new InitlessError('BAD_REQUEST', 'an upload goes on with chunks only');
    if (source.value.length > MAX_CHUNK_BYTES) {
      throw new InitlessError(
        'BAD_REQUEST',
        `a chunk has ${source.value.length} bytes, ${MAX_CHUNK_BYTES} are the most`,
      );
    }
    yield source.value;
  }
}

/** What failed is tried again; what was made is made anew. */
function makeAgain(record: ServiceRecord): ServiceRecord {
  if (record.current === undefined) {
    return record.pending === undefined ? record : { ...record, pending: { ...record.pending, making: WANTED } };
  }
  return { ...record, current: { ...record.current, making: { ...WANTED, force: true } } };
}

/** Errors: NOT_FOUND (no such revision is kept), NOT_ALLOWED (there is none before). */
function goBack(parts: AdminParts, record: ServiceRecord, revision: string): ServiceRecord {
  const kept = record.previous.slice(0, parts.reconciler.snapshot().policy.keepRevisions);
  const after = rollBack({ ...record, previous: kept }, revision, Date.now());
  if (after !== undefined) return after;
  const { name } = record;
  const nextStep = `'initless service inspect ${name}' lists the revisions that are kept (keep_revisions)`;
  if (revision === '') {
    throw new InitlessError('NOT_ALLOWED', `${name} has no earlier revision to go back to`, {
      subject: name,
      nextStep,
    });
  }
  throw new InitlessError('NOT_FOUND', `${name} has no earlier revision ${revision}`, { subject: name, nextStep });
}

/** A service whose folder is still below `code_dir` would come back at once. Errors: NOT_ALLOWED. */
async function refuseFolder(parts: AdminParts, record: ServiceRecord): Promise<void> {
  const { codeDir } = parts.info();
  if (record.folder === '' || record.folderGone || codeDir === '') return;
  const folder = join(codeDir, record.folder);
  const there = await stat(join(folder, CONFIG_FILE)).catch(() => undefined);
  if (there === undefined) return;
  throw new InitlessError('NOT_ALLOWED', `${record.name} comes from ${folder}, which would bring it back`, {
    subject: record.name,
    nextStep: `remove or move the folder ${folder} first; to stop serving it only, set is_enabled: false in its ${CONFIG_FILE}`,
  });
}
