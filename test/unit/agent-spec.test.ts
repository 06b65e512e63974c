import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { dockerRun } from '../../agent/instance/measure.js';
import { configured } from '../../agent/instance/place.js';
import { countsSwap } from '../../agent/runtime/limits.js';
import {
  type InstancePlace,
  instanceSpec,
  type OciSpec,
  revisionSpec,
  volumesOf,
  withoutReplaced,
} from '../../agent/runtime/spec.js';
import { ServiceConfig } from '../../proto/gen/initless/v1/types.js';

const docker: OciSpec = {
  process: { args: ['/.pause'], env: ['PATH=/bin', 'HOSTNAME=0123', 'LANG=C'] },
  root: { path: '/var/lib/docker/overlay2/x/merged' },
  hooks: { prestart: [] },
  mounts: [
    { destination: '/proc', type: 'proc', source: 'proc' },
    { destination: '/.pause', type: 'bind', source: '/usr/local/lib/initless/pause' },
    { destination: '/dev/shm', type: 'tmpfs', source: 'shm' },
    { destination: '/etc/hosts', type: 'bind', source: '/var/lib/docker/containers/x/hosts' },
    { destination: '/var/data', type: 'bind', source: '/var/lib/docker/volumes/y/_data' },
    { destination: '/var/log/app', type: 'bind', source: '/var/lib/docker/volumes/z/_data' },
  ],
  linux: {
    namespaces: [{ type: 'pid' }, { type: 'network' }],
    cgroupsPath: '/docker/x',
    seccomp: { kept: true },
    resources: { devices: [{ allow: false }], memory: { disableOOMKiller: false }, cpu: { shares: 0 } },
  },
};
const revision = revisionSpec(docker, ['app', '-x'], ['KEY=1'], 'web', '/.pause');

const place: InstancePlace = {
  root: '/i/root',
  netns: '/run/netns/il1',
  cgroup: '/initless/a',
  files: '/i',
  mounts: [],
  limits: { memory: 0, cpus: 0 },
  countsSwap: true,
};

describe("a revision's specification", () => {
  it('keeps what Docker chose and drops what belonged to the one container', () => {
    expect(revision.hooks).toBeUndefined();
    expect(revision.linux.seccomp).toEqual({ kept: true });
    expect(revision.process.args).toEqual(['app', '-x']);
    expect(revision.mounts.map((mount) => mount.destination)).not.toContain('/.pause');
    expect(volumesOf(revision)).toEqual(['/var/data', '/var/log/app']);
  });

  it('refuses an image without any command', () => {
    expect(() => revisionSpec(docker, [], [], 'web', '/.pause')).toThrow(/neither ENTRYPOINT nor CMD/);
  });

  it("has the service's variables in place of the image's, each once", () => {
    const spec = revisionSpec(docker, ['app'], ['LANG=de_DE', 'URL=a=b', 'EMPTY='], 'web', '/.pause');
    expect(spec.process.env).toEqual(['PATH=/bin', 'HOSTNAME=web', 'LANG=de_DE', 'URL=a=b', 'EMPTY=']);
    expect(revisionSpec(docker, ['app'], ['HOSTNAME=mine'], 'web', '/.pause').process.env).toEqual([
      'PATH=/bin',
      'LANG=C',
      'HOSTNAME=mine',
    ]);
  });

  it("does without the image's volumes at the places of the service's own", () => {
    const spec = withoutReplaced(revision, ['/var/data', '/elsewhere', '/proc']);
    expect(volumesOf(spec)).toEqual(['/var/log/app']);
    expect(spec.mounts.map((mount) => mount.destination)).toContain('/proc');
  });
});

