import { createInterface } from 'node:readline';
import { addAbortSignal, type Readable } from 'node:stream';
import { finished } from 'node:stream/promises';
import type Docker from 'dockerode';
import { withDeadline } from '../../../proto/rpc/deadline.js';
import { type ErrorCode, InitlessError } from '../../../proto/rpc/errors.js';

const CALL_MS = 30_000;
const TAIL_LINES = 30;

/** An image of the machine's engine by tag or id; undefined when it has none of that name. */
export async function findImage(
  docker: Docker,
  name: string,
  signal?: AbortSignal,
): Promise<Docker.ImageInspectInfo | undefined> {
  try {
    return await withDeadline(CALL_MS, `the engine's answer about ${name}`, signal, () =>
      docker.getImage(name).inspect(),
    );
  } catch (error) {
    if ((error as { statusCode?: number }).statusCode === 404) return undefined;
    throw error;
  }
}

/**
 * Makes a stream fit to be sent to the engine: the client library pipes it and does not look at its errors, so an error
 * aborts the signal that is given back, with that error as the reason.
 */
export function upload(stream: Readable, signal: AbortSignal): { stream: Readable; signal: AbortSignal } {
  const failed = new AbortController();
  stream.once('error', (error) => failed.abort(error));
  return { stream, signal: AbortSignal.any([signal, failed.signal]) };
}

/** One message of a pull, an import or a build; many have neither text nor error. */
interface Message {
  stream?: string;
  status?: string;
  error?: string;
}

/**
 * Reads an engine's stream of messages, one JSON object a line, to its end. Throws `errorCode` with the last lines when
 * it reports an error or breaks off, and the signal's reason as soon as that aborts.
 */
export async function followOutput(
  stream: NodeJS.ReadableStream,
  errorCode: ErrorCode,
  signal: AbortSignal,
  onLine: (line: string) => void,
): Promise<void> {
  const tail: string[] = [];
  try {
    const lines = createInterface({ input: addAbortSignal(signal, stream as Readable) });
    // readline ends quietly when its input breaks, so the input's own end is waited for as well.
    const ended = finished(stream);
    ended.catch(() => {});
    for await (const line of lines) {
      if (line === '') continue;
      const message = JSON.parse(line) as Message;
      if (message.error !== undefined) throw new Error(message.error.trim());
      for (const text of (message.stream ?? message.status ?? '').split('\n')) {
        if (text.trim() === '') continue;
        tail.push(text);
        if (tail.length > TAIL_LINES) tail.shift();
        onLine(text);
      }
    }
    await ended;
  } catch (error) {
    signal.throwIfAborted();
    const message = error instanceof Error ? error.message : String(error);
    throw new InitlessError(errorCode, message, { outputTail: tail, cause: error });
  }
}
