import { accessSync, constants, readFileSync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { createServer } from 'node:net';
import { release } from 'node:os';
import { delimiter, join } from 'node:path';
import { toInitlessError } from '../../proto/rpc/errors.js';
import type { CliContext } from './context.js';
import { formatBytes } from './format.js';
import { privilegeOf } from './machine/capabilities.js';
import { engineClient, engineStatus } from './machine/engine.js';
import { withAdminPath } from './machine/exec.js';
import { listHosts } from './machine/host.js';
import { execIn } from './machine/host-ready.js';
import { findImage } from './machine/images.js';
import { HOST_IMAGE } from './machine/names.js';
import { isReady } from './supervisor/control.js';

/** What one look at the machine gave. */
export interface Finding {
  check: string;
  /** "later": it cannot be looked at yet, and nothing is wrong. */
  state: 'ok' | 'later' | 'bad';
  /** What was found. */
  text: string;
  /** What to do; empty when nothing need be done. */
  nextStep: string;
}

const NODE_MAJOR = 20;
/** Debian 11's. CRIU takes older ones too, but nothing here was tried on them. */
const KERNEL = [5, 10] as const;
/** Base image, host image, the samples' images and their checkpoints, twice over. */
const DISK_BYTES = 8 * 1024 ** 3;
/** Programs, and the Debian packages that bring them. */
const PROGRAMS = { dockerd: 'docker.io', mmdebstrap: 'mmdebstrap', ip: 'iproute2', nft: 'nftables' } as const;

function finding(check: string, good: boolean, text: string, nextStep: string): Finding {
  return { check, state: good ? 'ok' : 'bad', text, nextStep: good ? '' : nextStep };
}

/** Whether a kernel release, as `uname -r` prints it, is at least the oldest that will do. */
export function kernelIsNewEnough(text: string): boolean {
  const [major = 0, minor = 0] = text.split('.').map((part) => Number.parseInt(part, 10));
  return major > KERNEL[0] || (major === KERNEL[0] && minor >= KERNEL[1]);
}

/** Looks at the machine and at what of the project is on it, one finding after the other. Changes nothing. */
export async function* examine(context: CliContext): AsyncGenerator<Finding> {
  yield finding(
    'root',
    process.geteuid?.() === 0,
    `user id ${process.geteuid?.()}`,
    'run it as root, for instance with sudo',
  );
  const node = process.versions.node;
  yield finding('node', Number.parseInt(node, 10) >= NODE_MAJOR, node, `install Node ${NODE_MAJOR} or newer`);
  yield finding('kernel', kernelIsNewEnough(release()), release(), `use a kernel from ${KERNEL.join('.')} on`);
  yield kernelFeatures();
  yield capabilities();
  yield programs(context.env);
  yield* engineAndHosts(context);
  yield* ports(context);
  yield await disk();
}

function kernelFeatures(): Finding {
  const has = (path: string) => {
    try {
      accessSync(path, constants.F_OK);
      return true;
    } catch {
      return false;
    }
  };
  const filesystems = readFileSync('/proc/filesystems', 'utf8');
  const missing = [
    // The kernel shows this file only when it was built with CONFIG_CHECKPOINT_RESTORE.
    ...(has('/proc/sys/kernel/ns_last_pid') ? [] : ['CONFIG_CHECKPOINT_RESTORE']),
    ...(/\toverlay$/m.test(filesystems) || has('/lib/modules') ? [] : ['the overlay file system']),
    ...['net', 'pid', 'mnt', 'ipc', 'uts', 'cgroup']
      .filter((name) => !has(`/proc/self/ns/${name}`))
      .map((name) => `${name} namespaces`),
  ];
  return finding(
    'kernel features',
    missing.length === 0,
    missing.length === 0 ? 'checkpoint/restore, overlay, namespaces' : `missing: ${missing.join(', ')}`,
    "use a kernel that has them; Debian's has",
  );
}

function capabilities(): Finding {
  const { missing, fatal } = privilegeOf(
    readFileSync('/proc/self/status', 'utf8'),
    readFileSync('/proc/sys/kernel/cap_last_cap', 'utf8'),
  );
  const text =
    missing.length === 0
      ? 'all'
      : `without ${missing.join(', ')}${fatal.length === 0 ? ', which hosts get around' : ''}`;
  return finding('capabilities', fatal.length === 0, text, `run where root has ${fatal.join(', ')}`);
}

function programs(env: NodeJS.ProcessEnv): Finding {
  const folders = (withAdminPath(env).PATH ?? '').split(delimiter);
  const isThere = (program: string) =>
    folders.some((folder) => {
      try {
        accessSync(join(folder, program), constants.X_OK);
        return true;
      } catch {
        return false;
      }
    });
  const missing = Object.entries(PROGRAMS).filter(([program]) => !isThere(program));
  return finding(
    'programs',
    missing.length === 0,
    missing.length === 0
      ? Object.keys(PROGRAMS).join(', ')
      : `missing: ${missing.map(([program]) => program).join(', ')}`,
    `run 'npm run setup', or install ${missing.map(([, name]) => name).join(' ')}`,
  );
}

async function* engineAndHosts(context: CliContext): AsyncGenerator<Finding> {
  const { signal, project } = context;
  const engine = await engineStatus({ signal });
  if (engine.state !== 'answering') {
    yield {
      check: 'engine',
      state: 'bad',
      text: engine.detail || 'no Docker engine runs',
      nextStep: "'initless up' or 'initless host up NAME' starts one",
    };
    return;
  }
  yield finding('engine', true, `Docker ${engine.version}${engine.startedByUs ? ', started by us' : ''}`, '');
  const image = await findImage(engineClient(), HOST_IMAGE, signal);
  yield image
    ? finding('host image', true, HOST_IMAGE, '')
    : { check: 'host image', state: 'later', text: 'not made yet', nextStep: "'initless host up NAME' makes it" };
  const hosts = await listHosts(project.name, { signal });
  if (hosts.length === 0) {
    yield {
      check: 'criu',
      state: 'later',
      text: 'no host to try it in',
      nextStep: "'initless host up host1' makes one",
    };
  }
  for (const host of hosts) {
    if (host.state !== 'running') {
      yield finding(`host ${host.host}`, false, host.state, `'initless host up ${host.host}' starts it`);
    } else yield await criuIn(host.host, host.container, signal);
  }
}

async function criuIn(host: string, container: string, signal: AbortSignal): Promise<Finding> {
  try {
    const { code, output } = await execIn(engineClient().getContainer(container), ['criu', 'check'], signal);
    const last = output.trim().split('\n').at(-1) ?? '';
    return finding(
      `criu in ${host}`,
      code === 0,
      last,
      `run 'docker exec ${container} criu check' and do what it says`,
    );
  } catch (error) {
    signal.throwIfAborted();
    return finding(
      `criu in ${host}`,
      false,
      toInitlessError(error).message,
      `'initless host up ${host}' repairs the host`,
    );
  }
}

async function* ports(context: CliContext): AsyncGenerator<Finding> {
  const { grpc, http, gatewayHttp } = context.project.ports;
  const controlPlane = await isReady(`http://127.0.0.1:${http}/healthz`);
  const gateway = await isReady(`http://127.0.0.1:${gatewayHttp}/healthz`);
  const rows = [
    { what: 'control plane, gRPC', port: grpc, ours: controlPlane },
    { what: 'control plane, HTTP', port: http, ours: controlPlane },
    { what: 'gateway, HTTP', port: gatewayHttp, ours: gateway },
  ];
  for (const { what, port, ours } of rows) {
    const free = ours || (await isFree(port));
    yield finding(
      `port ${port}`,
      free,
      `${what}: ${ours ? 'ours' : free ? 'free' : 'taken by another program'}`,
      `'ss -ltnp sport = :${port}' shows who has it; end it, or choose others with --port-base`,
    );
  }
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen({ port, host: '127.0.0.1', exclusive: true }, () => server.close(() => resolve(true)));
  });
}

async function disk(): Promise<Finding> {
  const { bavail, bsize } = await statfs('/var/lib');
  const free = bavail * bsize;
  return finding(
    'disk',
    free >= DISK_BYTES,
    `${formatBytes(free)} free in /var/lib`,
    `${formatBytes(DISK_BYTES)} are wanted: free some, for instance with 'initless clean --dry-run' to see what is ours`,
  );
}
