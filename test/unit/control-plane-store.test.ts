import { cp, mkdir, mkdtemp, readdir, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ClassicLevel } from 'classic-level';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { parseServiceConfig } from '../../control-plane/config/service.js';
import { parseSettings } from '../../control-plane/config/settings.js';
import type { ServiceRecord } from '../../control-plane/core/model.js';
import { decodeService, encodeService } from '../../control-plane/store/codec.js';
import { EmbeddedStore } from '../../control-plane/store/embedded.js';
import { FailingStore } from '../../control-plane/store/failing.js';
import { MemoryStore } from '../../control-plane/store/memory.js';
import type { Store } from '../../control-plane/store/store.js';
import { type InitlessError, toInitlessError } from '../../proto/rpc/errors.js';

const { settings } = parseSettings(undefined, 'defaults');
const problem = { code: 'DUMP_FAILED', message: 'no', nextStep: 'try', outputTail: ['a', 'b'] };

const HOST = {
  ...{ name: 'host1', leaseAddress: '10.0.0.1:7072', identity: 'i', cordoned: true },
  ...{ drainingSince: 7, drainForced: true as const },
};

function record(name: string, more: Partial<ServiceRecord> = {}): ServiceRecord {
  const text = `service_name: ${name}\nservice_port: 1\nhost_port: 2\nenv: {A: b}\n`;
  const config = parseServiceConfig(text, 'config.yaml', settings);
  const source = { text, dockerfile: 'Dockerfile' };
  const base = { name, source, config, folder: '', folderGone: false, removed: false, updatedAt: 5 };
  return { ...base, host: '', hosts: [], previous: [], ...more };
}

function full(name: string): ServiceRecord {
  const { config } = record(name);
  const revision = { id: 'abc', contextDigest: 'sha256:1', createdAt: 1, config };
  const made = { ...revision, imageId: 'sha256:2', host: 'host1', madeAt: 3 };
  return record(name, {
    folder: 'f',
    host: 'host1',
    current: { ...made, problem, making: { kind: 'wanted', force: true, attempts: 1, notBefore: 9 } },
    pending: { ...revision, making: { kind: 'failed', problem, at: 4 } },
    hosts: ['host1', 'host2'],
    previous: [made],
    rolledBack: true,
  });
}

let root: string;
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'initless-store-'));
});
afterEach(() => rm(root, { recursive: true }));

const openEmbedded = () => EmbeddedStore.open(join(root, 'store'), join(root, 'contexts'));
const refusal = async (work: Promise<unknown>): Promise<InitlessError> =>
  toInitlessError(await work.then(() => new Error('it was not refused')).catch((error: unknown) => error));

describe.each<[string, () => Promise<Store>]>([
  ['embedded', openEmbedded],
  ['memory', async () => new MemoryStore()],
])('the %s store', (_name, open) => {
  let store: Store;
  beforeEach(async () => {
    store = await open();
  });
  afterEach(() => store.close());

  it('begins empty', async () => {
    expect(await store.load()).toEqual({ services: [], hosts: [], histories: new Map() });
  });

  it('gives back what was put, whole', async () => {
    await store.putService(full('b'));
    await store.putService(record('a'));
    await store.putHost(HOST);
    const { services, hosts } = await store.load();
    expect(services.sort((a, b) => (a.name < b.name ? -1 : 1))).toEqual([record('a'), full('b')]);
    expect(hosts).toEqual([HOST]);
  });

  it('gives back how services are used, and deletes what is not given', async () => {
    const history = { lastUse: 5, bins: [[3, 1.5]] };
    await store.putHistories(
      new Map<string, unknown>([
        ['a', history],
        ['b', history],
      ]),
    );
    await store.putHistories(
      new Map<string, unknown>([
        ['b', undefined],
        ['c', { lastUse: 6 }],
      ]),
    );
    expect((await store.load()).histories).toEqual(
      new Map<string, unknown>([
        ['a', history],
        ['c', { lastUse: 6 }],
      ]),
    );
  });

  it('keeps the last of several changes, made at once', async () => {
    await Promise.all(Array.from({ length: 20 }, (_, n) => store.putService(record('a', { updatedAt: n }))));
    expect((await store.load()).services).toEqual([record('a', { updatedAt: 19 })]);
  });

  it('deletes, and does not mind what is not there', async () => {
    await store.putService(record('a'));
    await store.putHost({ ...HOST, name: 'h' });
    await store.deleteService('a');
    await store.deleteService('b');
    await store.deleteHost('h');
    expect(await store.load()).toMatchObject({ services: [], hosts: [] });
  });

  it('is not changed by what is done to a record afterwards', async () => {
    const mine = record('a');
    await store.putService(mine);
    mine.config.hostPort = 9;
    (await store.load()).services[0]!.config.hostPort = 10;
    expect((await store.load()).services[0]?.config.hostPort).toBe(2);
  });
});

