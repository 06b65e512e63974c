import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { BuildStatus } from '../../proto/gen/buildkit/status.js';

/** One line of Docker's answer to a build. */
interface BuildEvent {
  id?: string;
  aux?: unknown;
  stream?: string;
  error?: string;
  errorDetail?: { message?: string };
}

/**
 * Reads Docker's answer to a build to its end and gives what it prints to `onLine`, line by line: steps as they begin,
 * what they print, the classic builder's text.
 * Errors: the build's own, as an Error with its message; the signal's reason.
 */
export async function followBuild(
  answer: Readable,
  onLine: (line: string) => void,
  signal: AbortSignal,
): Promise<void> {
  const onAbort = () => answer.destroy(signal.reason instanceof Error ? signal.reason : new Error('aborted'));
  signal.addEventListener('abort', onAbort, { once: true });
  const begun = new Set<string>();
  const partial = new Map<string, string>();
  let failure: string | undefined;
  try {
    for await (const text of createInterface({ input: answer, crlfDelay: Number.POSITIVE_INFINITY })) {
      if (text.trim() === '') continue;
      const event = JSON.parse(text) as BuildEvent;
      if (event.error) failure = event.errorDetail?.message ?? event.error;
      if (event.stream) for (const line of event.stream.split('\n')) if (line.trim() !== '') onLine(line.trimEnd());
      if (event.id === 'moby.buildkit.trace' && typeof event.aux === 'string') {
        show(BuildStatus.decode(Buffer.from(event.aux, 'base64')), begun, partial, onLine);
      }
    }
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
  signal.throwIfAborted();
  if (failure !== undefined) throw new Error(failure);
}

function show(
  status: BuildStatus,
  begun: Set<string>,
  partial: Map<string, string>,
  onLine: (line: string) => void,
): void {
  for (const step of status.vertexes) {
    if (step.started && !begun.has(step.digest)) {
      begun.add(step.digest);
      onLine(`${step.name}${step.cached ? ' (cached)' : ''}`);
    }
    if (step.error) onLine(`${step.name}: ${step.error}`);
  }
  for (const log of status.logs) {
    const lines = ((partial.get(log.vertex) ?? '') + log.msg.toString('utf8')).split(/\r?\n/);
    partial.set(log.vertex, (lines.pop() ?? '').slice(-4096));
    for (const line of lines) if (line.trim() !== '') onLine(line.trimEnd());
  }
}
