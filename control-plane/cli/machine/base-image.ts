import { createReadStream } from 'node:fs';
import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type Docker from 'dockerode';
import { withDeadline } from '../../../proto/rpc/deadline.js';
import { InitlessError, toInitlessError } from '../../../proto/rpc/errors.js';
import { run } from './exec.js';
import { findImage, followOutput, upload } from './images.js';
import { BASE_IMAGE, LABELS, STATE_ROOT } from './names.js';
import type { MachineOptions } from './options.js';
import { commandLine } from './processes.js';

/** Certificate authorities that the machine's owner added; images made here trust them too. */
const AUTHORITIES = '/usr/local/share/ca-certificates';
const TEMPORARY = join(STATE_ROOT, 'tmp');

const PULL_MS = 120_000;
/** A registry that says nothing for this long counts as out of reach. */
const PULL_SILENCE_MS = 15_000;
const BOOTSTRAP_MS = 15 * 60_000;
const IMPORT_MS = 5 * 60_000;

/** The base image, and where it came from. */
export interface BaseImage {
  id: string;
  origin: 'present' | 'pulled' | 'bootstrapped';
}

/**
 * Makes sure that the engine has debian:trixie-slim: as it is, or from a registry, or made from Debian's packages.
 * Where the machine has certificate authorities of its own, making it comes first: a registry's image would not trust them.
 * Throws BASE_IMAGE_MISSING that says why neither worked.
 */
export async function ensureBaseImage(docker: Docker, options: MachineOptions = {}): Promise<BaseImage> {
  const present = await findImage(docker, BASE_IMAGE, options.signal);
  if (present) return { id: present.Id, origin: 'present' };

  const ways = { pulled: pull, bootstrapped: bootstrap };
  const order = (await hasOwnAuthorities())
    ? (['bootstrapped', 'pulled'] as const)
    : (['pulled', 'bootstrapped'] as const);
  const failures: InitlessError[] = [];
  for (const origin of order) {
    try {
      await ways[origin](docker, options);
      const made = await findImage(docker, BASE_IMAGE, options.signal);
      if (made) return { id: made.Id, origin };
      failures.push(new InitlessError('INTERNAL', `the engine does not list ${BASE_IMAGE} after it was ${origin}`));
    } catch (error) {
      options.signal?.throwIfAborted();
      const failure = toInitlessError(error);
      if (failure.code === 'DISK_FULL') throw failure;
      options.progress?.(`${BASE_IMAGE} could not be ${origin}: ${failure.message}`);
      failures.push(failure);
    }
  }
  throw new InitlessError(
    'BASE_IMAGE_MISSING',
    `${BASE_IMAGE} can be had neither from a registry nor from Debian's packages: ${failures.map((failure) => failure.message).join('; ')}`,
    {
      subject: BASE_IMAGE,
      nextStep:
        "give the machine a way to a registry or to Debian's packages (apt-get update must work), then try again",
      outputTail: failures.flatMap((failure) => failure.outputTail),
    },
  );
}

async function hasOwnAuthorities(): Promise<boolean> {
  try {
    return (await readdir(AUTHORITIES)).some((name) => name.endsWith('.crt'));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}

async function pull(docker: Docker, options: MachineOptions): Promise<void> {
  options.progress?.(`pulling ${BASE_IMAGE}`);
  const quiet = new AbortController();
  const silence = setTimeout(() => {
    const seconds = PULL_SILENCE_MS / 1000;
    quiet.abort(
      new InitlessError('DEADLINE', `the registry said nothing for ${seconds} s while pulling ${BASE_IMAGE}`),
    );
  }, PULL_SILENCE_MS);
  const bound = options.signal ? AbortSignal.any([options.signal, quiet.signal]) : quiet.signal;
  try {
    await withDeadline(PULL_MS, `${BASE_IMAGE} from a registry`, bound, async (signal) => {
      const stream = await docker.pull(BASE_IMAGE, { abortSignal: signal });
      await followOutput(stream, 'BASE_IMAGE_MISSING', signal, () => silence.refresh());
    });
  } finally {
    clearTimeout(silence);
  }
}

/**
 * Makes the image from Debian's packages. mmdebstrap runs in mount and process namespaces of its own and dies with this
 * process: whatever ends it ends all of it, and no mount stays in the folder that is removed afterwards.
 */
async function bootstrap(docker: Docker, options: MachineOptions): Promise<void> {
  options.progress?.(`making ${BASE_IMAGE} from Debian's packages (about half a minute)`);
  await mkdir(TEMPORARY, { recursive: true, mode: 0o700 });
  await removeLeftovers();
  const folder = await mkdtemp(join(TEMPORARY, `base-${process.pid}-`));
  try {
    const archive = join(folder, 'root.tar');
    const namespaces = ['--mount', '--pid', '--fork', '--kill-child', '--mount-proc'];
    // As in Debian's own slim image: no documentation, but the folders that packages put links to their manuals in.
    const lean = [
      ...['man', 'locale', 'doc'].map((name) => `--dpkgopt=path-exclude=/usr/share/${name}/*`),
      '--dpkgopt=path-include=/usr/share/doc/*/copyright',
      '--customize-hook=for n in 1 2 3 4 5 6 7 8; do mkdir -p "$1/usr/share/man/man$n"; done',
    ];
    const authorities = (await hasOwnAuthorities())
      ? [
          `--customize-hook=sync-in ${AUTHORITIES} ${AUTHORITIES}`,
          '--customize-hook=chroot "$1" update-ca-certificates',
        ]
      : [];
    await run(
      'setpriv',
      [
        ...['--pdeathsig', 'KILL', 'unshare', ...namespaces],
        'mmdebstrap',
        '--mode=root',
        '--variant=minbase',
        '--include=ca-certificates',
        ...lean,
        '--aptopt=Acquire::Languages "none"',
        ...authorities,
        'trixie',
        archive,
      ],
      {
        timeoutMs: BOOTSTRAP_MS,
        errorCode: 'BASE_IMAGE_MISSING',
        label: 'mmdebstrap',
        signal: options.signal,
        env: { ...process.env, TMPDIR: folder },
      },
    );
    await withDeadline(IMPORT_MS, `${BASE_IMAGE} to be imported`, options.signal, async (signal) => {
      const [repo, tag] = BASE_IMAGE.split(':');
      const file = upload(createReadStream(archive), signal);
      const stream = await docker.importImage(file.stream, {
        repo,
        tag,
        changes: ['CMD ["bash"]', `LABEL ${LABELS.image}=base`],
        abortSignal: file.signal,
      });
      await followOutput(stream, 'BASE_IMAGE_MISSING', file.signal, () => {});
    });
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Removes what attempts that were killed left behind. */
async function removeLeftovers(): Promise<void> {
  for (const name of await readdir(TEMPORARY)) {
    const owner = Number(/^base-(\d+)-/.exec(name)?.[1]);
    if (owner > 0 && commandLine(owner) === undefined)
      await rm(join(TEMPORARY, name), { recursive: true, force: true });
  }
}
