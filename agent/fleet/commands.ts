import type {
  Command,
  ConnectRequest,
  CopyRevision,
  DeleteRevisions,
  PreparedRevision,
  PrepareRevision,
  ReadLog,
} from '../../proto/gen/initless/v1/fleet.js';
import { Event, type ServiceConfig } from '../../proto/gen/initless/v1/types.js';
import { InitlessError, problemOf } from '../../proto/rpc/errors.js';
import type { Checkpoints } from '../checkpoint/checkpoints.js';
import type { Maker } from '../checkpoint/make.js';
import type { Revisions } from '../checkpoint/revisions.js';
import type { Instances } from '../instance/instances.js';
import { reasonFromWire } from '../instance/lifecycle.js';
import type { Logs } from '../instance/logs.js';
import { measureStart } from '../instance/measure.js';
import type { Volumes } from '../instance/volumes.js';
import type { DockerEngine } from '../runtime/docker.js';
import type { Sandboxes } from '../runtime/sandbox.js';
import type { Copier } from '../transfer/copier.js';
import type { Assignments } from './assignments.js';
import { Flights } from './flights.js';
import type { Outcome } from './link.js';

/** What commands are carried out with. */
export interface CommandParts {
  host: string;
  hostAddress: string;
  assignments: Assignments;
  instances: Instances;
  checkpoints: Checkpoints;
  revisions: Revisions;
  maker: Maker;
  copier: Copier;
  logs: Logs;
  docker: DockerEngine;
  sandboxes: Sandboxes;
  volumes: Volumes;
}

/** Lines of a log that go into one message. */
const PIECE_BYTES = 256 * 1024;

/** Carries the control plane's commands out. Each may come twice and then does nothing new. */
export class Commands {
  readonly #parts: CommandParts;
  /** Revisions that are being made or copied. */
  readonly #flights = new Flights<PreparedRevision>();

  constructor(parts: CommandParts) {
    this.#parts = parts;
  }

  /** Carries one command out. Errors: those of what it does. */
  async execute(command: Command, send: (message: ConnectRequest) => void, signal: AbortSignal): Promise<Outcome> {
    const { action } = command;
    const { host, instances, checkpoints } = this.#parts;
    switch (action?.$case) {
      case 'prepare': {
        const { config, revision, force } = action.value;
        const what = force ? 'make anew' : 'make';
        return this.#once(config, revision, what, signal, (stop) => this.#prepare(action.value, send, stop));
      }
      case 'copy': {
        const { config, revision } = action.value;
        return this.#once(config, revision, 'copy', signal, (stop) => this.#copy(action.value, send, stop));
      }
      case 'assign':
        await instances.prepare(action.value, signal);
        await this.#parts.assignments.put(action.value);
        instances.assign(this.#parts.assignments.list());
        return done();
      case 'withdraw':
        await this.#parts.assignments.remove(action.value.service);
        instances.assign(
          this.#parts.assignments.list(),
          new Map([[action.value.service, reasonFromWire(action.value.reason)]]),
        );
        return done();
      case 'wake':
        return { $case: 'instance', value: (await instances.wake(action.value.service)).onWire(host) };
      case 'park':
        return { $case: 'instance', value: (await instances.park(action.value.instance)).onWire(host) };
      case 'thaw':
        return { $case: 'instance', value: (await instances.thaw(action.value.instance)).onWire(host) };
      case 'remove':
        return { $case: 'instance', value: (await instances.remove(action.value.instance, 'operator')).onWire(host) };
      case 'readLog':
        await this.#readLog(command.id, action.value, send, signal);
        return done();
      case 'measure': {
        const { service } = action.value;
        const assignment = this.#parts.assignments.find(service);
        if (assignment === undefined)
          throw new InitlessError('NOT_READY', `this host does not serve ${service}`, { subject: service });
        const record = this.#parts.revisions.get(service, assignment.revision);
        return {
          $case: 'measurement',
          value: await measureStart(this.#parts, action.value, assignment, record, signal),
        };
      }
      case 'inspectCheckpoint': {
        const { service, revision, verify } = action.value;
        return { $case: 'checkpoint', value: await checkpoints.inspect(service, revision, verify) };
      }
      case 'deleteRevisions':
        await this.#delete(action.value);
        return done();
      case undefined:
        throw new InitlessError('UNSUPPORTED', 'a command that this agent does not know', {
          nextStep: "bring the host up to date with 'initless host up'",
        });
    }
  }

  /**
   * Makes or copies a revision, once at a time: a control plane that was cut off sends a command again while it is still
   * being carried out.
   */
  async #once(
    config: ServiceConfig | undefined,
    revision: string,
    what: string,
    signal: AbortSignal,
    work: (signal: AbortSignal) => Promise<PreparedRevision>,
  ): Promise<Outcome> {
    const { value } = await this.#flights.join(`${config?.serviceName ?? ''}@${revision}`, what, signal, work);
    return { $case: 'prepared', value };
  }

  /** Whom to tell of what is done about a revision. */
  #teller(service: string, revision: string, send: (message: ConnectRequest) => void) {
    const about = { service, host: this.#parts.host, revision };
    return {
      progress: (stage: string, line: string) => {
        send({ message: { $case: 'buildOutput', value: { service, revision, stage, line, at: new Date() } } });
      },
      event: (more: Parameters<typeof Event.fromPartial>[0]) => {
        send({ message: { $case: 'event', value: Event.fromPartial({ ...about, at: new Date(), ...more }) } });
      },
    };
  }

  async #prepare(action: PrepareRevision, send: (message: ConnectRequest) => void, signal: AbortSignal) {
    const { progress, event } = this.#teller(action.config?.serviceName ?? '', action.revision, send);
    event({ kind: 'revision.preparing', message: `making revision ${action.revision}` });
    try {
      const prepared = await this.#parts.maker.prepare(action, progress, signal);
      event(madeEvent(prepared));
      return prepared;
    } catch (error) {
      const problem = problemOf(error);
      event({ kind: 'revision.failed', message: problem.message, problem });
      throw error;
    }
  }

