import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { rewriteAliases } from '../../control-plane/cli/argv.js';
import { planFor, upSettings } from '../../control-plane/cli/bring-up.js';
import { joinHosts } from '../../control-plane/cli/commands/host.js';
import { Narrator } from '../../control-plane/cli/demo/narrator.js';
import { kernelIsNewEnough } from '../../control-plane/cli/doctor.js';
import { formatAge, formatBytes, formatMs, instanceStateWord } from '../../control-plane/cli/format.js';
import { mountsBelow } from '../../control-plane/cli/inventory.js';
import { renderFields, renderTable } from '../../control-plane/cli/output.js';
import { projectOf } from '../../control-plane/cli/project.js';
import { percentile, summarise } from '../../control-plane/cli/statistics.js';
import { NO_BACKOFF, nextBackoff } from '../../control-plane/cli/supervisor/backoff.js';
import { Host, InstanceState } from '../../proto/gen/initless/v1/types.js';

describe('percentiles', () => {
  test('the median of an even number of samples is the mean of the middle two', () => {
    expect(summarise([4, 1, 3, 2])).toEqual({ min: 1, p50: 2.5, p95: 3.8499999999999996, max: 4 });
  });

  test('one sample is all of them', () => {
    expect(summarise([7])).toEqual({ min: 7, p50: 7, p95: 7, max: 7 });
  });

  test('they lie between minimum and maximum, in order, whatever the samples', () => {
    const samples = fc.array(fc.double({ min: 0, max: 1e6, noNaN: true }), { minLength: 1 });
    fc.assert(
      fc.property(samples, (values) => {
        const { min, p50, p95, max } = summarise(values);
        expect(min).toBeLessThanOrEqual(p50 + 1e-9);
        expect(p50).toBeLessThanOrEqual(p95 + 1e-9);
        expect(p95).toBeLessThanOrEqual(max + 1e-9);
      }),
    );
  });

  test('of nothing there is none', () => {
    expect(() => percentile([], 0.5)).toThrow(RangeError);
  });
});

describe('aliases', () => {
  test('-t stands for test and -clean for clean, in the place of the command only', () => {
    expect(rewriteAliases(['-t', 'flask', '-n', '3'])).toEqual(['test', 'flask', '-n', '3']);
    expect(rewriteAliases(['-clean', '--dry-run'])).toEqual(['clean', '--dry-run']);
    expect(rewriteAliases(['--project', '-t', '--server=x', '-t'])).toEqual(['--project', '-t', '--server=x', 'test']);
    expect(rewriteAliases(['service', 'logs', '-t'])).toEqual(['service', 'logs', '-t']);
    expect(rewriteAliases([])).toEqual([]);
  });

  test('names that every object has are not taken for aliases', () => {
    expect(rewriteAliases(['constructor'])).toEqual(['constructor']);
  });
});

describe('tables', () => {
  test('columns are apart by two blanks, an empty cell is "-", and no line ends in blanks', () => {
    expect(
      renderTable(
        ['A', 'LONG HEAD'],
        [
          ['x', ''],
          ['longer', 'y'],
        ],
      ),
    ).toBe('A       LONG HEAD\nx       -\nlonger  y');
  });

  test('a cell cannot break a line or reach the terminal with control characters', () => {
    expect(renderTable(['A'], [['one\ntwo\u001b[31m red\u0007']])).toBe('A\none two red');
  });

  test('a table without rows is its head', () => {
    expect(renderTable(['A', 'B'], [])).toBe('A  B');
  });

  test('fields stand in a column', () => {
    expect(
      renderFields([
        ['a', '1'],
        ['name', ''],
      ]),
    ).toBe('a:     1\nname:  -');
  });
});

test('sizes, times and ages are shown in their largest unit', () => {
  expect([0, 512, 1536, 1024 ** 2 * 300, 1024 ** 4 * 5000].map(formatBytes)).toEqual([
    '0 B',
    '512 B',
    '1.5 KiB',
    '300 MiB',
    '5000 TiB',
  ]);
  expect([0.42, 85.4, 7400, 125_000].map(formatMs)).toEqual(['0.4 ms', '85 ms', '7.4 s', '125 s']);
  const now = new Date('2024-01-02T00:00:00Z');
  const ago = (seconds: number) => formatAge(new Date(now.getTime() - seconds * 1000), now);
  expect([5, 60, 7200, 86_400, -3].map(ago)).toEqual(['5s', '1m', '2h', '1d', '0s']);
  expect(formatAge(undefined, now)).toBe('-');
  expect(instanceStateWord(InstanceState.INSTANCE_STATE_PARKED)).toBe('parked');
  expect(instanceStateWord(99 as InstanceState)).toBe('unknown');
});

