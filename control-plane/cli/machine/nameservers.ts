/**
 * IPv4 nameservers of a resolv.conf that containers can use: a server on loopback is that of the machine, out of reach
 * from another network namespace.
 */
export function usableNameservers(resolvConf: string): string[] {
  const servers: string[] = [];
  for (const line of resolvConf.split('\n')) {
    const address = /^\s*nameserver\s+(\d+\.\d+\.\d+\.\d+)\s*(?:[#;].*)?$/.exec(line)?.[1];
    if (address !== undefined && !address.startsWith('127.') && !servers.includes(address)) servers.push(address);
  }
  return servers;
}
