import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { ExecError, type ExecOptions, run } from '../../agent/runtime/exec.js';
import { KernelNetns } from '../../agent/runtime/netns.js';
import { appearance, differences, LOOK_SCRIPT } from '../../agent/runtime/sandbox-look.js';

interface Call {
  program: string;
  args: readonly string[];
  options: ExecOptions;
}

/** Sandboxes whose commands are noted, and answered by `answer`. */
function scripted(answer: (call: Call) => string = () => ''): { netns: KernelNetns; calls: Call[] } {
  const calls: Call[] = [];
  const netns = new KernelNetns(async (program, args, options = {}) => {
    const call = { program, args, options };
    calls.push(call);
    return { stdout: answer(call), stderr: '' };
  });
  return { netns, calls };
}

describe('a sandbox is made', () => {
  it('by one script, that is killed with all its children when it is stopped, and has a bound', async () => {
    const { netns, calls } = scripted();
    const { signal } = new AbortController();
    await netns.make(4, signal);
    expect(calls).toHaveLength(1);
    expect(calls[0]?.options).toMatchObject({ group: true, signal, timeoutMs: 15_000 });
    const script = calls[0]?.args[1] ?? '';
    expect(script).toContain('ip netns add il4');
    expect(script).toContain('neigh replace 10.200.0.5 lladdr 02:00:0a:c9:00:02 dev il4 nud permanent');
    expect(script).not.toContain('leases');
  });

  it('with the same hardware addresses whatever its number', async () => {
    const { netns, calls } = scripted();
    await netns.make(0);
    await netns.make(900);
    const addresses = calls.map(({ args }) => args[1]?.match(/([0-9a-f]{2}:){5}[0-9a-f]{2}/g));
    expect(addresses[0]).toEqual(addresses[1]);
  });
});

describe('a leased port is made to lead to a service', () => {
  it('by a new entry', async () => {
    const { netns, calls } = scripted();
    await netns.bind({ index: 4, port: 20_004, servicePort: 80 }, false);
    expect(calls[0]?.options.input).toBe('add element ip initless leases { 20004 : 10.200.0.5 . 80 }\n');
  });

  it('by replacing the old entry in one transaction', async () => {
    const { netns, calls } = scripted();
    await netns.bind({ index: 4, port: 20_004, servicePort: 80 }, true);
    expect(calls).toHaveLength(1);
    expect(calls[0]?.options.input).toBe(
      'delete element ip initless leases { 20004 }\nadd element ip initless leases { 20004 : 10.200.0.5 . 80 }\n',
    );
  });
});

describe('a sandbox is removed', () => {
  it('with its lease, its link and its namespace', async () => {
    const { netns, calls } = scripted();
    await netns.destroy(4, 20_004);
    const script = calls[0]?.args[1] ?? '';
    expect(script.indexOf('delete element ip initless leases { 20004 }')).toBeLessThan(
      script.indexOf('ip link delete il4'),
    );
    expect(script.indexOf('ip link delete il4')).toBeLessThan(script.indexOf('ip netns delete il4'));
  });

  it('without a lease when nobody knows its port', async () => {
    const { netns, calls } = scripted();
    await netns.destroy(4, undefined);
    expect(calls[0]?.args[1]).not.toContain('nft');
  });

  it.each([
    { what: 'its lease is gone', nft: 'exit 1', ends: 'well' },
    { what: 'its lease stays', nft: 'case $1 in delete*) exit 1; esac', ends: 'badly' },
  ])('and when deleting its lease fails, it is looked whether $what', async ({ nft, ends }) => {
    const { netns, calls } = scripted();
    await netns.destroy(4_000_000, 20_004);
    const removal = calls[0]?.args[1] ?? '';
    const ended = run('sh', ['-ec', `nft() ( ${nft} )\n${removal}`]);
    if (ends === 'well') await expect(ended).resolves.toBeDefined();
    else await expect(ended).rejects.toThrow('port 20004 still leads into il4000000');
  });
});

describe("a sandbox's connections are forgotten", () => {
  it('those that it made, and those that were made to it', async () => {
    const { netns, calls } = scripted();
    await netns.forget(4);
    expect(calls.map(({ args }) => args)).toEqual([
      ['--delete', '--orig-src', '10.200.0.5'],
      ['--delete', '--reply-src', '10.200.0.5'],
    ]);
  });

  it('and to have none is no error, to be unable to is', async () => {
    const failing = (message: string) =>
      scripted(() => {
        throw new ExecError('conntrack', 1, message);
      }).netns.forget(4);
    await failing('conntrack v1.4.8 (conntrack-tools): 0 flow entries have been deleted.');
    await expect(failing('Operation not supported')).rejects.toThrow('Operation not supported');
  });
});

