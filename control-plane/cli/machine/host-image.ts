import type Docker from 'dockerode';
import { withDeadline } from '../../../proto/rpc/deadline.js';
import { InitlessError } from '../../../proto/rpc/errors.js';
import { ensureBaseImage } from './base-image.js';
import { digestOfFiles } from './digest.js';
import { lockFile, packageFiles, projectFiles, tarOf } from './host-context.js';
import { findImage, followOutput, upload } from './images.js';
import { HOST_IMAGE, LABELS } from './names.js';
import type { MachineOptions } from './options.js';

const BUILD_MS = 20 * 60_000;
const PRUNE_MS = 30_000;
const NOTICE_MS = 1_000;

/** The host image as it is in the engine. */
export interface HostImage {
  id: string;
  /** Of everything that went into it; a label on the image. */
  digest: string;
  /** Whether this call built it. */
  built: boolean;
}

/**
 * Makes sure that the engine has the host image with the project's present code; the base image first.
 * Throws SETUP_FAILED when the project is not built, BASE_IMAGE_MISSING, or BUILD_FAILED with the last lines.
 */
export async function ensureHostImage(docker: Docker, root: string, options: MachineOptions = {}): Promise<HostImage> {
  const base = await ensureBaseImage(docker, options);
  const files = await projectFiles(root);
  const digest = await digestOfFiles([...files, lockFile(root)], base.id);
  const present = await findImage(docker, HOST_IMAGE, options.signal);
  if (present?.Config.Labels?.[LABELS.digest] === digest) return { id: present.Id, digest, built: false };

  options.progress?.(present ? 'building the host image: the code changed' : 'building the host image');
  await withDeadline(BUILD_MS, 'the host image to be built', options.signal, async (signal) => {
    const context = upload(tarOf([...files, ...(await packageFiles(root))], signal), signal);
    const stream = await docker.buildImage(context.stream, {
      t: HOST_IMAGE,
      dockerfile: 'agent/Dockerfile',
      labels: { [LABELS.image]: 'host', [LABELS.digest]: digest },
      forcerm: true,
      abortSignal: context.signal,
    });
    let notice: NodeJS.Timeout | undefined;
    try {
      await followOutput(stream, 'BUILD_FAILED', context.signal, (line) => {
        if (!line.startsWith('Step ')) return;
        clearTimeout(notice);
        // Most steps are in the cache and over at once; only what takes its time is worth a line.
        notice = setTimeout(() => options.progress?.(`host image: ${shortened(line)}`), NOTICE_MS);
      });
    } finally {
      clearTimeout(notice);
    }
  });
  const built = await findImage(docker, HOST_IMAGE, options.signal);
  if (!built) throw new InitlessError('BUILD_FAILED', `the engine does not list ${HOST_IMAGE} after it was built`);
  return { id: built.Id, digest, built: true };
}

/** A build step in one short line. */
function shortened(step: string): string {
  const line = step.replace(/\s+/g, ' ');
  return line.length > 100 ? `${line.slice(0, 97)}...` : line;
}

/** Removes earlier versions of the host image that no container uses any more. */
export async function pruneHostImages(docker: Docker, options: MachineOptions = {}): Promise<void> {
  await withDeadline(PRUNE_MS, 'earlier host images to be removed', options.signal, () =>
    docker.pruneImages({ filters: { dangling: { true: true }, label: { [`${LABELS.image}=host`]: true } } }),
  );
}
