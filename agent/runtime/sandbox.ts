/**
 * Network sandboxes: how they are numbered and reached, and their rules. Each is a network namespace that looks the
 * same from inside: one interface `eth0` with the address {@link INNER_ADDRESS} and a default route. That sameness is
 * what lets a process be dumped in one and restored in another even when it listens on its own address or holds a
 * connected UDP socket.
 *
 * Outside, sandbox N has an address of its own; the namespace rewrites it, without connection tracking, to and from the
 * inner one. The host forwards its leased port to it. Neighbour entries are fixed on both sides, and hardware addresses
 * are the same in all, so that a reused address never waits for a stale entry.
 */
export const INNER_ADDRESS = '10.201.0.2';
export const INNER_GATEWAY = '10.201.0.1';
export const INNER_MAC = '02:00:0a:c9:00:02';
export const GATEWAY_MAC = '02:00:0a:c9:00:01';
/** Name of our nftables table, in the host's namespace and in each sandbox's. */
export const TABLE = 'initless';
const OUTER_NET = '10.200.0.0/16';
const INNER_NET = '10.201.0.0/30';
const PREFIX = 'il';

/** A leased port and where it leads. */
export interface Lease {
  /** Number of the sandbox, from 0. */
  index: number;
  /** Port on the host that leads into it. */
  port: number;
  /** Port inside that it leads to. */
  servicePort: number;
}

/** A sandbox in use. */
export interface Sandbox extends Lease {
  /** Path of its network namespace. */
  netns: string;
  /** "ADDRESS:PORT" where gateways reach it. */
  address: string;
}

/** First and last port of a range. */
export interface PortRange {
  first: number;
  last: number;
}

/** How sandboxes are reached. */
export interface SandboxSettings {
  /** Address of the host that gateways reach. */
  hostAddress: string;
  /** Subnets and addresses that instances must not reach: the control plane, the host's own network. */
  forbidden: readonly string[];
  /** Ports that may be leased. */
  ports: PortRange;
}

/** Who has sandboxes and leased ports to give. */
export interface Sandboxes {
  /**
   * A sandbox whose leased port leads to `servicePort` inside, and in which nothing of an earlier tenant is left.
   * Errors: PORTS_EXHAUSTED, INTERNAL, DEADLINE, the reason of `signal`; nothing is held then.
   */
  take(servicePort: number, signal?: AbortSignal): Promise<Sandbox>;
  /** Gives a sandbox back. The processes in it must be gone. What happens to it then takes none of the caller's time. */
  giveBack(sandbox: Sandbox): void;
  /** A port nobody else has, for something of ours that needs one on the host. Errors: those of {@link take}. */
  leasePort(signal?: AbortSignal): Promise<{ index: number; port: number }>;
  /** Gives such a port back. */
  returnPort(index: number): void;
}

/** Name of sandbox `index`: of its namespace, and of its link on the host. */
export function sandboxName(index: number): string {
  return `${PREFIX}${index}`;
}

/** The number in a sandbox's name; undefined for any other name. */
export function sandboxIndex(name: string): number | undefined {
  const digits = new RegExp(`^${PREFIX}(\\d+)$`).exec(name)?.[1];
  return digits === undefined ? undefined : Number(digits);
}

/** Path of the network namespace of sandbox `index`. */
export function netnsPath(index: number): string {
  return `/run/netns/${sandboxName(index)}`;
}

/** The outer address of sandbox `index`: 10.200.0.1 and up. */
export function outerAddress(index: number): string {
  const host = index + 1;
  return `10.200.${host >> 8}.${host & 255}`;
}

/** A lease as an element of the map `leases`. */
export function leaseElement({ index, port, servicePort }: Lease): string {
  return `${port} : ${outerAddress(index)} . ${servicePort}`;
}

/** The rules of the host's own namespace: leased ports in, masquerade out, nothing of ours to be reached from inside. */
export function hostRules(settings: SandboxSettings, leases: readonly Lease[] = []): string {
  const elements = leases.map(leaseElement);
  // What is nobody's address here would leave by the default route, and be answered by whoever has it outside.
  const forbidden = [OUTER_NET, INNER_NET, ...settings.forbidden].join(', ');
  return `
table ip ${TABLE}
delete table ip ${TABLE}
table ip ${TABLE} {
  map leases {
    type inet_service : ipv4_addr . inet_service
    ${elements.length === 0 ? '' : `elements = { ${elements.join(', ')} }`}
  }
  set agents {
    type ipv4_addr . inet_service
  }
  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    iifname "${PREFIX}*" return
    ip daddr ${settings.hostAddress} dnat ip to tcp dport map @leases
  }
  chain output {
    type nat hook output priority -100; policy accept;
    ip daddr ${settings.hostAddress} dnat ip to tcp dport map @leases
  }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr ${OUTER_NET} oifname != "${PREFIX}*" masquerade
  }
  chain input {
    type filter hook input priority filter; policy accept;
    iifname "${PREFIX}*" ct state established,related accept
    iifname "${PREFIX}*" drop
  }
  chain forward {
    type filter hook forward priority filter; policy accept;
    iifname "${PREFIX}*" ct state established,related accept
    iifname "${PREFIX}*" oifname "${PREFIX}*" drop
    iifname "${PREFIX}*" ip daddr { ${forbidden} } drop
    iifname "${PREFIX}*" ip daddr . tcp dport @agents drop
  }
}
`;
}

/** What replaces the other hosts' agents, "ADDRESS:PORT" with IPv4 addresses; what is none of those is left out. */
export function agentRules(agents: readonly string[]): string {
  const elements = agents.flatMap((agent) => {
    const [, address = '', port = ''] = /^([\d.]+):(\d{1,5})$/.exec(agent) ?? [];
    return address !== '' ? [`${address} . ${port}`] : [];
  });
  const add = elements.length === 0 ? '' : `add element ip ${TABLE} agents { ${[...new Set(elements)].join(', ')} }\n`;
  return `flush set ip ${TABLE} agents\n${add}`;
}

/** The rules inside sandbox `index`: a stateless one-to-one translation between its outer and its inner address. */
export function sandboxRules(index: number): string {
  const outer = outerAddress(index);
  return `
table ip ${TABLE} {
  chain in {
    type filter hook prerouting priority raw; policy accept;
    iifname "eth0" ip daddr ${outer} notrack ip daddr set ${INNER_ADDRESS}
  }
  chain out {
    type filter hook postrouting priority srcnat; policy accept;
    oifname "eth0" ip saddr ${INNER_ADDRESS} ip saddr set ${outer}
  }
}
`;
}
