/** A folder that is the host's own, and what it is, for messages. */
export interface OwnFolder {
  path: string;
  what: string;
}

/** What no instance may have, not even to read. */
const NEVER: readonly OwnFolder[] = [
  { path: '/proc', what: 'the processes of the host' },
  { path: '/sys', what: 'the kernel and the cgroups of the host' },
  { path: '/dev', what: 'the devices of the host' },
  { path: '/run', what: 'the sockets of the host, that of its Docker engine among them' },
  { path: '/var/lib/docker', what: "the data of the host's Docker engine, with every service's image and checkpoint" },
];

/** What the host itself runs and is configured by: whoever could write there would rule it. */
const NEVER_TO_WRITE: readonly OwnFolder[] = [
  ...['/usr', '/bin', '/sbin', '/lib', '/lib64'].map((path) => ({ path, what: 'the programs of the host' })),
  { path: '/etc', what: 'the configuration of the host' },
  { path: '/root', what: "the home of the host's root" },
  { path: '/opt/initless', what: 'the agent' },
];

/**
 * Why a path of the host must not be mounted into an instance, or undefined when it may. Pure.
 *
 * @param real absolute path, links resolved.
 * @param own more folders that no instance may have: where checkpoints and the agent's state lie.
 */
export function refusal(real: string, readOnly: boolean, own: readonly OwnFolder[]): string | undefined {
  if (real === '/') return 'it is the whole host';
  const hit = [...NEVER, ...own].find((one) => touches(real, one.path));
  if (hit !== undefined) return reason(real, hit);
  const writable = readOnly ? undefined : NEVER_TO_WRITE.find((one) => touches(real, one.path));
  return writable && `${reason(real, writable)}, which can be had read-only at most`;
}

function reason(real: string, { path, what }: OwnFolder): string {
  return real === path || isBelow(real, path) ? `${path} is ${what}` : `${path}, which is in it, is ${what}`;
}

function touches(a: string, b: string): boolean {
  return a === b || isBelow(a, b) || isBelow(b, a);
}

function isBelow(path: string, folder: string): boolean {
  return path.startsWith(`${folder}/`);
}
