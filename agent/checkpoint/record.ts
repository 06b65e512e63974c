import type { ServiceConfig } from '../../proto/gen/initless/v1/types.js';
import type { DockerEngine, ImageFacts } from '../runtime/docker.js';
import { layerLinks } from '../runtime/rootfs.js';
import { withoutReplaced } from '../runtime/spec.js';
import type { RevisionRecord } from './revisions.js';

/** Name of the image that keeps a revision's layers, "repository:tag". */
export function imageNameOf(service: string, revision: string): string {
  return `initless-revision/${service}:${revision}`;
}

/**
 * The record of a revision whose image is on this host: how it is started from it. The image gets a name of its own.
 * Errors: NOT_FOUND, ENGINE_DOWN, INTERNAL, the signal's reason.
 */
export async function recordOf(
  docker: Pick<DockerEngine, 'tag' | 'specOf'>,
  config: ServiceConfig,
  revision: string,
  image: ImageFacts,
  signal: AbortSignal,
): Promise<RevisionRecord> {
  // Each revision keeps its layers under a name of its own; the user's checkpoint tag follows the newest.
  const imageName = imageNameOf(config.serviceName, revision);
  await docker.tag(image.id, imageName.split(':')[0] as string, revision);
  const env = Object.entries(config.env).map(([key, value]) => `${key}=${value}`);
  const made = await docker.specOf(image, config.startCmd, env, config.serviceName, signal);
  return {
    service: config.serviceName,
    revision,
    imageId: image.id,
    imageName,
    spec: withoutReplaced(
      made,
      config.volumes.map(({ target }) => target),
    ),
    hostname: config.serviceName,
    layers: await layerLinks(image.graph),
  };
}