describe('the look of a sandbox', () => {
  const links = (number: number, peer: number, flags: string, state: string) =>
    `${number}: eth0@if${peer}: <${flags}> mtu 1500 qdisc noqueue state ${state} mode DEFAULT\n    link/ether 02:00:0a:c9:00:02`;
  const rules = (outer: string) => `table ip initless {\n  ip daddr ${outer} notrack\n}`;
  const header = '/proc/net/tcp:  sl  local_address rem_address   st';
  const kernels = '/proc/net/netlink:000000002c5c7365 0   0          00000000 0 0 0 2 0 139568';
  const fresh = appearance(
    [header, kernels, links(2, 9, 'NO-CARRIER,BROADCAST,UP', 'DOWN'), rules('10.200.0.1')].join('\n'),
    0,
  );

  it('is the same for all that nobody has used, whatever their numbers, and whether the link has settled', () => {
    const other = appearance(
      [header, links(2, 321, 'BROADCAST,UP,LOWER_UP', 'UP'), rules('10.200.1.4')].join('\n'),
      259,
    );
    expect(differences(fresh, other)).toEqual([]);
  });

  it.each([
    ['a process', 'process 4711'],
    ['a connection in TIME_WAIT', '/proc/net/tcp:   0: 0200C90A:0050 0100C90A:9C40 06 00000000:00000000'],
    ['a socket of netlink', '/proc/net/netlink:0000000051f8d319 0   4711       00000000 0 0 0 2 0 139574'],
    ['a setting', '/proc/sys/net/mptcp/enabled:1'],
    ['another address', '    inet 10.201.0.9/30 scope global eth0'],
    ['a route', 'default via 10.201.0.9 dev eth0'],
    ['a link', '3: tun0: <POINTOPOINT,UP,LOWER_UP> mtu 1500'],
    ['a table of rules', 'table ip filter {'],
    ['a second one of what is there once', '}'],
  ])('shows %s that was left', (_, line) => {
    const now = [header, kernels, links(2, 9, 'BROADCAST,UP,LOWER_UP', 'UP'), rules('10.200.0.1'), line].join('\n');
    const found = differences(fresh, appearance(now, 0));
    expect(found).toHaveLength(1);
    expect(found[0]).toMatch(/^\+ /);
  });

  it('shows what is missing', () => {
    expect(differences(fresh, fresh.slice(1))).toEqual([`- ${header}`]);
  });

  it('does not take the address of another sandbox for its own', () => {
    const of = (address: string) => appearance(rules(address), 0);
    expect(differences(of('10.200.0.1'), of('10.200.0.12'))).toHaveLength(2);
  });

  it('names the processes in it, and drops dead connections before it reads', async () => {
    const { netns, calls } = scripted(({ program }) => (program === 'ip' ? '12\n4711\n' : 'inside\n'));
    expect(await netns.look(4)).toBe('process 12\nprocess 4711\ninside\n');
    expect(calls.map(({ program, args }) => [program, args[0]])).toEqual([
      ['ip', 'netns'],
      ['nsenter', '--net=/run/netns/il4'],
    ]);
    expect(LOOK_SCRIPT.indexOf('ss --kill')).toBeLessThan(LOOK_SCRIPT.indexOf('/proc/net/tcp'));
  });
});

describe('on the host', () => {
  const dir = mkdtempSync(path.join(tmpdir(), 'sandboxes-'));
  const dirs = { netns: `${dir}/netns`, links: `${dir}/links`, marks: `${dir}/marks` };
  afterEach(() => rmSync(dir, { recursive: true, force: true }));

  it('sandboxes are known by their namespaces and by their links, others are left alone', async () => {
    const netns = new KernelNetns(undefined, dirs);
    expect(netns.present()).toEqual([]);
    for (const name of ['netns/il3', 'netns/il12', 'netns/mine', 'links/il3', 'links/il7', 'links/eth0', 'links/ilx']) {
      await mkdir(`${dir}/${name}`, { recursive: true });
    }
    expect(netns.present().sort((a, b) => a - b)).toEqual([3, 7, 12]);
  });

  it('spare ones are noted, each by a file of its name', () => {
    const netns = new KernelNetns(undefined, dirs);
    netns.clearMarks();
    netns.mark(3, true);
    netns.mark(4, true);
    netns.mark(3, false);
    netns.mark(5, false);
    expect(readdirSync(dirs.marks)).toEqual(['il4']);
    netns.clearMarks();
    expect(readdirSync(dirs.marks)).toEqual([]);
  });
});

it('a script that is stopped takes its children with it', async () => {
  const stop = new AbortController();
  const dir = mkdtempSync(path.join(tmpdir(), 'stopped-'));
  const script = `sh -c 'sleep 20; touch ${dir}/done' & touch ${dir}/begun; wait`;
  const ended = run('sh', ['-ec', script], { group: true, signal: stop.signal });
  ended.catch(() => {});
  await vi.waitFor(() => expect(readdirSync(dir)).toEqual(['begun']), 10_000);
  stop.abort(new Error('stopped'));
  // It has ended only when nobody holds its output any more: a child that went on would have come to its end first.
  await expect(ended).rejects.toThrow('stopped');
  expect(readdirSync(dir)).toEqual(['begun']);
  rmSync(dir, { recursive: true });
});
