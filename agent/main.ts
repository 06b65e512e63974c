import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import { cpus, totalmem } from 'node:os';
import path from 'node:path';
import { pino } from 'pino';
import { AgentServiceDefinition, type GetHostResponse } from '../proto/gen/initless/v1/agent.js';
import type { ConnectRequest, ServiceAssignment } from '../proto/gen/initless/v1/fleet.js';
import { TransferServiceDefinition } from '../proto/gen/initless/v1/transfer.js';
import { Event } from '../proto/gen/initless/v1/types.js';
import { repeat, sleep } from '../proto/rpc/deadline.js';
import { toInitlessError } from '../proto/rpc/errors.js';
import { createRpcServer } from '../proto/rpc/server.js';
import { Checkpoints } from './checkpoint/checkpoints.js';
import { Maker } from './checkpoint/make.js';
import { Revisions } from './checkpoint/revisions.js';
import { Assignments } from './fleet/assignments.js';
import { Commands } from './fleet/commands.js';
import { readIdentity } from './fleet/identity.js';
import { FleetLink } from './fleet/link.js';
import { type Instance, originText } from './instance/instance.js';
import { Instances } from './instance/instances.js';
import { LeaseService } from './instance/lease-service.js';
import { removeLeftovers } from './instance/leftovers.js';
import { reasonOnWire } from './instance/lifecycle.js';
import { Liveness } from './instance/liveness.js';
import { Logs } from './instance/logs.js';
import { Places } from './instance/place.js';
import { Pool } from './instance/pool.js';
import { Pressure } from './instance/pressure.js';
import { Records } from './instance/records.js';
import { Restorer } from './instance/restorer.js';
import { SandboxPool } from './instance/sandbox-pool.js';
import { Starter } from './instance/starter.js';
import { Usage } from './instance/usage.js';
import { Volumes } from './instance/volumes.js';
import { prepareCgroups } from './runtime/cgroups.js';
import { checkKernel, fingerprint } from './runtime/criu.js';
import { DockerEngine } from './runtime/docker.js';
import { DockerDaemon } from './runtime/dockerd.js';
import { kernelExits } from './runtime/exits.js';
import { kernelFreezer, processesOf } from './runtime/freezer.js';
import { fillerCgroup, LazyPages } from './runtime/lazy.js';
import { ownMemory, readMemory } from './runtime/memory.js';
import { KernelNetns } from './runtime/netns.js';
import { Runc } from './runtime/runc.js';
import { readAgentSettings } from './settings.js';
import { Copier } from './transfer/copier.js';
import { Exports } from './transfer/exports.js';
import { Rate } from './transfer/rate.js';
import { Staging } from './transfer/staging.js';
import { TransferService } from './transfer/transfer-service.js';

const VERSION = (
  JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as { version: string }
).version;
/** What a pool waits for memory to be read ahead, milliseconds: 1 GB from a good disk. */
const READ_AHEAD_MS = 2_000;
/** Leased ports until the control plane says otherwise. */
const DEFAULT_PORTS = { first: 20_000, last: 20_999 };
const TRIM_MS = 5_000;

