import { AdminServiceDefinition } from '../proto/gen/initless/v1/admin.js';
import { FleetServiceDefinition, type HostReport, type HostSettings } from '../proto/gen/initless/v1/fleet.js';
import { RoutingServiceDefinition } from '../proto/gen/initless/v1/routing.js';
import { createRpcServer, type RpcServer } from '../proto/rpc/server.js';
import { BuildLog } from './build-log.js';
import type { Settings } from './config/settings.js';
import type { SettingsWatch } from './config/settings-watch.js';
import type { ContextStore } from './contexts/context-store.js';
import type { Policy } from './core/model.js';
import type { EventLog } from './events.js';
import { Fleet } from './fleet/fleet.js';
import { Pools } from './fleet/pools.js';
import { Reconciler } from './reconciler.js';
import { adminService } from './rpc/admin/admin-service.js';
import { fleetService } from './rpc/fleet-service.js';
import { Gateways } from './rpc/routing-service.js';
import { CodeDir } from './services/code-dir.js';
import { Intake } from './services/intake.js';
import { Recovery } from './services/recovery.js';
import { Registry } from './services/registry.js';
import type { Store, Stored } from './store/store.js';
import { readVersion } from './version.js';

/** What a control plane is made from: all that was read from disk. */
export interface Ingredients {
  settings: SettingsWatch;
  store: Store;
  stored: Stored;
  contexts: ContextStore;
  events: EventLog;
  /** Ports that no service may have. */
  ownPorts: ReadonlySet<number>;
  /** Told what goes wrong without anybody waiting for it. */
  onError: (what: string, error: unknown) => void;
  /** Warnings besides those of the parts. */
  warnings: () => string[];
}

/** The parts of a control plane, connected; nothing runs yet. */
export function assemble(from: Ingredients) {
  const { store, stored, contexts, events, onError } = from;
  const settings = () => from.settings.current.settings;
  const builds = new BuildLog();
  const registry = new Registry(store, stored.services);
  const intake = new Intake({ registry, contexts, events, settings, ownPorts: () => [...from.ownPorts] });
  const codeDir = new CodeDir({ registry, intake, events });
  const pools = new Pools({ store, onError }, stored.histories);
  const recovery = store.lost ? new Recovery(registry, events, onError) : undefined;
  const onReport = (host: string, report: HostReport) => {
    recovery?.take(host, report);
    pools.observe(host, report, Date.now());
  };
  const fleet = new Fleet(
    {
      store,
      events,
      builds,
      onError,
      onReport,
      settings: () => hostSettings(settings()),
      policy: () => policyOf(settings()),
    },
    stored.hosts,
  );
  const reconciler = new Reconciler({
    ...{ registry, fleet, pools, events, builds, onError },
    policy: () => policyOf(settings()),
    recovering: store.lost,
  });
  const gateways = new Gateways(reconciler, events);
  const version = readVersion();
  const info = () => ({
    version,
    settingsFile: from.settings.current.file,
    codeDir: settings().codeDir,
    store: store.description,
    warnings: [...from.warnings(), ...codeDir.warnings()],
  });
  const admin = adminService({ registry, intake, fleet, reconciler, gateways, events, builds, info });

  const makeServer = (): RpcServer => {
    const definitions = [AdminServiceDefinition, FleetServiceDefinition, RoutingServiceDefinition];
    const names = definitions.map((definition) => definition.fullName);
    const server = createRpcServer(names, onError);
    server.add(AdminServiceDefinition, admin);
    server.add(FleetServiceDefinition, fleetService(fleet, contexts));
    server.add(RoutingServiceDefinition, gateways.service());
    return server;
  };
  return { registry, intake, codeDir, fleet, reconciler, gateways, makeServer };
}

function hostSettings(settings: Settings): HostSettings {
  return {
    reservedPortFirst: settings.reservedPorts[0],
    reservedPortLast: settings.reservedPorts[1],
    checkpointDir: settings.checkpointDir,
    recycleWorkers: settings.recycleWorkers,
    copyRate: settings.copyRate * 1e6,
    agents: [],
  };
}

function policyOf(settings: Settings): Policy {
  return { hostTimeoutMs: Math.round(settings.hostTimeout * 1_000), keepRevisions: settings.keepRevisions };
}