describe('the specification of an instance', () => {
  it('gives each instance its own root, namespace, cgroup, files and copies of the image volumes', () => {
    const spec = instanceSpec(revision, place);
    expect(spec.root.path).toBe('/i/root');
    expect(spec.linux.cgroupsPath).toBe('/initless/a');
    expect(spec.linux.namespaces).toContainEqual({ type: 'network', path: '/run/netns/il1' });
    const sources = spec.mounts.filter((mount) => mount.type === 'bind').map((mount) => mount.source);
    expect(sources).toEqual(['/i/hosts', '/i/volumes/0', '/i/volumes/1']);
    expect(revision.mounts.at(-1)?.source).toBe('');
  });

  it('mounts the volumes of the service, and cannot write to those that are read-only', () => {
    const mounts = [
      { source: '/srv/models', target: '/models', readOnly: true },
      { source: '/state/volumes/web/data', target: '/data', readOnly: false },
    ];
    const spec = instanceSpec(revision, { ...place, mounts });
    expect(spec.mounts).toContainEqual({
      destination: '/models',
      type: 'bind',
      source: '/srv/models',
      options: ['bind', 'rprivate', 'ro'],
    });
    expect(spec.mounts.find((mount) => mount.destination === '/data')?.options).toEqual(['bind', 'rprivate', 'rw']);
  });

  it('mounts folders before what lies in them, so that nothing is hidden', () => {
    const mounts = [
      { source: '/a', target: '/var/log/app/deep', readOnly: false },
      { source: '/b', target: '/var', readOnly: false },
    ];
    const order = instanceSpec(revision, { ...place, mounts }).mounts.map((mount) => mount.destination);
    expect(order).toEqual([
      '/proc',
      '/dev/shm',
      '/var',
      '/etc/hosts',
      '/var/data',
      '/var/log/app',
      '/var/log/app/deep',
    ]);
  });

  it("has no limits but Docker's where the service has none", () => {
    expect(instanceSpec(revision, place).linux.resources).toEqual(docker.linux.resources);
  });

  it('limits memory without swap, and CPU time by the share of each period', () => {
    const limits = { memory: 64 * 2 ** 20, cpus: 0.25 };
    const limited = instanceSpec(revision, { ...place, limits }).linux.resources;
    expect(limited).toEqual({
      devices: [{ allow: false }],
      memory: { disableOOMKiller: false, limit: 67_108_864, swap: 67_108_864 },
      cpu: { shares: 0, quota: 25_000, period: 100_000 },
    });
    const noSwap = instanceSpec(revision, { ...place, limits, countsSwap: false }).linux.resources;
    expect(noSwap?.memory).toEqual({ disableOOMKiller: false, limit: 67_108_864 });
  });

  it('takes volumes and limits from the configuration of today', () => {
    const volumes = [{ source: 'data', target: '/data', readOnly: false }];
    const config = ServiceConfig.fromPartial({ serviceName: 'web', volumes, memoryLimit: 7, cpus: 2 });
    expect(configured(config)).toEqual({ service: 'web', volumes, limits: { memory: 7, cpus: 2 } });
  });
});

describe('the docker run that is measured against', () => {
  const config = ServiceConfig.fromPartial({
    serviceName: 'web',
    servicePort: 80,
    env: { A: 'b=c' },
    startCmd: ['serve', '-v'],
    memoryLimit: 67_108_864,
    cpus: 0.5,
  });
  const mounts = [
    { source: '/srv/m', target: '/m', readOnly: true },
    { source: '/state/d', target: '/d', readOnly: false },
  ];

  it('has the variables, volumes and limits of an instance', () => {
    const args = dockerRun(config, mounts, 'sha256:1', 'initless-measure-web', '10.0.0.2:20001');
    const valuesOf = (flag: string) => args.flatMap((arg, index) => (args[index - 1] === flag ? [arg] : []));
    expect(valuesOf('--env')).toEqual(['A=b=c']);
    expect(valuesOf('--volume')).toEqual(['/srv/m:/m:ro', '/state/d:/d:rw']);
    expect(valuesOf('--memory')).toEqual(['67108864']);
    expect(valuesOf('--memory-swap')).toEqual(['67108864']);
    expect(valuesOf('--cpus')).toEqual(['0.5']);
    expect(valuesOf('--publish')).toEqual(['10.0.0.2:20001:80']);
    expect(args.slice(-3)).toEqual(['sha256:1', 'serve', '-v']);
  });

  it('has no limits where the service has none', () => {
    const args = dockerRun({ ...config, memoryLimit: 0, cpus: 0 }, [], 'sha256:1', 'x', 'a:1');
    expect(args.filter((arg) => /^--(memory|cpus|volume)/.test(arg))).toEqual([]);
  });
});

describe('whether swap can be limited', () => {
  const dir = mkdtempSync(path.join(tmpdir(), 'initless-cgroups-'));
  afterEach(() => rmSync(dir, { recursive: true, force: true }));

  it('is known from the cgroup files: always with version 2, with version 1 where the machine counts it', () => {
    mkdirSync(path.join(dir, 'memory'), { recursive: true });
    expect(countsSwap(dir)).toBe(false);
    writeFileSync(path.join(dir, 'memory', 'memory.memsw.limit_in_bytes'), '');
    expect(countsSwap(dir)).toBe(true);
    rmSync(path.join(dir, 'memory'), { recursive: true });
    writeFileSync(path.join(dir, 'cgroup.controllers'), 'cpu memory');
    expect(countsSwap(dir)).toBe(true);
  });
});