/** The agent: everything it is made of, in the order in which it starts. */
async function main(): Promise<void> {
  const settings = readAgentSettings(process.env, process.argv.slice(2));
  const log = pino({ base: { host: settings.host } });
  const stopping = new AbortController();
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.once(signal, () => stopping.abort(new Error(`received ${signal}`)));
  }
  const { signal } = stopping;

  // The machine.
  await checkKernel();
  const here = await fingerprint();
  const docker = new DockerEngine();
  const daemon = new DockerDaemon(docker, settings.nameservers, log, () => {
    server.setReady(daemon.status.ready);
    link?.changed();
  });

  // What instances are made of.
  const state = (name: string) => path.join(settings.stateDir, name);
  const runc = new Runc();
  const sandboxes = new SandboxPool(
    new KernelNetns(),
    { hostAddress: settings.advertise, forbidden: settings.forbidden, ports: DEFAULT_PORTS },
    log,
  );
  let { checkpointDir } = settings;
  const volumes = new Volumes({
    root: state('volumes'),
    host: settings.host,
    own: () => [
      { path: settings.stateDir, what: "the agent's state" },
      { path: checkpointDir, what: "every service's checkpoints" },
    ],
  });
  const places = new Places(state('instances'), sandboxes, runc, settings.nameservers, volumes);
  const logs = new Logs(state('logs'));
  const revisions = new Revisions(state('revisions'));
  const checkpoints = new Checkpoints(settings.checkpointDir, settings.host, here, log);
  const assignments = new Assignments(settings.stateDir);

  // Who looks after them.
  const records = new Records();
  const noteRecord = (instance: Instance) =>
    records.note(instance, (error) =>
      log.error({ instance: instance.id, error }, 'the record of an instance could not be written'),
    );
  const onState = (instance: Instance) => {
    instances.track(instance);
    noteRecord(instance);
    const event = describe(instance);
    // Whoever waits for the instance is told first: log and report are not on the path of a request.
    setImmediate(() => tell(instance, event));
  };
  const tell = (instance: Instance, event: Event) => {
    log.info(
      {
        instance: instance.id,
        service: instance.service,
        origin: originText(instance.origin),
        reason: event.goneReason ? instance.reason : undefined,
        stages: event.stages,
      },
      event.kind,
    );
    link?.event({ ...event, host: settings.host });
    link?.changed();
    if (instance.state === 'parked') void measureMemory(instance);
    if (instance.state === 'gone') sweepCheckpoints();
  };
  const sweepCheckpoints = () => {
    const inUse = new Set(instances.list().map((other) => other.checkpointDir));
    checkpoints
      .sweep(inUse)
      .catch((error: unknown) => log.error({ error }, 'a replaced checkpoint could not be removed'));
  };
  // What automatic pools go by.
  const usage = new Usage();
  const usageEpoch = randomUUID();
  const measureMemory = async ({ id, service }: Instance) => {
    try {
      const bytes = await ownMemory(await processesOf(id));
      if (bytes > 0) usage.measured(service, bytes, performance.now());
    } catch (error) {
      log.warn({ instance: id, error }, 'the memory of a parked instance could not be measured');
    }
  };
  const lazy = new LazyPages({ exits: kernelExits, log });
  const restorer = new Restorer(lazy);
  const starter = new Starter({
    places,
    runc,
    restorer,
    checkpoints,
    revisions,
    logs,
    exits: kernelExits,
    lazy,
    log,
    onState,
  });
  const instances: Instances = new Instances({
    starter,
    places,
    freezer: kernelFreezer,
    exits: kernelExits,
    lazy,
    log,
    onState,
    onGranted: (service, found) => {
      const inUse = instances.list().filter((one) => one.service === service && one.leasesInUse > 0).length;
      usage.granted(service, found, inUse, performance.now());
    },
    onReservable: () => leaseService.reserve(),
    onCalledBack: (leases, reason) => leaseService.callBack(leases, reason),
    onFillEnded: (instance, leases, failure) => {
      leaseService.fillEnded(leases, failure);
      if (failure === undefined) noteRecord(instance);
      log.info({ instance: instance.id, error: failure?.message }, 'the fill of an instance is over');
    },
    onRevoked: (leases, reason, neverRan) => leaseService.revoke(leases, reason, neverRan),
  });
  const pressure = new Pressure({ instances, usage, read: readMemory, log });

  const liveness = new Liveness({
    list: () => instances.list(),
    onHung: (instance, why) => {
      log.warn({ instance: instance.id, error: why.message }, 'an instance hangs');
      void instances.hung(instance, why);
    },
  });

  // Who they answer to.
  const identity = await readIdentity(settings.stateDir);
  const maker = new Maker({
    docker,
    runc,
    restorer,
    places,
    checkpoints,
    revisions,
    log,
    context: (digest, stop) => {
      if (link === undefined) throw new Error('there is no control plane to fetch a build context from');
      return link.context(digest, stop);
    },
  });
  const copyRate = new Rate();
  const exports = new Exports({
    docker,
    checkpoints,
    revisions,
    rate: copyRate,
    spool: state('copies/spool'),
    log,
    onReleased: sweepCheckpoints,
  });
  const staging = new Staging(state('copies/parts'));
  const copier = new Copier({ docker, checkpoints, revisions, maker, staging, log });
  const commands = new Commands({
    host: settings.host,
    hostAddress: settings.advertise,
    assignments,
    instances,
    checkpoints,
    revisions,
    maker,
    copier,
    logs,
    docker,
    sandboxes,
    volumes,
  });
  const present = (): GetHostResponse => ({
    host: settings.host,
    engine: daemon.status,
    instances: instances.list().map((instance) => instance.onWire(settings.host)),
    checkpoints: checkpoints.list(),
  });
  const leaseService: LeaseService = new LeaseService({ instances, describe: present, changed: noteRecord, log });
  const link: FleetLink | undefined =
    settings.controlPlane === ''
      ? undefined
      : new FleetLink(
          settings.controlPlane,
          {
            hello: (): ConnectRequest => ({
              message: {
                $case: 'hello',
                value: {
                  host: settings.host,
                  agentVersion: VERSION,
                  leaseAddress: `${settings.advertise}:${settings.listen.split(':').at(-1)}`,
                  fingerprint: here,
                  cpus: cpus().length,
                  memoryTotal: totalmem(),
                  identity,
                },
              },
            }),
            report: (): ConnectRequest => ({
              message: {
                $case: 'report',
                value: {
                  ...present(),
                  assignments: assignments.list(),
                  memoryAvailable: pressure.available,
                  volumeServices: volumes.services(),
                  usage: usage.report(
                    assignments.list().map((one) => one.config?.serviceName ?? ''),
                    instances.list(),
                    performance.now(),
                  ),
                  usageEpoch,
                  portsFree: sandboxes.counts().free,
                  revisions: revisions.list().map(({ service, revision, imageId, problem }) => ({
                    ...{ service, revision, imageId },
                    noCheckpoint: problem !== undefined,
                  })),
                },
              },
            }),
            settings: async (given) => {
              sandboxes.usePorts({ first: given.reservedPortFirst, last: given.reservedPortLast });
              instances.useRecycleWorkers(given.recycleWorkers);
              copyRate.use(given.copyRate);
              await sandboxes.useAgents(given.agents);
              await checkpoints.moveTo(given.checkpointDir);
              checkpointDir = given.checkpointDir;
            },
            execute: (command, send, stop) => commands.execute(command, send, stop),
          },
          log,
        );

  const server = createRpcServer(
    [AgentServiceDefinition.fullName, TransferServiceDefinition.fullName],
    (method, error) => log.error({ method, error }, 'unexpected error'),
  );
  server.add(AgentServiceDefinition, leaseService);
  server.add(TransferServiceDefinition, new TransferService(exports));
  const health = http.createServer((request, response) => {
    const ready = daemon.status.ready;
    const ok = request.url === '/healthz' || (request.url === '/readyz' && ready);
    response.writeHead(ok ? 200 : request.url === '/readyz' ? 503 : 404, { 'content-type': 'text/plain' });
    response.end(ok ? 'ok\n' : ready ? 'not found\n' : `${daemon.status.error}\n`);
  });

  // Start: what an earlier agent left, taken over or removed, then the engine, then the doors.
  prepareCgroups();
  const adopted = await records.load((file, error) =>
    log.error({ file, error }, 'the record of an instance is damaged'),
  );
  const kept = adopted.flatMap(({ id, filling }) => (filling ? [id, fillerCgroup(id)] : [id]));
  await removeLeftovers(state('instances'), new Set(kept), runc, log);
  await sandboxes.start(
    adopted.flatMap((instance) => instance.place?.sandbox ?? []),
    signal,
  );
  await revisions.load((file, error) =>
    log.error({ file, error: error.message }, 'a revision is built again: its record is damaged'),
  );
  const readAhead = async (assignment: ServiceAssignment) => {
    const reading = checkpoints
      .readAhead(assignment.config?.serviceName ?? '', assignment.revision, signal)
      // The instance is restored all the same, only slower at first; what is damaged will be found then.
      .catch((error: unknown) => log.warn({ error: toInitlessError(error).message }, 'memory could not be read ahead'));
    // It goes on meanwhile: a slow disk is not to keep the pools of all services waiting.
    await Promise.race([reading, sleep(READ_AHEAD_MS)]);
  };
  const pool = new Pool(instances, log, (service) => pressure.mayPark(service), readAhead);
  await checkpoints.load();
  await exports.start();
  await volumes.load();
  await assignments.load((error) =>
    log.error({ error: error.message }, 'the list of assignments is damaged; waiting for the control plane'),
  );
  await instances.adopt(adopted);
  instances.assign(assignments.list());
  const verifying = checkpoints.verifyAll(signal);
  const engine = daemon.supervise(signal);
  leaseService.awaitGateways();
  await server.listen(settings.listen);
  await new Promise<void>((resolve) =>
    health.listen(Number(settings.listenHttp.split(':')[1]), settings.listenHttp.split(':')[0], resolve),
  );
  log.info(
    {
      listen: settings.listen,
      version: VERSION,
      criu: here.criu,
      runc: here.runc,
      sandboxes: sandboxes.counts(),
    },
    'the agent is up',
  );

  await Promise.all([
    engine,
    verifying,
    instances.watch(signal),
    repeat(TRIM_MS, signal, () => {
      logs.trim().catch((error: unknown) => log.error({ error }, 'logs could not be trimmed'));
    }),
    sandboxes.run(signal),
    liveness.run(signal),
    pool.run(signal),
    pressure.run(signal),
    exports.run(signal),
    copier.run(signal),
    link?.run(signal),
  ]);

  // Stop: instances keep running, a restarted agent finds them.
  log.info({ reason: String(signal.reason) }, 'the agent stops');
  health.close();
  await server.stop(1_000);
}

function describe(instance: Instance): Event {
  return Event.fromPartial({
    at: new Date(),
    kind: `instance.${instance.state}`,
    service: instance.service,
    revision: instance.assignment.revision,
    instance: instance.id,
    origin: instance.origin,
    message: `${instance.id} (${originText(instance.origin)}) is ${instance.state}${instance.reason ? `: ${instance.reason}` : ''}`,
    stages: instance.state === 'running' ? instance.stages : [],
    goneReason: reasonOnWire(instance.reason),
    problem: instance.problem,
  });
}

main().then(
  () => process.exit(0),
  (thrown: unknown) => {
    const error = toInitlessError(thrown);
    process.stderr.write(
      `initless agent: ${error.code}: ${error.message}\n${error.nextStep ? `${error.nextStep}\n` : ''}`,
    );
    process.exit(1);
  },
);
