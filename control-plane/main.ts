import { join } from 'node:path';
import { InitlessError, problemOf } from '../proto/rpc/errors.js';
import { assemble } from './assembly.js';
import { type Reading, SettingsWatch } from './config/settings-watch.js';
import { ContextStore } from './contexts/context-store.js';
import { EventLog } from './events.js';
import { createLogger } from './logging.js';
import {
  type ControlPlane,
  type ControlPlaneOptions,
  DEFAULT_HTTP_LISTEN,
  DEFAULT_LISTEN,
  DEFAULT_OWN_PORTS,
} from './options.js';
import { HttpSide, splitAddress } from './rpc/http.js';
import { Listeners } from './rpc/listeners.js';
import { openStore } from './store/open.js';

export type { ControlPlane, ControlPlaneOptions } from './options.js';

/** Calls under way are given this long when it stops. */
const DRAIN_MS = 2_000;
/** Build contexts that nothing refers to are looked for this often. */
const COLLECT_MS = 60_000;

/**
 * Starts a control plane; it listens, and is ready, when this resolves. Errors: BAD_CONFIG and NOT_FOUND (settings),
 * STORE_DAMAGED, STORE_FAILED (in use), PORT_TAKEN.
 */
export async function startControlPlane(options: ControlPlaneOptions): Promise<ControlPlane> {
  const log = options.logger ?? createLogger('control-plane');
  const onError = (what: string, error: unknown) => log.error({ err: error }, `${what} failed`);
  const events = new EventLog();
  events.subscribe(({ kind: event, message, service, host, instance, revision, problem }) => {
    const fields = { event, service, host, instance, revision, code: problem?.code };
    log[problem === undefined ? 'info' : 'warn'](fields, message);
  });
  const undo: (() => Promise<void>)[] = [];
  const stopAll = async () => {
    for (const step of undo.splice(0).reverse()) await step();
  };
  try {
    // What is configured, and what is stored.
    const settings = await SettingsWatch.open({
      settingsPath: options.settingsPath,
      codeDir: options.codeDir,
      env: options.env ?? process.env,
      cwd: options.cwd ?? process.cwd(),
    });
    for (const warning of settings.current.warnings) log.warn(warning);
    const contextsFolder = join(options.stateDir, 'contexts');
    const { stateDir, project } = options;
    const place = { settings: settings.current.settings, stateDir, project, contexts: contextsFolder };
    const store = options.store ?? (await openStore(place, (why) => log.warn(`waiting: ${why}`), options.signal));
    undo.push(() => store.close());
    store.watch(({ kind, message }) => {
      const problem = kind === 'store.away' ? problemOf(new InitlessError('STORE_FAILED', message)) : undefined;
      events.add({ kind, message, problem });
    });
    const stored = await store.load();
    if (store.lost) {
      const message = `${store.description} holds nothing; what hosts serve is taken back from them, all else has to be applied again`;
      events.add({ kind: 'store.empty', message });
    }
    const contexts = await ContextStore.open(contextsFolder);

    // What is made of it.
    const listen = options.listen ?? DEFAULT_LISTEN;
    const httpListen = options.httpListen ?? DEFAULT_HTTP_LISTEN;
    const ownPorts = new Set([...(options.ownPorts ?? DEFAULT_OWN_PORTS), portOf(listen), portOf(httpListen)]);
    let refused: string[] = [];
    const warnings = () => [
      ...refused,
      ...[store.trouble()].filter((text) => text !== ''),
      ...settings.current.warnings,
    ];
    const parts = assemble({ settings, store, stored, contexts, events, ownPorts, onError, warnings });
    const { registry, intake, codeDir, fleet, reconciler, gateways } = parts;
    undo.push(() => registry.settle());

    // Who may ask.
    let ready = false;
    const http = new HttpSide({ reconciler, gateways, isReady: () => ready });
    const listeners = new Listeners(parts.makeServer, log);
    undo.push(
      () => listeners.stop(DRAIN_MS),
      () => http.close(),
    );
    const grpcPort = await listeners.listen(listen);
    const httpPort = await http.listen(httpListen);
    ownPorts.add(grpcPort).add(httpPort);
    if (options.extraAddresses !== undefined) listeners.listenLater(options.extraAddresses);

    // The services, under the settings in force.
    const applySettings = async () => {
      await intake.applySettings((service, error) => onError(`applying the settings to ${service}`, error));
      await codeDir.use(settings.current.settings.codeDir);
    };
    undo.push(() => codeDir.stop());
    await applySettings();
    await fleet.forget(new Set(registry.all().flatMap((record) => [record.current?.host ?? '', ...record.hosts])));
    // What is taken back from hosts may refer to contexts that nothing refers to yet.
    const collectContexts = () => (store.lost ? Promise.resolve() : intake.collect());
    await collectContexts();

    // What keeps it going.
    const onReading = async (reading: Reading) => {
      if (reading.kind === 'refused') {
        const problem = problemOf(reading.error);
        refused = [`the settings were not taken: ${problem.message}`];
        events.add({ kind: 'settings.refused', message: `${refused[0]}; those before stay in force`, problem });
        return;
      }
      refused = [];
      events.add({ kind: 'settings.loaded', message: `settings were read again: ${reading.settings.file || 'none'}` });
      fleet.tellSettings();
      await applySettings().catch((error: unknown) => onError('applying the settings', error));
    };
    settings.start(onReading);
    undo.push(() => settings.stop());
    const collect = () => void collectContexts().catch((error: unknown) => onError('removing build contexts', error));
    const collector = setInterval(collect, COLLECT_MS);
    reconciler.start();
    undo.push(async () => {
      ready = false;
      listeners.setReady(false);
      clearInterval(collector);
      gateways.close();
      fleet.close();
      await reconciler.stop();
    });
    ready = true;
    listeners.setReady(true);
    log.info({ grpcPort, httpPort, store: store.description }, 'the control plane is ready');

    let stopping: Promise<void> | undefined;
    return {
      grpcPort,
      httpPort,
      reload: () => settings.reload(),
      stop: () => {
        stopping ??= stopAll();
        return stopping;
      },
    };
  } catch (error) {
    await stopAll();
    throw error;
  }
}

/** Runs a control plane until `signal` aborts; SIGHUP makes it read its settings again. Errors: as at the start. */
export async function runControlPlane(options: ControlPlaneOptions, signal: AbortSignal): Promise<void> {
  const controlPlane = await startControlPlane({ ...options, signal });
  const onHangUp = () => void controlPlane.reload();
  process.on('SIGHUP', onHangUp);
  try {
    await new Promise<void>((resolve) => {
      if (signal.aborted) resolve();
      else signal.addEventListener('abort', () => resolve(), { once: true });
    });
  } finally {
    process.off('SIGHUP', onHangUp);
    await controlPlane.stop();
  }
}

function portOf(address: string): number {
  return splitAddress(address).port;
}