describe('a project', () => {
  test('is initless from port 7070 on unless flags or environment say otherwise, and flags win', () => {
    expect(projectOf({}, {})).toMatchObject({ name: 'initless', ports: { grpc: 7070, http: 7071, gatewayHttp: 7074 } });
    expect(projectOf({}, { INITLESS_PROJECT: 'a', INITLESS_PORT_BASE: '17070' })).toMatchObject({
      name: 'a',
      ports: { grpc: 17070 },
      stateDir: '/var/lib/initless/a',
    });
    expect(projectOf({ project: 'b', portBase: 9000 }, { INITLESS_PROJECT: 'a' })).toMatchObject({
      name: 'b',
      ports: { http: 9001 },
    });
  });

  test('cannot have a name that leads elsewhere, nor a port that is none', () => {
    expect(() => projectOf({ project: '../../etc' }, {})).toThrow(/cannot be the name/);
    expect(() => projectOf({}, { INITLESS_PORT_BASE: 'x' })).toThrow(/port base/);
  });
});

describe('what `up` starts', () => {
  const last = { parts: [], build: '', settings: '/s/last.yaml', codeDir: undefined };

  test('flags win over the last settings, those over ./settings.yaml', () => {
    expect(upSettings({ settings: 'a.yaml' }, last, '/w', () => true).settings).toBe('/w/a.yaml');
    expect(upSettings({}, last, '/w', () => true).settings).toBe('/s/last.yaml');
    expect(upSettings({}, undefined, '/w', () => true).settings).toBe('/w/settings.yaml');
    expect(upSettings({}, undefined, '/w', () => false).settings).toBeUndefined();
  });

  test('is the control plane, then the gateway, each with the ports of its project', () => {
    const project = projectOf({ project: 'p', portBase: 9000 }, {});
    const plan = planFor(
      project,
      { settings: '/s.yaml', codeDir: undefined, gateways: 1, redis: false },
      '/root',
      'build',
    );
    expect(plan.parts.map(({ name, readyUrl }) => [name, readyUrl])).toEqual([
      ['control-plane', 'http://127.0.0.1:9001/readyz'],
      ['gateway', 'http://127.0.0.1:9004/readyz'],
    ]);
    expect(plan.parts[0]?.args).toContain('/s.yaml');
    expect(plan.parts[1]?.args).toContain('127.0.0.1:9000');
  });
});

test('a part that ends again and again is started ever later, up to 15 s, and at once after it ran well', () => {
  const quick = Array.from({ length: 9 }).reduce<(typeof NO_BACKOFF)[]>(
    (ends) => [...ends, nextBackoff(ends.at(-1) ?? NO_BACKOFF, 10)],
    [],
  );
  expect(quick.map(({ delayMs }) => delayMs)).toEqual([250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000]);
  expect(nextBackoff(quick.at(-1) as typeof NO_BACKOFF, 60_000).delayMs).toBe(250);
});

test('hosts are joined by name whoever knows of them', () => {
  const container = { host: 'b', container: 'p-b', state: 'running', address: '10.0.0.2' } as never;
  const rows = joinHosts([container], [Host.fromPartial({ name: 'a' }), Host.fromPartial({ name: 'b' })]);
  expect(rows.map(({ name, container: c, host }) => [name, c !== undefined, host !== undefined])).toEqual([
    ['a', false, true],
    ['b', true, true],
  ]);
});

test('mounts below a folder are found by whole names, the deepest first', () => {
  const line = (path: string) => `36 35 98:0 / ${path} rw,noatime shared:1 - ext4 /dev/x rw`;
  const text = ['/', '/var/lib/initless/p/a', '/var/lib/initless/p/a/b\\040c', '/var/lib/initless/p2']
    .map(line)
    .join('\n');
  expect(mountsBelow(text, '/var/lib/initless/p')).toEqual(['/var/lib/initless/p/a/b c', '/var/lib/initless/p/a']);
});

test('a demo tells the steps of an image build and every line of the other stages', () => {
  const narrator = new Narrator('flask');
  const told = [
    { stage: 'image', line: 'Sending build context' },
    { stage: 'image', line: 'Step 1/5 : FROM debian:trixie-slim' },
    { stage: 'image', line: 'Get:1 trixie InRelease' },
    { stage: 'image', line: '[build 2/5] RUN apt-get update (cached)' },
    { stage: 'start', line: ' * Running on http://127.0.0.1:8080' },
    { stage: 'start', line: '' },
    { stage: 'dump', line: 'dumped' },
  ].map((output) => narrator.tell(output)?.replace(/ +/g, ' '));
  expect(told).toEqual([
    ' flask image',
    ' flask image Step 1/5 : FROM debian:trixie-slim',
    undefined,
    ' flask image [build 2/5] RUN apt-get update (cached)',
    ' flask start * Running on http://127.0.0.1:8080',
    undefined,
    ' flask dump dumped',
  ]);
});

test('kernels are compared by number, not by text', () => {
  expect(['6.18.44-fc', '5.10.0-28-amd64', '10.0'].every(kernelIsNewEnough)).toBe(true);
  expect(['5.9.1', '4.19.0', 'unknown'].some(kernelIsNewEnough)).toBe(false);
});