describe('the failing store', () => {
  it('fails every change with a reason', async () => {
    const store = new FailingStore();
    expect((await refusal(store.putService())).code).toBe('STORE_FAILED');
    expect((await refusal(store.deleteHost())).code).toBe('STORE_FAILED');
    expect((await refusal(store.putHistories())).code).toBe('STORE_FAILED');
    expect(await store.load()).toMatchObject({ services: [], hosts: [] });
  });
});

describe('the embedded store', () => {
  /** Three services in a store that was closed. */
  async function filled(): Promise<string> {
    const store = await openEmbedded();
    for (const name of ['a', 'b', 'c']) await store.putService(full(name));
    await store.close();
    return join(root, 'store');
  }

  it('is the same after it was closed and opened', async () => {
    await filled();
    const store = await openEmbedded();
    expect((await store.load()).services).toEqual(['a', 'b', 'c'].map(full));
    await store.close();
  });

  it('leaves a damaged history of use out, and opens', async () => {
    const folder = await filled();
    const level = new ClassicLevel(folder);
    await level.put('history/a', '{"version":1,"sha256":"0","content":"{}"}');
    await level.put('history/b', 'x');
    await level.close();
    const store = await openEmbedded();
    await store.putHistories(new Map([['c', 7]]));
    const { services, histories } = await store.load();
    expect(services).toHaveLength(3);
    expect(histories).toEqual(new Map([['c', 7]]));
    await store.close();
  });

  it('is open in one process at a time', async () => {
    const store = await openEmbedded();
    const error = await refusal(openEmbedded());
    expect(error.code).toBe('STORE_FAILED');
    expect(error.message).toContain(join(root, 'store'));
    await store.close();
  });

  it('is refused when its folder was removed or emptied, and opens when it is put back', async () => {
    const folder = await filled();
    await cp(folder, join(root, 'backup'), { recursive: true });
    await rm(folder, { recursive: true });
    const gone = await refusal(openEmbedded());
    expect(gone.code).toBe('STORE_DAMAGED');
    expect(gone.nextStep).toContain(`${folder}.json`);
    await mkdir(folder);
    expect((await refusal(openEmbedded())).code).toBe('STORE_DAMAGED');
    await cp(join(root, 'backup'), folder, { recursive: true });
    const store = await openEmbedded();
    expect((await store.load()).services).toHaveLength(3);
    await store.close();
  });

  it('is refused when it is gone with its witness, but build contexts are there', async () => {
    await mkdir(join(root, 'contexts'));
    await writeFile(join(root, 'contexts', 'x.tar'), '');
    expect((await refusal(openEmbedded())).code).toBe('STORE_DAMAGED');
  });

  it('is refused when it is older than what it acknowledged, or another one', async () => {
    const folder = await filled();
    await cp(folder, join(root, 'old'), { recursive: true });
    const store = await openEmbedded();
    await store.putService(full('d'));
    await store.close();
    await rm(folder, { recursive: true });
    await cp(join(root, 'old'), folder, { recursive: true });
    const older = await refusal(openEmbedded());
    expect(older.message).toContain('lost the last 1 of 4');
    const witness = JSON.parse(await readFile(`${folder}.json`, 'utf8')) as object;
    await writeFile(`${folder}.json`, JSON.stringify({ ...witness, id: 'other' }));
    expect((await refusal(openEmbedded())).message).toContain('another store');
    await writeFile(`${folder}.json`, '{');
    expect((await refusal(openEmbedded())).message).toContain('witness');
  });

  it('cut at any place opens whole or is refused: never with less than it acknowledged', async () => {
    const folder = await filled();
    await cp(root, `${root}-whole`, { recursive: true });
    let refused = 0;
    try {
      for (const name of await readdir(folder)) {
        const { size } = await stat(join(`${root}-whole`, 'store', name));
        for (const part of [0, 0.1, 0.5, 0.9, 0.99]) {
          await rm(root, { recursive: true });
          await cp(`${root}-whole`, root, { recursive: true });
          await truncate(join(folder, name), Math.floor(size * part));
          try {
            const store = await openEmbedded();
            const { services } = await store.load().finally(() => store.close());
            expect(services, `${name} cut to ${part}`).toHaveLength(3);
          } catch (error) {
            expect(toInitlessError(error).code, `${name} cut to ${part}: ${error}`).toBe('STORE_DAMAGED');
            refused += 1;
          }
        }
      }
    } finally {
      await rm(`${root}-whole`, { recursive: true });
    }
    expect(refused).toBeGreaterThan(5);
  });
});

describe('a stored record', () => {
  it('is refused when a byte of it was changed', () => {
    const text = encodeService(full('a'));
    expect(decodeService(text)).toEqual(full('a'));
    for (let at = 0; at < text.length; at += 37) {
      const changed = text.slice(0, at) + (text[at] === 'x' ? 'y' : 'x') + text.slice(at + 1);
      expect(() => decodeService(changed)).toThrow();
    }
  });
});
