import { readdirSync, readFileSync } from 'node:fs';
import { INNER_ADDRESS } from './sandbox.js';

/** A process, recognised also after its number was given to another one. */
export interface ProcessId {
  pid: number;
  /** Start time in clock ticks since boot: field 22 of /proc/PID/stat. */
  startedAt: string;
}

/** The process that has this number now, or undefined when there is none. */
export function identify(pid: number): ProcessId | undefined {
  const fields = statFields(pid);
  return fields ? { pid, startedAt: fields[19] ?? '' } : undefined;
}

/** Of a process's flags: it is ending. It may have closed its sockets and still take a while to give its memory back. */
const PF_EXITING = 0x4;

/** Whether a process is still there and not ending, or a zombie. */
export function isAlive(id: ProcessId): boolean {
  const fields = statFields(id.pid);
  if (fields === undefined || fields[19] !== id.startedAt) return false;
  return fields[0] !== 'Z' && fields[0] !== 'X' && (Number(fields[6]) & PF_EXITING) === 0;
}

/** The fields of /proc/PID/stat from the third (state) on; the second may hold spaces and brackets. */
function statFields(pid: number): string[] | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return text.slice(text.lastIndexOf(')') + 2).split(' ');
  } catch {
    // No such process.
    return undefined;
  }
}

/** A TCP socket that listens in a process's network namespace. */
export interface ListeningSocket {
  /** Address as text: "0.0.0.0", "127.0.0.1", "::" ... */
  address: string;
  port: number;
}

/** TCP sockets that listen in a process's network namespace, read from /proc/PID/net/tcp and tcp6. */
export function listening(pid: number): ListeningSocket[] {
  return [...parseTcp(readOrEmpty(`/proc/${pid}/net/tcp`)), ...parseTcp(readOrEmpty(`/proc/${pid}/net/tcp6`))];
}

/** The listening sockets in a /proc/net/tcp or tcp6 table. Pure. */
export function parseTcp(table: string): ListeningSocket[] {
  const found: ListeningSocket[] = [];
  for (const line of table.split('\n').slice(1)) {
    const [, local, , state] = line.trim().split(/\s+/);
    if (local === undefined || state !== '0A') continue;
    const [hex, port] = local.split(':') as [string, string];
    found.push({ address: addressOf(hex), port: Number.parseInt(port, 16) });
  }
  return found;
}

/** The kernel prints addresses as 32-bit words in the machine's byte order (little-endian wherever this runs). */
function addressOf(hex: string): string {
  const bytes: number[] = [];
  for (let word = 0; word < hex.length; word += 8) {
    for (let at = 6; at >= 0; at -= 2) bytes.push(Number.parseInt(hex.slice(word + at, word + at + 2), 16));
  }
  if (bytes.length === 4) return bytes.join('.');
  if (bytes.every((byte) => byte === 0)) return '::';
  if (bytes.slice(0, 15).every((byte) => byte === 0) && bytes[15] === 1) return '::1';
  if (bytes.slice(0, 10).every((byte) => byte === 0) && bytes[10] === 255 && bytes[11] === 255)
    return bytes.slice(12).join('.');
  const groups = Array.from({ length: 8 }, (_, at) =>
    (((bytes[2 * at] ?? 0) << 8) | (bytes[2 * at + 1] ?? 0)).toString(16),
  );
  return groups.join(':');
}

/** Why nothing outside reaches `port`, and what to do; undefined when something listens where it should. Pure. */
export function whyUnreachable(
  sockets: readonly ListeningSocket[],
  port: number,
): { what: string; nextStep: string } | undefined {
  const reachable = (socket: ListeningSocket) => ['0.0.0.0', '::', INNER_ADDRESS].includes(socket.address);
  const shown = (list: readonly ListeningSocket[]) =>
    [...new Set(list.map((socket) => `${socket.address}:${socket.port}`))].join(', ');
  const right = sockets.filter((socket) => socket.port === port);
  if (right.some(reachable)) return undefined;
  if (right.length > 0) {
    return {
      what: `it listens on ${shown(right)} only, which nothing outside the instance reaches`,
      nextStep: `make it listen on 0.0.0.0:${port}`,
    };
  }
  if (sockets.length === 0) {
    return {
      what: `nothing listens on port ${port}, nor on any other`,
      nextStep: 'see its output for why it does not listen',
    };
  }
  return {
    what: `nothing listens on port ${port} (service_port); it listens on ${shown(sockets)}`,
    nextStep: "correct 'service_port' in config.yaml, or the port that the service opens",
  };
}

function readOrEmpty(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    // The process is gone, or there is no IPv6.
    return '';
  }
}

/** CPU time that all threads of processes have used, milliseconds; threads that have ended do not count. */
export function cpuTime(pids: Iterable<number>): number {
  let nanoseconds = 0;
  for (const pid of pids) {
    for (const thread of entriesOf(`/proc/${pid}/task`)) {
      nanoseconds += Number(readOrEmpty(`/proc/${pid}/task/${thread}/schedstat`).split(' ')[0]);
    }
  }
  return nanoseconds / 1e6;
}

function entriesOf(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    // No such process.
    return [];
  }
}
