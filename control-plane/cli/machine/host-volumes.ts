import { posix } from 'node:path';
import { InitlessError } from '../../../proto/rpc/errors.js';

/** A folder or file of this machine that a host has too, so that services on it can have it as a volume. */
export interface HostVolume {
  /** Absolute path on this machine. */
  machine: string;
  /** Absolute path in the host. */
  host: string;
  readOnly: boolean;
}

/** Folders of a host in which nothing else belongs: the kernel's, its sockets, its engine's data, its agent. */
const OWN = ['/proc', '/sys', '/dev', '/run', '/var/run', '/var/lib/docker', '/opt/initless'];
/** Those that it needs as they are; something may lie in them. */
const NEEDED = ['/etc', '/usr', '/bin', '/sbin', '/lib', '/lib64', '/tmp'];

/** Reads "/path/on/the/machine:/path/in/the/host[:ro]", as `docker run --volume` has it. Throws BAD_REQUEST. */
export function parseHostVolume(text: string): HostVolume {
  const [machine = '', host = '', mode = 'rw', ...more] = text.split(':');
  const wrong = (why: string) =>
    new InitlessError('BAD_REQUEST', `'${text}' is not a volume of a host: ${why}`, {
      subject: 'volume',
      nextStep: 'give it as /path/on/this/machine:/path/in/the/host, with :ro behind it where nobody shall write to it',
    });
  if (more.length > 0 || (mode !== 'ro' && mode !== 'rw')) throw wrong("what follows the second colon is 'ro' or 'rw'");
  for (const path of [machine, host]) {
    if (!path.startsWith('/') || path.split('/').includes('..') || /\p{Cc}/u.test(path)) {
      throw wrong(`${JSON.stringify(path)} is not an absolute path without '..'`);
    }
  }
  const inside = tidy(host);
  const hides = inside === '/' || [...OWN, ...NEEDED].some((folder) => folder === inside || isBelow(folder, inside));
  if (hides || OWN.some((folder) => isBelow(inside, folder))) throw wrong(`the host itself needs its ${inside}`);
  return { machine: tidy(machine), host: inside, readOnly: mode === 'ro' };
}

/** The same as a text. */
export function hostVolumeText({ machine, host, readOnly }: HostVolume): string {
  return `${machine}:${host}${readOnly ? ':ro' : ''}`;
}

/** Volumes as they are written down on a host's container; none: nothing. */
export function recordVolumes(volumes: readonly HostVolume[]): string | undefined {
  return volumes.length === 0 ? undefined : JSON.stringify(inOrder(volumes).map(hostVolumeText));
}

/** What {@link recordVolumes} wrote. */
export function recordedVolumes(record: string | undefined): HostVolume[] {
  return record === undefined ? [] : (JSON.parse(record) as string[]).map(parseHostVolume);
}

/**
 * The volumes that a host is to have: those that it has, else those that are asked for.
 *
 * @param asked undefined: whatever it has.
 * @param present those of the host's container; undefined: there is none.
 * Throws BAD_REQUEST for two at one place, NOT_ALLOWED when a host that is there has others: a change stops what runs
 * on it, and is not to come with a repeated command.
 */
export function volumesToHave(
  host: string,
  asked: readonly HostVolume[] | undefined,
  present: readonly HostVolume[] | undefined,
): HostVolume[] {
  const places = (asked ?? []).map((volume) => volume.host);
  const twice = places.find((place, index) => places.indexOf(place) !== index);
  if (twice !== undefined) throw new InitlessError('BAD_REQUEST', `two volumes cannot both be at ${twice}`);
  if (asked === undefined || present === undefined) return inOrder(asked ?? present ?? []);
  if (recordVolumes(asked) === recordVolumes(present)) return inOrder(present);
  const has = present.length === 0 ? 'no volumes' : inOrder(present).map(hostVolumeText).join(', ');
  const flags = inOrder(asked).map((volume) => ` --volume ${hostVolumeText(volume)}`);
  throw new InitlessError('NOT_ALLOWED', `the host ${host} is there with ${has}`, {
    subject: host,
    nextStep: `to change that: initless host down ${host}, then initless host up ${host}${flags.join('')}; images and checkpoints stay`,
  });
}

function inOrder(volumes: readonly HostVolume[]): HostVolume[] {
  return [...volumes].sort((a, b) => (a.host < b.host ? -1 : 1));
}

/** Without doubled or closing slashes. */
function tidy(path: string): string {
  return posix.normalize(path).replace(/(?<=.)\/$/, '');
}

function isBelow(path: string, folder: string): boolean {
  return path.startsWith(`${folder}/`);
}
