import { readFileSync } from 'node:fs';
import { BlockList, isIPv4 } from 'node:net';
import { hostname, networkInterfaces } from 'node:os';
import { parseArgs } from 'node:util';
import { InitlessError } from '../proto/rpc/errors.js';

/** What an agent is told by its environment. */
export interface AgentSettings {
  /** Host name. */
  host: string;
  /** Control plane, "ADDRESS:PORT"; empty: none to dial. */
  controlPlane: string;
  /** Where gRPC is served, "ADDRESS:PORT". */
  listen: string;
  /** Where HTTP health is served, "ADDRESS:PORT". */
  listenHttp: string;
  /** Address that gateways reach this host at. */
  advertise: string;
  /** Addresses and networks that instances must not reach: this host's own address and the control plane's among them. */
  forbidden: string[];
  /** Nameservers for instances and builds. */
  nameservers: string[];
  /** Folder for checkpoints until the control plane says otherwise. */
  checkpointDir: string;
  /** Folder for everything else that outlives an agent. */
  stateDir: string;
}

/** Flags, each with the variable that it stands for. */
const FLAGS = {
  'control-plane': 'INITLESS_CONTROL_PLANE',
  host: 'INITLESS_HOST',
  listen: 'INITLESS_LISTEN',
  advertise: 'INITLESS_ADVERTISE',
} as const;

/** Reads the settings: flags, else `INITLESS_*`, else defaults. Errors: BAD_CONFIG for a value that cannot be used. */
export function readAgentSettings(environment: NodeJS.ProcessEnv, args: readonly string[] = []): AgentSettings {
  const env = { ...environment, ...flagsOf(args) };
  const advertise = env.INITLESS_ADVERTISE || ownAddress();
  const listen = env.INITLESS_LISTEN || `${advertise}:7072`;
  const controlPlane = env.INITLESS_CONTROL_PLANE ?? '';
  const port = Number(listen.split(':').at(-1));
  if (!Number.isInteger(port) || port < 1 || port > 65_534) {
    throw new InitlessError('BAD_CONFIG', `INITLESS_LISTEN: found '${listen}', expected ADDRESS:PORT`);
  }
  return {
    host: env.INITLESS_HOST || hostname(),
    controlPlane,
    listen,
    listenHttp: `${listen.slice(0, listen.lastIndexOf(':'))}:${port + 1}`,
    advertise,
    forbidden: forbiddenNetworks([
      advertise,
      controlPlane.slice(0, controlPlane.lastIndexOf(':')),
      ...(env.INITLESS_FORBIDDEN ?? '').split(/[\s,]+/),
    ]),
    nameservers: (env.INITLESS_DNS || nameservers()).split(/[\s,]+/).filter((server) => server !== ''),
    checkpointDir: env.INITLESS_CHECKPOINT_DIR || '/var/lib/docker/initless/checkpoints',
    stateDir: '/var/lib/docker/initless',
  };
}

function flagsOf(args: readonly string[]): Record<string, string> {
  const options = Object.fromEntries(Object.keys(FLAGS).map((name) => [name, { type: 'string' as const }]));
  try {
    const { values } = parseArgs({ args: [...args], options });
    return Object.fromEntries(
      Object.entries(values).map(([name, value]) => [FLAGS[name as keyof typeof FLAGS], String(value)]),
    );
  } catch (cause) {
    throw new InitlessError('BAD_CONFIG', (cause as Error).message, {
      nextStep: `give only ${Object.keys(FLAGS)
        .map((name) => `--${name}`)
        .join(', ')}, each with a value`,
    });
  }
}

/** The IPv4 addresses and networks among `names`, without those that lie in another of them: nftables takes no overlaps. */
export function forbiddenNetworks(names: readonly string[]): string[] {
  const found = [...new Set(names)].filter((name) => isIPv4(name.split('/')[0] ?? ''));
  return found.filter((name) => {
    const [address = '', bits = '32'] = name.split('/');
    return !found.some((other) => {
      const [network = '', width = '32'] = other.split('/');
      if (other === name || Number(width) >= Number(bits)) return false;
      const list = new BlockList();
      list.addSubnet(network, Number(width));
      return list.check(address);
    });
  });
}

/** The first IPv4 address that is not loopback and not of a bridge that is made here. */
function ownAddress(): string {
  for (const [name, addresses] of Object.entries(networkInterfaces())) {
    if (/^(lo|docker|br-|veth|il)/.test(name)) continue;
    const found = addresses?.find((address) => address.family === 'IPv4' && !address.internal);
    if (found) return found.address;
  }
  throw new InitlessError('BAD_CONFIG', 'this host has no IPv4 address', { nextStep: 'set INITLESS_ADVERTISE' });
}

/** Nameservers that others than this host's own processes can ask: loopback ones are left out. */
function nameservers(): string {
  const text = readFileSync('/etc/resolv.conf', 'utf8');
  return [...text.matchAll(/^nameserver\s+(\S+)/gm)]
    .map((match) => match[1] as string)
    .filter((server) => !server.startsWith('127.') && !server.includes(':'))
    .join(' ');
}
