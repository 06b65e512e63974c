import { describe, expect, it } from 'vitest';
import { droppable, privilegeOf } from '../../control-plane/cli/machine/capabilities.js';
import { productionPackages } from '../../control-plane/cli/machine/host-context.js';
import { framesToText } from '../../control-plane/cli/machine/host-ready.js';
import { type HostSpecInput, hostSpec } from '../../control-plane/cli/machine/host-spec.js';
import { LABELS } from '../../control-plane/cli/machine/names.js';

const status = (mask: string) =>
  `Name:\tnode\nCapEff:\t0000000000000000\nCapBnd:\t${mask}\nCapAmb:\t0000000000000000\n`;

describe('what root may do', () => {
  it('a full bounding set allows --privileged', () => {
    expect(privilegeOf(status('000001ffffffffff'), '40\n')).toEqual({ privileged: true, missing: [], fatal: [] });
  });

  it('a set without SYS_RESOURCE does not, and a host still works', () => {
    expect(privilegeOf(status('000001fffeffffff'), '40\n')).toEqual({
      privileged: false,
      missing: ['SYS_RESOURCE'],
      fatal: [],
    });
  });

  it("the kernel's last capability decides, not the newest one known here", () => {
    expect(privilegeOf(status('0000003fffffffff'), '37\n').privileged).toBe(true);
    expect(privilegeOf(status('0000003fffffffff'), '40\n').missing).toEqual(['PERFMON', 'BPF', 'CHECKPOINT_RESTORE']);
    expect(privilegeOf(status('000001ffffffffff'), '41\n').missing).toEqual(['CAP_41']);
  });

  it('what no host can do without is named: the set of an ordinary container', () => {
    expect(privilegeOf(status('00000000a80425fb'), '40').fatal).toEqual(['NET_ADMIN', 'SYS_PTRACE', 'SYS_ADMIN']);
  });

  it('text that cannot be understood is an error, not an empty set', () => {
    expect(() => privilegeOf('', '40')).toThrow('can be understood');
    expect(() => privilegeOf(status('000001ffffffffff'), '')).toThrow('can be understood');
  });

  it('only names that every engine knows are taken out by name', () => {
    expect(droppable(['SYS_RESOURCE', 'AUDIT_READ', 'PERFMON', 'BPF', 'CAP_41'])).toEqual([
      'SYS_RESOURCE',
      'AUDIT_READ',
    ]);
  });
});

describe("a host's container", () => {
  const input: HostSpecInput = {
    project: 'initless',
    host: 'host1',
    imageId: 'sha256:1',
    networkId: 'n1',
    controlPlane: '10.77.0.1:7070',
    forbidden: ['10.77.0.0/24'],
    nameservers: ['10.0.0.53', '9.9.9.9'],
    privilege: { privileged: true, missing: [], fatal: [] },
    volumes: [],
    env: {},
  };
  const digest = (change: Partial<HostSpecInput>) => hostSpec({ ...input, ...change }).Labels?.[LABELS.digest];

  it('is privileged where that works, and its equivalent elsewhere', () => {
    expect(hostSpec(input).HostConfig).toMatchObject({ Privileged: true });
    const equivalent = hostSpec({
      ...input,
      privilege: { privileged: false, missing: ['SYS_RESOURCE'], fatal: [] },
    }).HostConfig;
    expect(equivalent).toMatchObject({
      CapAdd: ['ALL'],
      CapDrop: ['SYS_RESOURCE'],
      MaskedPaths: [],
      ReadonlyPaths: [],
    });
    expect(equivalent).not.toHaveProperty('Privileged');
  });

  it('has all of its cgroups below the project and the host', () => {
    expect(hostSpec(input).HostConfig).toMatchObject({ CgroupParent: '/initless/host1', CgroupnsMode: 'private' });
  });

  it('tells the agent who it is, whom to call and which nameservers to use', () => {
    expect(hostSpec(input).Env).toEqual([
      'INITLESS_PROJECT=initless',
      'INITLESS_HOST=host1',
      'INITLESS_CONTROL_PLANE=10.77.0.1:7070',
      'INITLESS_FORBIDDEN=10.77.0.0/24',
      'INITLESS_DNS=10.0.0.53 9.9.9.9',
    ]);
  });

  it('is another one as soon as image, network, addresses, privileges or settings differ', () => {
    const changes: Partial<HostSpecInput>[] = [
      {},
      { imageId: 'sha256:2' },
      { networkId: 'n2' },
      { controlPlane: '10.77.0.1:7170' },
      { nameservers: [] },
      { privilege: { privileged: false, missing: ['SYS_RESOURCE'], fatal: [] } },
      { env: { INITLESS_LOG_LEVEL: 'debug' } },
      { volumes: [{ machine: '/srv', host: '/srv', readOnly: false }] },
      { volumes: [{ machine: '/srv', host: '/srv', readOnly: true }] },
    ];
    expect(new Set(changes.map(digest)).size).toBe(changes.length);
    expect(digest({})).toBe(digest({}));
  });
});

describe('the packages of the host image', () => {
  it('are those that run in production, nested ones too', () => {
    expect(
      productionPackages({
        packages: {
          '': {},
          'node_modules/b': {},
          'node_modules/a': {},
          'node_modules/a/node_modules/c': {},
          'node_modules/vitest': { dev: true },
          'node_modules/fsevents': { devOptional: true },
          'packages/linked': {},
          'node_modules/linked': { link: true },
        },
      }),
    ).toEqual(['node_modules/a', 'node_modules/a/node_modules/c', 'node_modules/b']);
  });
});

describe("an engine's log", () => {
  const frame = (stream: number, text: string) => {
    const head = Buffer.alloc(8);
    head.writeUInt8(stream, 0);
    head.writeUInt32BE(Buffer.byteLength(text), 4);
    return Buffer.concat([head, Buffer.from(text)]);
  };

  it('is the text of both streams in order', () => {
    expect(framesToText(Buffer.concat([frame(1, 'one\n'), frame(2, 'zwölf\n')]))).toBe('one\nzwölf\n');
  });

  it('may break off in a frame', () => {
    const whole = Buffer.concat([frame(1, 'one\n'), frame(1, 'two\n')]);
    expect(framesToText(whole.subarray(0, whole.length - 2))).toBe('one\ntw');
    expect(framesToText(whole.subarray(0, 15))).toBe('one\n');
    expect(framesToText(Buffer.alloc(0))).toBe('');
  });
});
