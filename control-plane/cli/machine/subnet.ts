/** An IPv4 network: first address as a number, and prefix length. */
interface Cidr {
  base: number;
  bits: number;
}

function parse(text: string): Cidr | undefined {
  const match = /^(\d+)\.(\d+)\.(\d+)\.(\d+)(?:\/(\d+))?$/.exec(text.trim());
  if (!match) return undefined;
  const octets = match.slice(1, 5).map(Number);
  const bits = match[5] === undefined ? 32 : Number(match[5]);
  if (octets.some((octet) => octet > 255) || bits > 32) return undefined;
  const address = octets.reduce((sum, octet) => sum * 256 + octet, 0);
  const size = 2 ** (32 - bits);
  return { base: address - (address % size), bits };
}

function overlap(a: Cidr, b: Cidr): boolean {
  const size = 2 ** (32 - Math.min(a.bits, b.bits));
  return Math.floor(a.base / size) === Math.floor(b.base / size);
}

/**
 * Networks to choose from, rarely used by others: 10.77.0.0/24 to 10.77.63.0/24, then 192.168.224.0/24 to 192.168.239.0/24.
 * Outside 172.16.0.0/12, from which engines, also the one in a host, take their own.
 */
export const SUBNETS: readonly string[] = [
  ...Array.from({ length: 64 }, (_, index) => `10.77.${index}.0/24`),
  ...Array.from({ length: 16 }, (_, index) => `192.168.${224 + index}.0/24`),
];

/** What the first candidates lie in: no instance of any project has a reason to go there. */
export const PROJECT_RANGE = '10.77.0.0/18';

/** First candidate that shares no address with anything in `taken` (addresses or CIDRs; others, such as IPv6, are ignored). */
export function chooseSubnet(candidates: readonly string[], taken: readonly string[]): string | undefined {
  const used = taken.flatMap((text) => parse(text) ?? []);
  return candidates.find((candidate) => {
    const network = parse(candidate);
    return network !== undefined && !used.some((other) => overlap(network, other));
  });
}

/** First usable address of a network: the gateway's. Throws for what is no IPv4 CIDR. */
export function gatewayOf(subnet: string): string {
  const network = parse(subnet);
  if (!network) throw new Error(`${subnet} is no IPv4 network`);
  return [24, 16, 8, 0].map((shift) => ((network.base + 1) >>> shift) & 255).join('.');
}
