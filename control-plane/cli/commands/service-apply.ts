import { resolve } from 'node:path';
import type { Command } from 'commander';
import type { ApplyServiceRequest, DeepPartial } from '../../../proto/gen/initless/v1/admin.js';
import { ServiceState } from '../../../proto/gen/initless/v1/types.js';
import { InitlessError } from '../../../proto/rpc/errors.js';
import { readFolder } from '../../contexts/folder.js';
import { packTree } from '../../contexts/pack.js';
import type { Tree } from '../../contexts/tree.js';
import type { CliContext } from '../context.js';
import { EXIT } from '../context.js';
import type { Register } from '../flags.js';
import { serviceStateWord } from '../format.js';
import { followAndReport, sayOutcome } from '../progress.js';

/** Bound on taking a folder in: most of it is the upload. */
const APPLY_MS = 10 * 60_000;

/** Adds `service apply` and `service output`. */
export function addServiceApplyCommands(service: Command, register: Register): void {
  register(
    service
      .command('apply')
      .summary('take a folder in and make its checkpoint')
      .description(
        'Takes a folder in, new or changed: image, start, checkpoint. Ends with 0 when the service is ready, with 3 when ' +
          'it serves but cannot be checkpointed, with 1 when it failed.',
      )
      .argument('[dir]', 'folder with a Dockerfile and a config.yaml')
      .option('--folder <name>', "name of a folder below the control plane's code_dir instead")
      .option('--wait', 'show the work and wait until it ends'),
    (context, dir: string | undefined, options: { folder?: string; wait?: boolean }) => apply(context, dir, options),
  );
  register(
    service
      .command('output')
      .summary('show what making the newest revision prints')
      .description('Shows what making the newest revision of a service prints, and waits until it ends.')
      .argument('<service>'),
    (context, name: string) => context.withAdmin((admin) => followAndReport(context, admin, name)),
  );
}

async function apply(
  context: CliContext,
  dir: string | undefined,
  options: { folder?: string; wait?: boolean },
): Promise<number> {
  if ((dir === undefined) === (options.folder === undefined)) {
    throw new InitlessError('BAD_REQUEST', 'either a folder or --folder NAME is meant', {
      nextStep: "for instance 'initless service apply ./my-service --wait'",
    });
  }
  const requests =
    dir === undefined ? named(options.folder ?? '') : upload(await readFolder(resolve(context.cwd, dir), dir), dir);
  return context.withAdmin(async (admin) => {
    const { service, changed } = await admin.call(
      `ApplyService ${options.folder ?? dir}`,
      context.timeoutMs(APPLY_MS),
      (client, callOptions) => client.applyService(requests, callOptions),
    );
    const name = service?.config?.serviceName ?? '';
    const state = service?.state ?? ServiceState.SERVICE_STATE_UNSPECIFIED;
    const settled = state === ServiceState.SERVICE_STATE_DISABLED || (!changed && !isUnderWay(state));
    context.say(changed ? `${name} is taken in` : `${name} is unchanged (${serviceStateWord(state)})`);
    if (settled) return sayOutcome(context, service);
    if (options.wait) return followAndReport(context, admin, name);
    context.say(`'initless service output ${name}' follows the work`);
    return EXIT.ok;
  });
}

function isUnderWay(state: ServiceState): boolean {
  return state === ServiceState.SERVICE_STATE_PENDING || state === ServiceState.SERVICE_STATE_BUILDING;
}

async function* named(folder: string): AsyncGenerator<DeepPartial<ApplyServiceRequest>> {
  yield { source: { $case: 'folder', value: folder } };
}

async function* upload(tree: Tree, origin: string): AsyncGenerator<DeepPartial<ApplyServiceRequest>> {
  yield { source: { $case: 'upload', value: { origin } } };
  for await (const value of packTree(tree)) yield { source: { $case: 'chunk', value } };
}
