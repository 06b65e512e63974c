import { outerAddress } from './sandbox.js';

/** What is set in each sandbox. */
export const SYSCTLS: readonly { file: string; value: string; optional?: true }[] = [
  { file: '/proc/sys/net/ipv6/conf/eth0/disable_ipv6', value: '1', optional: true },
  // A listener of multipath TCP cannot be dumped; without it, programs fall back to plain TCP by themselves.
  { file: '/proc/sys/net/mptcp/enabled', value: '0', optional: true },
  { file: '/proc/sys/net/ipv4/ip_unprivileged_port_start', value: '0' },
  { file: '/proc/sys/net/ipv4/ping_group_range', value: '0 2147483647' },
];

/** Tables of sockets. */
const SOCKETS = ['tcp', 'udp', 'udplite', 'raw', 'icmp'].flatMap((name) => [name, `${name}6`]);
const TABLES = [...SOCKETS, 'unix', 'packet', 'netlink'].map((name) => `/proc/net/${name}`);

/**
 * Run inside a sandbox. First it makes the kernel drop what it keeps of processes that are gone: connections in
 * TIME_WAIT and the like (a service that does not set SO_REUSEADDR could not listen on its port for a minute), and what
 * it has learnt of their peers. A kernel that cannot drop connections leaves them, and they are seen. Then it prints
 * all that a tenant could meet. Sockets are read first: the programs after them have some of their own while they run.
 */
export const LOOK_SCRIPT = `
ss --kill --tcp --all > /dev/null
files=
for file in ${[...TABLES, ...SYSCTLS.map(({ file }) => file)].join(' ')}; do
  [ ! -e $file ] || files="$files $file"
done
grep -H '' $files
ip -batch - <<'IP'
tcp_metrics flush
route flush cache
link show
address show
route show table all
rule show
neighbour show nud permanent
IP
[ ! -e /proc/net/if_inet6 ] || ip -6 rule show
nft list ruleset
`;

/**
 * How a sandbox looks, one line each, from what {@link LOOK_SCRIPT} printed: without what differs from one sandbox to
 * the next (numbers of links, the outer address), without what the kernel settles only after a while (whether a link
 * has carrier), and without the kernel's own netlink sockets. Two sandboxes that nobody has used look the same. Pure.
 */
export function appearance(printed: string, index: number): string[] {
  const outer = new RegExp(`\\b${outerAddress(index).replaceAll('.', '\\.')}\\b`, 'g');
  return printed
    .split('\n')
    .filter((line) => !/^\/proc\/net\/netlink:\S+\s+\d+\s+0\s/.test(line))
    .map((line) =>
      line
        .replace(/^\d+: (?=\S)/, '')
        .replace(/@if\d+/, '')
        .replace(/<([A-Z_,-]+)>/, (_, flags: string) => settled(flags))
        .replace(/ state [A-Z]+/, '')
        .replace(/ linkdown/, '')
        .replaceAll(outer, 'OUTER')
        .trimEnd(),
    )
    .filter((line) => line !== '');
}

function settled(flags: string): string {
  const unsettled = ['NO-CARRIER', 'LOWER_UP', 'M-DOWN'];
  return `<${flags
    .split(',')
    .filter((flag) => !unsettled.includes(flag))
    .join(',')}>`;
}

/** What one sandbox has and a new one has not ("+ ..."), and the other way round ("- ..."). Empty: they are alike. Pure. */
export function differences(fresh: readonly string[], found: readonly string[]): string[] {
  return [
    ...without(found, fresh).map((line) => `+ ${line.trim()}`),
    ...without(fresh, found).map((line) => `- ${line.trim()}`),
  ];
}

/** The lines of `some`, less as many of each as `others` has. */
function without(some: readonly string[], others: readonly string[]): string[] {
  const left = new Map<string, number>();
  for (const line of others) left.set(line, (left.get(line) ?? 0) + 1);
  return some.filter((line) => {
    const count = left.get(line) ?? 0;
    left.set(line, count - 1);
    return count <= 0;
  });
}
