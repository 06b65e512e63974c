import type { AdminServiceImplementation } from '../../../proto/gen/initless/v1/admin.js';
import type { Instance } from '../../../proto/gen/initless/v1/types.js';
import { InitlessError } from '../../../proto/rpc/errors.js';
import { type AdminParts, findInstance, oddAnswer } from './parts.js';

/** Freezing, thawing and removing are quick; this is for a host that is busy. */
const INSTANCE_MS = 30_000;
/** Describing a checkpoint reads its manifest; verifying it reads all of it. */
const INSPECT_MS = 30_000;
const VERIFY_MS = 600_000;

type FleetCalls = Pick<
  AdminServiceImplementation,
  'listInstances' | 'parkInstance' | 'thawInstance' | 'removeInstance' | 'listCheckpoints' | 'getCheckpoint'
>;

const byServiceAndAge = (
  a: { service: string; createdAt?: Date | undefined },
  b: { service: string; createdAt?: Date | undefined },
) =>
  a.service === b.service
    ? (a.createdAt?.getTime() ?? 0) - (b.createdAt?.getTime() ?? 0)
    : a.service < b.service
      ? -1
      : 1;

/** Calls about what is on hosts. */
export function fleetCalls(parts: AdminParts): FleetCalls {
  const { fleet, registry } = parts;
  const connected = () => fleet.list().filter((host) => host.connected);

  async function change(kind: 'park' | 'thaw' | 'remove', id: string, signal: AbortSignal): Promise<Instance> {
    const { link } = findInstance(parts, id);
    const what = `${kind} of the instance ${id} on ${link.name}`;
    const outcome = await link.command(
      { $case: kind, value: { instance: id } },
      { what, timeoutMs: INSTANCE_MS, signal },
    );
    if (outcome.$case !== 'instance') throw oddAnswer(what, outcome.$case);
    return { ...outcome.value, host: link.name };
  }

  return {
    async listInstances({ serviceName }) {
      if (serviceName !== '') registry.get(serviceName);
      const instances = connected()
        .flatMap((host) => host.instances)
        .filter((instance) => serviceName === '' || instance.service === serviceName);
      return { instances: instances.sort(byServiceAndAge) };
    },

    async parkInstance({ instance }, { signal }) {
      return { instance: await change('park', instance, signal) };
    },

    async thawInstance({ instance }, { signal }) {
      return { instance: await change('thaw', instance, signal) };
    },

    async removeInstance({ instance }, { signal }) {
      return { instance: await change('remove', instance, signal) };
    },

    async listCheckpoints({ serviceName }) {
      if (serviceName !== '') registry.get(serviceName);
      const checkpoints = connected()
        .flatMap((host) => host.checkpoints)
        .filter((checkpoint) => serviceName === '' || checkpoint.service === serviceName);
      return { checkpoints: checkpoints.sort(byServiceAndAge) };
    },

    async getCheckpoint({ serviceName, revision, verify, host }, { signal }) {
      const record = registry.get(serviceName);
      const wanted = revision === '' ? record.current?.id : revision;
      const found = fleet
        .list()
        .filter((one) => host === '' || one.name === fleet.get(host).name)
        .sort((a, b) => Number(b.connected) - Number(a.connected))
        .find((one) => one.checkpoints.some((held) => held.service === serviceName && held.revision === wanted));
      if (found === undefined) {
        throw new InitlessError(
          'NOT_FOUND',
          `${serviceName} has no checkpoint${revision && ` of revision ${revision}`}${host && ` on ${host}`}`,
          {
            subject: serviceName,
            nextStep: `'initless checkpoint ls' lists those that are there; 'initless checkpoint create ${serviceName}' makes one`,
          },
        );
      }
      const link = fleet.link(found.name);
      const what = `inspecting the checkpoint of ${serviceName} on ${link.name}`;
      const outcome = await link.command(
        { $case: 'inspectCheckpoint', value: { service: serviceName, revision: wanted ?? '', verify } },
        { what, timeoutMs: verify ? VERIFY_MS : INSPECT_MS, signal },
      );
      if (outcome.$case !== 'checkpoint') throw oddAnswer(what, outcome.$case);
      return { checkpoint: { ...outcome.value, host: link.name } };
    },
  };
}
