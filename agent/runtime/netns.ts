import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { ExecError, type Run, run as runProgram } from './exec.js';
import {
  agentRules,
  GATEWAY_MAC,
  hostRules,
  INNER_ADDRESS,
  INNER_GATEWAY,
  INNER_MAC,
  type Lease,
  leaseElement,
  netnsPath,
  outerAddress,
  type SandboxSettings,
  sandboxIndex,
  sandboxName,
  sandboxRules,
  TABLE,
} from './sandbox.js';
import { LOOK_SCRIPT, SYSCTLS } from './sandbox-look.js';

/** What is done to sandboxes' network namespaces, links, rules and leases. All numbers are those of sandboxes. */
export interface Netns {
  /** Replaces the host's rules and all leases in one step: connections over those in `kept` go on. */
  loadHostRules(settings: SandboxSettings, kept: readonly Lease[], signal?: AbortSignal): Promise<void>;
  /** Has nothing in a sandbox open a connection to these, "ADDRESS:PORT", in place of those before. Errors: INTERNAL. */
  forbidAgents(agents: readonly string[], signal?: AbortSignal): Promise<void>;
  /** Sandboxes of which there is a namespace or a link, whoever made it. */
  present(): number[];
  /** Makes a sandbox that no port leads to yet. When it fails, some of it may be there. Errors: INTERNAL, DEADLINE. */
  make(index: number, signal?: AbortSignal): Promise<void>;
  /**
   * Makes a leased port lead to a service's port. When it fails, nobody knows where the port leads.
   *
   * @param again whether the port leads somewhere already.
   */
  bind(lease: Lease, again: boolean, signal?: AbortSignal): Promise<void>;
  /** Clears away what the kernel keeps of a tenant that is gone, then says all that is in the sandbox: see `appearance`. */
  look(index: number, signal?: AbortSignal): Promise<string>;
  /** Makes the host's kernel forget the connections from and to a sandbox. */
  forget(index: number, signal?: AbortSignal): Promise<void>;
  /** Removes what there is of a sandbox and, if `port` is known, its lease. Errors: INTERNAL, DEADLINE if some of it stays. */
  destroy(index: number, port: number | undefined, signal?: AbortSignal): Promise<void>;
  /** Notes that a sandbox is no tenant's, or that it is, for whoever looks at the host: a file of its name, or none. */
  mark(index: number, spare: boolean): void;
  /** Removes the notes of an earlier agent. */
  clearMarks(): void;
}

/** Where the kernel's namespaces and links are listed, and the notes are kept. */
const DIRS = { netns: '/run/netns', links: '/sys/class/net', marks: '/run/initless/sandboxes' };
/** Bound on each script: they take tens of milliseconds, on a machine that is short of everything a second or two. */
const TIMEOUT_MS = 15_000;

/** The kernel's own, through iproute2, nftables and conntrack. */
export class KernelNetns implements Netns {
  readonly #run: Run;
  readonly #dirs: typeof DIRS;

  constructor(run: Run = runProgram, dirs = DIRS) {
    this.#run = run;
    this.#dirs = dirs;
  }

  async loadHostRules(settings: SandboxSettings, kept: readonly Lease[], signal?: AbortSignal): Promise<void> {
    await this.#run('nft', ['-f', '-'], { input: hostRules(settings, kept), label: 'loading the host rules', signal });
  }

  async forbidAgents(agents: readonly string[], signal?: AbortSignal): Promise<void> {
    const options = {
      input: agentRules(agents),
      label: "closing the other hosts' agents",
      signal,
      timeoutMs: TIMEOUT_MS,
    };
    await this.#run('nft', ['-f', '-'], options);
  }

