import { beforeEach, describe, expect, it } from 'vitest';
import { parseServiceConfig } from '../../control-plane/config/service.js';
import { parseSettings } from '../../control-plane/config/settings.js';
import { applyMaking } from '../../control-plane/core/intake.js';
import { assignmentOf, revisionId } from '../../control-plane/core/revision.js';
import { type Ending, HOST_TIMEOUT_MS, World } from './control-plane-world.js';

const { settings } = parseSettings(undefined, 'defaults');
const config = (more = '') =>
  parseServiceConfig(`service_name: web\nservice_port: 1\nhost_port: 2\n${more}`, 'config.yaml', settings);

describe('named volumes, as the control plane sees them', () => {
  let world: World;
  beforeEach(() => {
    world = new World(['host1', 'host2']);
    world.connect('host1');
  });

  /** Carries out what is decided until nothing is. */
  function settle(ending: Ending = 'made') {
    for (let steps = 0; steps < 50; steps++) {
      world.now += 10_000;
      const decided = world.step();
      world.endBuild(ending);
      if (decided === 0 && world.work.length === 0) return;
    }
    throw new Error('it did not come to rest');
  }

  function hasVolumes(host: string) {
    world.hosts.set(host, { ...world.hosts.get(host)!, volumeServices: ['web'] });
  }

  const deletions = () => world.decided.filter((decision) => decision.type === 'deleteRevisions');
  const volumesOf = (host: string) => world.hosts.get(host)?.volumeServices;

  it('go when their service is removed, and only then is it forgotten', () => {
    world.apply('web', 'one');
    settle();
    hasVolumes('host1');
    world.remove('web');
    settle();
    expect(deletions().at(-1)).toMatchObject({ host: 'host1', keep: [], removed: true });
    expect(volumesOf('host1')).toEqual([]);
    expect(world.services.has('web')).toBe(false);
    const kinds = world.decided.map((decision) => decision.type);
    expect(kinds.indexOf('withdraw')).toBeLessThan(kinds.indexOf('deleteRevisions'));
    expect(kinds.at(-1)).toBe('forget');
  });

  it('go too when the service never had a checkpoint', () => {
    world.apply('web', 'one');
    settle('uncheckpointed');
    hasVolumes('host1');
    world.remove('web');
    settle();
    expect(volumesOf('host1')).toEqual([]);
    expect(world.services.has('web')).toBe(false);
  });

  it('wait for a host that is away', () => {
    world.apply('web', 'one');
    settle();
    hasVolumes('host1');
    world.disconnect('host1', false);
    world.remove('web');
    settle();
    expect(world.services.has('web')).toBe(true);
    world.connect('host1');
    settle();
    expect(volumesOf('host1')).toEqual([]);
    expect(world.services.has('web')).toBe(false);
  });

  it('outlive revisions, and the move of their service to another host', () => {
    world.apply('web', 'one');
    settle();
    hasVolumes('host1');
    for (const content of ['two', 'three', 'four']) {
      world.apply('web', content);
      settle();
    }
    world.disconnect('host1', true);
    world.connect('host2');
    world.now += HOST_TIMEOUT_MS + 1;
    settle();
    expect(world.services.get('web')?.current?.host).toBe('host2');
    world.connect('host1');
    settle();
    expect(deletions().length).toBeGreaterThan(0);
    expect(deletions().some((decision) => decision.removed)).toBe(false);
    expect(volumesOf('host1')).toEqual(['web']);
  });

  it('of a service that nobody knows are left for a person to judge', () => {
    hasVolumes('host1');
    settle();
    expect(world.decided).toEqual([]);
  });

  it('that the host lacked are looked for again once it is back, as after host up --volume', () => {
    world.apply('web', 'one');
    world.step();
    world.step();
    const { pending } = world.services.get('web')!;
    const problem = { code: 'VOLUME_MISSING', message: '', nextStep: '', outputTail: [] };
    world.work.length = 0;
    const failed = { kind: 'failed', problem } as const;
    world.services.set('web', applyMaking(world.services.get('web')!, pending!.id, 'host1', failed, world.now));
    settle();
    expect(world.services.get('web')?.current).toBeUndefined();
    world.disconnect('host1', true);
    world.now += 1_000;
    world.connect('host1');
    settle();
    expect(world.services.get('web')?.current?.id).toBe(pending?.id);
  });
});

describe('what makes a revision', () => {
  const id = (more = '') => revisionId('sha256:content', config(more));

  it('is each volume: its source, its place, and whether it can be written', () => {
    const ids = [
      '',
      'volumes: [a:/data]',
      'volumes: [b:/data]',
      'volumes: [/srv/b:/data]',
      'volumes: [a:/other]',
      'volumes: [a:/data:ro]',
      'volumes: [a:/data, b:/more]',
    ].map(id);
    expect(new Set(ids).size).toBe(ids.length);
    expect(id('volumes: [{source: a, target: /data}]')).toBe(id('volumes: [a:/data]'));
  });

  it('is an environment variable', () => {
    expect(id('env: {A: 1}')).not.toBe(id('env: {A: 2}'));
  });

  it('is not a limit: it holds for new instances at once', () => {
    expect(id('memory_limit: 64m\ncpus: 0.5')).toBe(id());
  });

  it('is what it was before there were volumes', () => {
    expect(id()).toBe(id('volumes: []'));
    // As the versions before that key computed it; another one would have every service made again.
    expect(id()).toBe('7ff1f7ccb97d');
  });

  it("leaves a host with the volumes of the revision that serves and with today's limits", () => {
    const world = new World(['host1']);
    world.connect('host1');
    world.apply('web', 'one', 'volumes: [a:/data]\nmemory_limit: 64m\n');
    for (let steps = 0; steps < 5; steps++) {
      world.step();
      world.endBuild('made');
    }
    world.apply('web', 'one', 'volumes: [b:/data]\nmemory_limit: 128m\ncpus: 2\n');
    const record = world.services.get('web')!;
    const { config: told } = assignmentOf(record, record.current!);
    expect(told?.volumes).toEqual([{ source: 'a', target: '/data', readOnly: false }]);
    expect(told).toMatchObject({ memoryLimit: 128 * 2 ** 20, cpus: 2 });
  });
});
