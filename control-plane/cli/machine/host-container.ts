import type Docker from 'dockerode';
import { withDeadline } from '../../../proto/rpc/deadline.js';
import { InitlessError } from '../../../proto/rpc/errors.js';
import { hostNames, LABELS } from './names.js';

const CALL_MS = 60_000;

/** Whether the engine answered that there is no such thing. */
function isMissing(error: unknown): boolean {
  return (error as { statusCode?: number }).statusCode === 404;
}

/** A host's container; undefined when there is none. Throws NOT_ALLOWED when one of that name is not ours. */
export async function findHostContainer(
  docker: Docker,
  project: string,
  host: string,
  signal?: AbortSignal,
): Promise<Docker.ContainerInspectInfo | undefined> {
  const { container } = hostNames(project, host);
  let info: Docker.ContainerInspectInfo;
  try {
    info = await withDeadline(CALL_MS, `the engine's answer about ${container}`, signal, () =>
      docker.getContainer(container).inspect(),
    );
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
  if (info.Config.Labels?.[LABELS.project] === project && info.Config.Labels[LABELS.host] === host) return info;
  throw new InitlessError('NOT_ALLOWED', `the engine has a container '${container}' that is not ours`, {
    subject: container,
    nextStep: `choose another name, or remove it: docker rm -f ${container}`,
  });
}

/**
 * Makes and starts a host's container on a volume that is kept if it is there, and gives the container's id.
 * One that cannot be started is removed again. Throws SETUP_FAILED with the engine's reason.
 */
export async function createHostContainer(
  docker: Docker,
  spec: Docker.ContainerCreateOptions,
  volume: string,
  signal?: AbortSignal,
): Promise<string> {
  const { [LABELS.project]: project = '', [LABELS.host]: host = '' } = spec.Labels ?? {};
  return withDeadline(CALL_MS, `${spec.name} to start`, signal, async () => {
    // Made beforehand, since a volume that the engine makes for a bind carries no labels.
    await docker.createVolume({ Name: volume, Labels: { [LABELS.project]: project, [LABELS.host]: host } });
    const container = await docker.createContainer(spec);
    try {
      await container.start();
      return container.id;
    } catch (error) {
      await removeContainer(docker, container.id);
      const reason = error instanceof Error ? error.message : String(error);
      throw new InitlessError('SETUP_FAILED', `the engine cannot start ${spec.name}: ${reason}`, {
        subject: spec.name,
        cause: error,
      });
    }
  });
}

/** Lets the host's agent finish, then removes the container; a container that is gone already is fine. */
export async function removeContainer(docker: Docker, id: string, signal?: AbortSignal): Promise<void> {
  const container = docker.getContainer(id);
  try {
    await withDeadline(CALL_MS, `container ${id.slice(0, 12)} to stop`, signal, () => container.stop());
  } catch (error) {
    if (isMissing(error)) return;
    // 304: it does not run.
    if ((error as { statusCode?: number }).statusCode !== 304) throw error;
  }
  try {
    await withDeadline(CALL_MS, `container ${id.slice(0, 12)} to be removed`, signal, () =>
      container.remove({ force: true }),
    );
  } catch (error) {
    if (!isMissing(error)) throw error;
  }
}

/** Removes a volume; false when there was none. */
export async function removeVolume(docker: Docker, name: string, signal?: AbortSignal): Promise<boolean> {
  try {
    await withDeadline(CALL_MS, `the volume ${name} to be removed`, signal, () => docker.getVolume(name).remove());
    return true;
  } catch (error) {
    if (isMissing(error)) return false;
    throw error;
  }
}
