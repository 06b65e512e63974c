import net from 'node:net';
import { networkInterfaces } from 'node:os';
import { beforeAll, describe, expect, it } from 'vitest';
import { copyOf, deploy } from './deploy.js';
import { CONTAINER, getJson, onHost, PORT_BASE, run, sleepService, until, wokenBy } from './support.js';

const PROBE = { name: 'probe', url: 'http://localhost:8117' };
const CONFINED = { name: 'confined', url: 'http://localhost:8119' };
const NEIGHBOUR = { name: 'neighbour', url: 'http://localhost:8251' };

beforeAll(async () => {
  // The probe stays while it is asked about; each of its questions may take a second.
  await deploy(await copyOf('probe', { idle_timeout: 2 }));
  await deploy(await copyOf('state', { service_name: NEIGHBOUR.name, host_port: 8251, idle_timeout: 2 }));
});

/** Those of some addresses with ports that a process in an instance can connect to; all are tried at once. */
async function reached(addresses: readonly string[]): Promise<string[]> {
  const tries = addresses.map(async (to) => {
    const { result } = await getJson<{ result: string }>(`${PROBE.url}/connect?to=${to}`);
    return result === 'connected' ? [to] : [];
  });
  return (await Promise.all(tries)).flat();
}

/** Each of some addresses with each of some ports. */
function each(addresses: readonly string[], ports: readonly number[]): string[] {
  return addresses.flatMap((address) => ports.map((port) => `${address}:${port}`));
}

/** Whether this machine itself can connect, which shows that a refusal inside is a matter of where one asks. */
function fromHere(to: string): Promise<boolean> {
  const [host, port] = to.split(':');
  return new Promise((resolve) => {
    const socket = net.connect({ host, port: Number(port), timeout: 2_000 });
    socket
      .once('connect', () => resolve(true))
      .once('error', () => resolve(false))
      .once('timeout', () => resolve(false));
    socket.once('connect', () => socket.destroy());
  });
}

/** IPv4 addresses of a container in its networks. */
async function addressOf(container: string): Promise<string> {
  const format = '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}';
  return (await run('docker', ['inspect', '--format', format, container])).stdout.trim();
}

/** The machine's addresses in the networks of all projects: control planes listen there. */
async function gateways(): Promise<string[]> {
  const listed = await run('docker', ['network', 'ls', '--quiet', '--filter', 'label=initless.project']);
  const ids = listed.stdout.split('\n').filter((id) => id !== '');
  const found = await run('docker', ['network', 'inspect', '--format', '{{(index .IPAM.Config 0).Gateway}}', ...ids]);
  return found.stdout.split('\n').filter((address) => address !== '');
}

describe('from inside an instance', () => {
  it("the agent's ports cannot be reached, by any address of the host", async () => {
    const host = await addressOf(CONTAINER);
    for (const port of [7072, 7073]) expect(await fromHere(`${host}:${port}`)).toBe(true);
    const { gateway } = await getJson<{ gateway: string }>(`${PROBE.url}/network`);
    const bridge = (await onHost("ip -4 -brief address show docker0 | awk '{ print $3 }' | cut -d / -f 1")).trim();
    expect(await reached(each([host, gateway, bridge], [7072, 7073]))).toEqual([]);
  });

  it('no engine can be reached: the one of the host listens on no port at all', async () => {
    expect(await onHost('ss --no-header --listening --tcp --processes | grep dockerd || true')).toBe('');
    const host = await addressOf(CONTAINER);
    expect(await reached(each([host], [2375, 2376]))).toEqual([]);
  });

  it('no control plane can be reached, on any address of the machine', async () => {
    const own = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? []);
    const ipv4 = own.filter(({ family }) => family === 'IPv4').map(({ address }) => address);
    expect(await fromHere(`127.0.0.1:${PORT_BASE}`)).toBe(true);
    const ports = [7070, 7071, PORT_BASE, PORT_BASE + 1];
    expect(await reached(each([...new Set([...(await gateways()), ...ipv4])], ports))).toEqual([]);
  });

  it('another instance cannot be reached, by its leased port, its outer or its inner address', async () => {
    const { instance } = await wokenBy(NEIGHBOUR.name, () => getJson(NEIGHBOUR.url));
    expect(await fromHere(instance.address)).toBe(true);
    const leases = await onHost('nft list map ip initless leases');
    const port = instance.address.split(':')[1];
    const outer = new RegExp(`${port} : (10\\.200\\.\\d+\\.\\d+) \\. 8080`).exec(leases)?.[1];
    expect(outer).toBeDefined();
    expect(await reached([instance.address, `${outer}:8080`])).toEqual([]);
    // The inner address is every instance's own: there is only itself to be found.
    expect((await getJson<{ own: string }>(`${PROBE.url}/network`)).own).toBe('10.201.0.2');
    expect(await getJson(NEIGHBOUR.url)).toMatchObject({ requests: 2 });
  });

  it('resolv.conf names servers that can be asked from there', async () => {
    const { nameservers } = await getJson<{ nameservers: string[] }>(`${PROBE.url}/network`);
    expect(nameservers.length).toBeGreaterThan(0);
    for (const server of nameservers) {
      expect(net.isIPv4(server), server).toBe(true);
      expect(server.startsWith('127.'), server).toBe(false);
    }
    const answers = await Promise.all(
      nameservers.map((server) => getJson<{ result: string }>(`${PROBE.url}/ask?server=${server}`)),
    );
    expect(answers.map(({ result }) => result)).toContain('answered');
  });
});