  async #copy(action: CopyRevision, send: (message: ConnectRequest) => void, signal: AbortSignal) {
    const { progress, event } = this.#teller(action.config?.serviceName ?? '', action.revision, send);
    try {
      const { prepared, how, from, bytes, stages } = await this.#parts.copier.copy(action, progress, signal);
      const message = `${bytes} bytes from ${from}`;
      if (how === 'copied') event({ kind: 'checkpoint.copied', message, stages });
      if (how === 'made' || how === 'image') event({ kind: 'image.copied', message, stages });
      if (how === 'made') event(madeEvent(prepared));
      return prepared;
    } catch (error) {
      const problem = problemOf(error);
      event({ kind: 'revision.copy_failed', message: problem.message, problem });
      throw error;
    }
  }

  async #readLog(
    commandId: string,
    { service, instance, tail, follow }: ReadLog,
    send: (message: ConnectRequest) => void,
    signal: AbortSignal,
  ): Promise<void> {
    for await (const piece of this.#parts.logs.read(service, instance, tail, follow, signal)) {
      for (let at = 0; at < piece.data.length; at += PIECE_BYTES) {
        const data = piece.data.subarray(at, at + PIECE_BYTES);
        send({ message: { $case: 'log', value: { commandId, instance: piece.instance, stream: piece.stream, data } } });
      }
    }
    signal.throwIfAborted();
  }

  async #delete({ service, keep, removed }: DeleteRevisions): Promise<void> {
    const { revisions, checkpoints, instances, docker, logs, volumes } = this.#parts;
    checkpoints.remove(service, keep);
    for (const record of await revisions.remove(service, keep)) await docker.untag(record.imageName);
    await checkpoints.sweep(new Set(instances.list().map((instance) => instance.checkpointDir)));
    if (keep.length === 0) await logs.remove(service);
    // Not when it merely moved to another host or has no revision left: what it wrote cannot be made again.
    if (removed) await volumes.remove(service);
  }
}

/** What making a checkpoint came to. */
function madeEvent({ checkpoint, problem }: PreparedRevision): Parameters<typeof Event.fromPartial>[0] {
  return checkpoint
    ? {
        kind: 'checkpoint.sealed',
        message: `${checkpoint.size} bytes in ${checkpoint.path}`,
        stages: checkpoint.stages,
      }
    : { kind: 'checkpoint.failed', message: problem?.message ?? '', problem };
}

function done(): Outcome {
  return { $case: 'done', value: {} };
}
