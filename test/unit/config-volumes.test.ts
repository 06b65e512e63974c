import { describe, expect, it } from 'vitest';
import { parseServiceConfig } from '../../control-plane/config/service.js';
import { parseSettings } from '../../control-plane/config/settings.js';
import type { InitlessError } from '../../proto/rpc/errors.js';

const { settings } = parseSettings(undefined, 'defaults');

function parse(volumes: string) {
  const text = `service_name: flask\nservice_port: 9000\nhost_port: 8001\nvolumes:\n${volumes}\n`;
  return parseServiceConfig(text, 'config.yaml', settings).volumes;
}

function faults(volumes: string): string[] {
  try {
    parse(volumes);
  } catch (error) {
    expect((error as InitlessError).code).toBe('BAD_CONFIG');
    return (error as InitlessError).violations.map((one) => one.description);
  }
  return [];
}

describe('volumes in config.yaml', () => {
  it('are written as with docker run: a path of the host or a name, the path inside, and what may be done', () => {
    expect(parse('  - /srv/models:/models:ro\n  - data:/var/lib/app\n  - Cache_1.x:/cache:rw')).toEqual([
      { source: '/srv/models', target: '/models', readOnly: true },
      { source: 'data', target: '/var/lib/app', readOnly: false },
      { source: 'Cache_1.x', target: '/cache', readOnly: false },
    ]);
  });

  it('may be maps, with or without the type that Docker wants', () => {
    expect(
      parse(
        '  - {source: data, target: /data}\n  - {type: bind, source: "/srv/my models", target: /m, read_only: true}\n  - {type: volume, source: d, target: /d}',
      ),
    ).toEqual([
      { source: 'data', target: '/data', readOnly: false },
      { source: '/srv/my models', target: '/m', readOnly: true },
      { source: 'd', target: '/d', readOnly: false },
    ]);
  });

  it('are known by one name each, whatever slashes are written', () => {
    expect(parse('  - //srv//a/:/x//y/')).toEqual([{ source: '/srv/a', target: '/x/y', readOnly: false }]);
  });

  it.each([
    ['  - ./data:/data', 'volumes[0]: found "./data:/data", expected an absolute path on the host'],
    ['  - ../x:/data', 'expected an absolute path on the host'],
    ['  - /srv/../etc:/data', 'expected an absolute path on the host'],
    ['  - ":/data"', 'expected an absolute path on the host'],
    ['  - -x:/data', 'expected an absolute path on the host'],
    ['  - data', 'expected "SOURCE:/path/inside"'],
    ['  - a:/b:ro:z', 'expected "SOURCE:/path/inside"'],
    ['  - a:/b:z', 'expected "ro" or "rw"'],
    ['  - 7', 'volumes[0]: found 7, expected "SOURCE:/path/inside"'],
    ['  - a:b', 'expected an absolute path inside'],
    ['  - a:/', 'expected an absolute path inside'],
    ['  - a:/x/../..', 'expected an absolute path inside'],
    ['  - "a:/my data"', 'expected an absolute path inside'],
    ['  - a:/proc', 'expected an absolute path inside'],
    ['  - a:/sys/fs/', 'expected an absolute path inside'],
    ['  - a:/dev/shm', 'expected an absolute path inside'],
    ['  - a:/etc/hosts', 'expected an absolute path inside'],
    ['  - {source: a}', 'volumes[0].target: found nothing, expected an absolute path inside'],
    ['  - {target: /a}', 'volumes[0].source: found nothing, expected an absolute path on the host'],
    ['  - {source: a, target: /a, read_only: 1}', 'volumes[0].read_only: found 1, expected true or false'],
    ['  - {source: a, target: /a, type: bind}', 'volumes[0].type: found "bind", expected "volume"'],
    ['  - {source: a, target: /a, readonly: true}', 'volumes[0].readonly: found true, expected one of source, target'],
    ['  a: /b', 'volumes: found'],
  ])('that cannot be are told with what is expected: %s', (written, fault) => {
    const [only, ...more] = faults(written);
    expect(only).toMatch(/^config.yaml:[45]: /);
    expect(only).toContain(fault);
    expect(more).toEqual([]);
  });

  it('may be next to the places that are taken', () => {
    expect(parse('  - a:/etc/app\n  - b:/process\n  - c:/developers').map(({ target }) => target)).toEqual([
      '/etc/app',
      '/process',
      '/developers',
    ]);
  });

  it('are not two at one place, and every fault is told', () => {
    expect(faults('  - a:/x\n  - b:/x/\n  - nothing')).toEqual([
      expect.stringContaining('config.yaml:6: volumes[1]: found "b:/x/", expected another path inside'),
      expect.stringContaining('config.yaml:7: volumes[2]: found "nothing"'),
    ]);
  });
});