/** What a process says of its confinement; see services/confined. */
type Confinement = Record<string, unknown> & { mounts: string[][] };

/**
 * Without what tells one container from another: its number, the folders of its files, the layers of its root.
 *
 * @param id a pattern for the number.
 */
function comparable({ mounts, ...rest }: Confinement, id: string): Confinement {
  const text = JSON.stringify({
    ...rest,
    mounts: mounts.map((mount) => (mount[0] === '/' ? mount.slice(0, -1) : mount)),
  });
  const own = new RegExp(`/(var/lib/docker/volumes/[^"]*/)?(docker|initless|containers|initless/instances)/${id}`, 'g');
  return JSON.parse(text.replaceAll(own, '/OWN')) as Confinement;
}

/** Namespaces of a process of the host that are not the host's own. */
async function namespacesOf(pid: number): Promise<string[]> {
  const text = await onHost(`
    for file in /proc/${pid}/ns/*; do
      name=$(basename $file)
      if [ "$(readlink $file)" != "$(readlink /proc/1/ns/$name)" ]; then echo $name; fi
    done
  `);
  return text.split('\n').filter((name) => name !== '');
}

describe('a restored instance', () => {
  it('is confined as docker run confines a container of the same image', { timeout: 180_000 }, async () => {
    await deploy(await copyOf('confined', { idle_timeout: 1 }));
    const { answer: restored, instance } = await wokenBy(CONFINED.name, () => getJson<Confinement>(CONFINED.url));
    // Docker would add as much swap as memory; services have none.
    const limits = '--memory 128m --memory-swap 128m --cpus 0.5';
    const id = (await onHost(`docker run --detach --hostname confined ${limits} confined:latest`)).trim();
    try {
      const about = await onHost(`docker inspect -f '{{.State.Pid}} {{.NetworkSettings.IPAddress}}' ${id}`);
      const [pid, address] = about.trim().split(' ');
      const text = await until('the container to answer', () =>
        onHost(`node -e 'fetch("http://${address}:8080/").then(async (got) => console.log(await got.text()))'`),
      );
      const docker = comparable(JSON.parse(text) as Confinement, id);
      expect(comparable(restored, instance.id)).toEqual(docker);
      // Of what differs, or is missing in both, equality would say nothing.
      expect(docker).toMatchObject({ status: { Seccomp: ['2'] }, masked: { '/sys/firmware': [] }, processes: ['1'] });
      expect(JSON.stringify(docker)).toContain('/OWN');

      const own = await namespacesOf(Number(pid));
      expect(own).toEqual(expect.arrayContaining(['ipc', 'mnt', 'net', 'pid', 'uts']));
      // CRIU gives what it restores a clock that goes on where it was dumped.
      expect(await namespacesOf(instance.pid)).toEqual([...own, 'time', 'time_for_children'].sort());
    } finally {
      await onHost(`docker rm --force ${id} > /dev/null`);
    }
  });
});

it('the leased port of an instance that is gone leads nowhere', async () => {
  const { instance } = await wokenBy(PROBE.name, () => getJson(`${PROBE.url}/network`));
  expect(instance.address.startsWith(`${await addressOf(CONTAINER)}:21`)).toBe(true);
  expect(await fromHere(instance.address)).toBe(true);
  await sleepService(PROBE.name);
  expect(await fromHere(instance.address)).toBe(false);
});
