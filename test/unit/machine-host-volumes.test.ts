import { describe, expect, it } from 'vitest';
import { type HostSpecInput, hostSpec } from '../../control-plane/cli/machine/host-spec.js';
import {
  hostVolumeText,
  parseHostVolume,
  recordedVolumes,
  recordVolumes,
  volumesToHave,
} from '../../control-plane/cli/machine/host-volumes.js';
import { LABELS } from '../../control-plane/cli/machine/names.js';
import { InitlessError } from '../../proto/rpc/errors.js';

const read = (...texts: string[]) => texts.map(parseHostVolume);

describe('a volume of a host', () => {
  it('is a path of the machine and one of the host, read-only or not', () => {
    expect(read('/home/me/models/:/srv//models', '/data:/data:ro', '/a:/b:rw')).toEqual([
      { machine: '/home/me/models', host: '/srv/models', readOnly: false },
      { machine: '/data', host: '/data', readOnly: true },
      { machine: '/a', host: '/b', readOnly: false },
    ]);
    expect(read('/a:/b:ro', '/a:/b:rw').map(hostVolumeText)).toEqual(['/a:/b:ro', '/a:/b']);
  });

  it.each(['', '/a', 'a:/b', '/a:b', '/a:/b:z', '/a:/b:ro:', '/a/../b:/c', '/a:/b/../c', '/a:'])(
    'is not %j',
    (text) => {
      expect(() => parseHostVolume(text)).toThrow(InitlessError);
    },
  );

  it.each(['/', '/var', '/var/lib/docker', '/var/lib/docker/x', '/run/x', '/proc', '/etc', '/usr', '/opt', '/tmp'])(
    'does not lie at %s, which the host needs itself',
    (host) => {
      expect(() => parseHostVolume(`/data:${host}`)).toThrow(/needs its/);
    },
  );

  it.each(['/srv', '/opt/models', '/etc/ssl/mine', '/var/lib/app', '/tmp/exchange'])('may lie at %s', (host) => {
    expect(parseHostVolume(`/data:${host}`).host).toBe(host);
  });
});

describe('the volumes that host up gives a host', () => {
  it('are those that are asked for, where there is no such host yet', () => {
    expect(volumesToHave('h', undefined, undefined)).toEqual([]);
    expect(volumesToHave('h', read('/a:/b'), undefined)).toEqual(read('/a:/b'));
  });

  it('stay those that it has, where none are asked for or the same, in whatever order', () => {
    const has = read('/a:/srv/a', '/b:/srv/b:ro');
    expect(volumesToHave('h', undefined, has)).toEqual(has);
    expect(volumesToHave('h', read('/b:/srv/b:ro', '/a:/srv/a'), has)).toEqual(has);
  });

  it('are not changed behind the back of what runs on it: the error says how to', () => {
    const change = (asked: string[], has: string[]) => {
      try {
        volumesToHave('h', read(...asked), read(...has));
      } catch (error) {
        return error as InitlessError;
      }
      return undefined;
    };
    const error = change(['/b:/srv/b:ro', '/a:/srv/a'], ['/a:/srv/a']);
    expect(error).toMatchObject({ code: 'NOT_ALLOWED', message: 'the host h is there with /a:/srv/a' });
    expect(error?.nextStep).toContain(
      'initless host down h, then initless host up h --volume /a:/srv/a --volume /b:/srv/b:ro;',
    );
    expect(change(['/a:/srv/a'], [])?.message).toBe('the host h is there with no volumes');
    expect(change(['/a:/srv/a'], ['/a:/srv/a:ro'])?.code).toBe('NOT_ALLOWED');
  });

  it('are not two at one place', () => {
    expect(() => volumesToHave('h', read('/a:/x', '/b:/x/'), undefined)).toThrow('two volumes cannot both be at /x');
  });

  it('are mounted, and written down on its container; without any it is the container it was before', () => {
    const input: HostSpecInput = {
      project: 'initless',
      host: 'host1',
      imageId: 'sha256:1',
      networkId: 'n1',
      controlPlane: '10.77.0.1:7070',
      forbidden: [],
      nameservers: [],
      privilege: { privileged: true, missing: [], fatal: [] },
      volumes: read('/b:/srv/b:ro', '/a:/srv/a'),
      env: {},
    };
    const spec = hostSpec(input);
    expect(spec.HostConfig?.Binds).toEqual(['initless-host1-docker:/var/lib/docker', '/b:/srv/b:ro', '/a:/srv/a']);
    expect(recordedVolumes(spec.Labels?.[LABELS.volumes])).toEqual(read('/a:/srv/a', '/b:/srv/b:ro'));
    expect(hostSpec({ ...input, volumes: [] }).Labels).not.toHaveProperty(LABELS.volumes);
    expect(recordVolumes([])).toBeUndefined();
    expect(recordedVolumes(undefined)).toEqual([]);
  });
});