  present(): number[] {
    const names = [...entriesOf(this.#dirs.netns), ...entriesOf(this.#dirs.links)];
    return [...new Set(names.map(sandboxIndex))].filter((index) => index !== undefined);
  }

  async make(index: number, signal?: AbortSignal): Promise<void> {
    const name = sandboxName(index);
    const outer = outerAddress(index);
    // Loading rules is the slow part, and needs the namespace but not the links: it goes on beside them.
    const script = `
ip netns add ${name}
nsenter --net=${netnsPath(index)} nft -f - <<'NFT' &
${sandboxRules(index)}
NFT
rules=$!
ip -batch - <<'IP'
link add ${name} address ${GATEWAY_MAC} type veth peer name eth0 address ${INNER_MAC} netns ${name}
link set ${name} up
route replace ${outer}/32 dev ${name}
neigh replace ${outer} lladdr ${INNER_MAC} dev ${name} nud permanent
IP
nsenter --net=${netnsPath(index)} sh -ec '
${SYSCTLS.map(({ file, value, optional }) => `${optional ? `[ ! -e ${file} ] || ` : ''}echo "${value}" > ${file}`).join('\n')}
exec ip -batch -' <<'IP'
link set lo up
addr add ${INNER_ADDRESS}/30 dev eth0
link set eth0 up
neigh replace ${INNER_GATEWAY} lladdr ${GATEWAY_MAC} dev eth0 nud permanent
route add default via ${INNER_GATEWAY}
IP
wait $rules
`;
    await this.#script(`making sandbox ${name}`, script, signal);
  }

  async bind(lease: Lease, again: boolean, signal?: AbortSignal): Promise<void> {
    // One transaction: at no moment does the port lead nowhere, or to two places.
    const input = [
      ...(again ? [`delete element ip ${TABLE} leases { ${lease.port} }`] : []),
      `add element ip ${TABLE} leases { ${leaseElement(lease)} }`,
      '',
    ].join('\n');
    const label = `leasing port ${lease.port} to sandbox ${sandboxName(lease.index)}`;
    await this.#run('nft', ['-f', '-'], { input, label, signal, timeoutMs: TIMEOUT_MS });
  }

  async look(index: number, signal?: AbortSignal): Promise<string> {
    const name = sandboxName(index);
    const options = { signal, timeoutMs: TIMEOUT_MS, group: true };
    const pids = await this.#run('ip', ['netns', 'pids', name], options);
    const inside = await this.#run('nsenter', [`--net=${netnsPath(index)}`, 'sh', '-ec', LOOK_SCRIPT], {
      ...options,
      label: `looking into sandbox ${name}`,
    });
    return pids.stdout.replaceAll(/^\d+$/gm, 'process $&') + inside.stdout;
  }

  /**
   * Translations are kept by the host's connection tracking for up to five days after a process was killed. A new
   * connection from the same client port would be sent by such an entry, whatever the map of leases says by then: to
   * the service port of an earlier tenant, or, after `reserved_ports` was changed, into another sandbox. And a late
   * answer to a datagram of the earlier tenant would reach the next one. So all entries of the outer address go before
   * it is used again. A client that calls the port between this and the next lease is refused, and a connection that
   * was refused leaves no entry.
   */
  async forget(index: number, signal?: AbortSignal): Promise<void> {
    for (const side of ['--orig-src', '--reply-src']) {
      try {
        await this.#run('conntrack', ['--delete', side, outerAddress(index)], { signal, timeoutMs: TIMEOUT_MS });
      } catch (error) {
        if (!(error instanceof ExecError) || !/: 0 flow entries have been deleted/.test(error.message)) throw error;
      }
    }
  }

  async destroy(index: number, port: number | undefined, signal?: AbortSignal): Promise<void> {
    const name = sandboxName(index);
    // Each of these may be missing when a creation failed half-way; what is left afterwards is what counts.
    const lease = `ip ${TABLE} leases { ${port} }`;
    const removal = `
if ! nft 'delete element ${lease}' 2>/dev/null && nft 'get element ${lease}' >/dev/null 2>&1; then
  echo 'port ${port} still leads into ${name}' >&2
  exit 1
fi`;
    const script = `
${port === undefined ? '' : removal}
[ ! -e /sys/class/net/${name} ] || ip link delete ${name}
[ ! -e ${netnsPath(index)} ] || ip netns delete ${name}
`;
    await this.#script(`removing sandbox ${name}`, script, signal);
  }

  mark(index: number, spare: boolean): void {
    const file = path.join(this.#dirs.marks, sandboxName(index));
    if (spare) writeFileSync(file, '');
    else rmSync(file, { force: true });
  }

  clearMarks(): void {
    rmSync(this.#dirs.marks, { recursive: true, force: true });
    mkdirSync(this.#dirs.marks, { recursive: true, mode: 0o700 });
  }

  async #script(label: string, script: string, signal?: AbortSignal): Promise<void> {
    await this.#run('sh', ['-ec', script], { label, signal, timeoutMs: TIMEOUT_MS, group: true });
  }
}

function entriesOf(dir: string): string[] {
  try {
    return readdirSync(dir);
  } catch (error) {
    // The first namespace makes the folder.
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}
