import { PassThrough, type Readable } from 'node:stream';
import { finished, pipeline } from 'node:stream/promises';
import type Docker from 'dockerode';
import { HealthDefinition } from 'nice-grpc-server-health';
import { connect, createRpcClient } from '../../../proto/rpc/client.js';
import { sleep, withDeadline } from '../../../proto/rpc/deadline.js';
import { InitlessError } from '../../../proto/rpc/errors.js';
import { BASE_IMAGE } from './names.js';
import type { MachineOptions } from './options.js';

/** Port of the agent's gRPC server in every host. */
const AGENT_PORT = 7072;
/** grpc.health.v1.HealthCheckResponse.ServingStatus. */
const SERVING = 1;
const ENGINE_MS = 60_000;
const AGENT_MS = 60_000;
const CALL_MS = 15_000;
const CARRY_MS = 120_000;
const POLL_MS = 150;

/**
 * Waits until a host can be used: its engine answers and has the base image (carried in from the machine's engine when
 * it has not), and its agent says SERVING. Throws AGENT_DOWN with the end of the host's log when it does not come to that.
 */
export async function hostReady(docker: Docker, id: string, options: MachineOptions = {}): Promise<void> {
  const container = docker.getContainer(id);
  const { signal } = options;
  try {
    await withDeadline(ENGINE_MS, "the host's engine to answer", signal, (bound) =>
      until(container, bound, async () => (await execIn(container, ['docker', 'version'], bound)).code === 0),
    );
    const inspected = await execIn(container, ['docker', 'image', 'inspect', BASE_IMAGE], signal);
    if (inspected.code !== 0) {
      options.progress?.(`carrying ${BASE_IMAGE} into the host`);
      await carryBaseImage(docker, container, signal);
    }
    await withDeadline(AGENT_MS, `the agent to serve on port ${AGENT_PORT}`, signal, (bound) =>
      until(container, bound, (address) => agentServes(address, bound)),
    );
  } catch (error) {
    signal?.throwIfAborted();
    const reason = error instanceof Error ? error.message : String(error);
    throw new InitlessError('AGENT_DOWN', `the host did not become ready: ${reason}`, {
      subject: id,
      outputTail: await logTail(container),
      nextStep: "look at the last lines of its log, then run 'initless host up' again",
      cause: error,
    });
  }
}

/** Container address on its first network; empty while it has none. */
export function addressOf(info: Docker.ContainerInspectInfo): string {
  return Object.values(info.NetworkSettings.Networks)[0]?.IPAddress ?? '';
}

/** Asks again and again; a container that has ended for good will not get better. */
async function until(
  container: Docker.Container,
  signal: AbortSignal,
  isSo: (address: string) => Promise<boolean>,
): Promise<void> {
  for (;;) {
    const info = await container.inspect();
    if (info.State.Status === 'exited' || info.State.Status === 'dead') {
      throw new InitlessError('AGENT_DOWN', `the host's process 1 ended with code ${info.State.ExitCode}`);
    }
    if (info.State.Status === 'running' && (await isSo(addressOf(info)))) return;
    await sleep(POLL_MS, signal);
  }
}

async function agentServes(address: string, signal: AbortSignal): Promise<boolean> {
  const channel = connect(`${address}:${AGENT_PORT}`);
  try {
    const answer = await createRpcClient(HealthDefinition, channel).check({ service: '' }, { signal });
    return answer.status === SERVING;
  } catch {
    signal.throwIfAborted();
    return false; // Not listening yet.
  } finally {
    channel.close();
  }
}

async function carryBaseImage(docker: Docker, container: Docker.Container, signal?: AbortSignal): Promise<void> {
  await withDeadline(CARRY_MS, `${BASE_IMAGE} to be carried into the host`, signal, async (bound) => {
    const archive = (await docker.getImage(BASE_IMAGE).get()) as Readable;
    const loaded = await execIn(container, ['docker', 'load'], bound, archive);
    if (loaded.code !== 0) throw new Error(`docker load in the host failed: ${loaded.output.trim()}`);
  });
}

/** Runs a command in a container and gives its exit code and output; `stdin` is fed to it when given. */
export async function execIn(
  container: Docker.Container,
  command: string[],
  parent?: AbortSignal,
  stdin?: Readable,
): Promise<{ code: number; output: string }> {
  const bound = stdin ? CARRY_MS : CALL_MS;
  return withDeadline(bound, `'${command.join(' ')}' in the host`, parent, async (signal) => {
    const exec = await container.exec({
      Cmd: command,
      AttachStdin: stdin !== undefined,
      AttachStdout: true,
      AttachStderr: true,
    });
    const stream = await exec.start({ hijack: true, stdin: stdin !== undefined });
    const onAbort = () => stream.destroy();
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      const output = new PassThrough().setEncoding('utf8');
      const chunks: string[] = [];
      output.on('data', (chunk: string) => chunks.push(chunk));
      container.modem.demuxStream(stream, output, output);
      await Promise.all([finished(stream, { writable: false }), stdin && pipeline(stdin, stream)]);
      const info = await exec.inspect();
      return { code: info.ExitCode ?? -1, output: chunks.join('') };
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  });
}

async function logTail(container: Docker.Container): Promise<string[]> {
  try {
    const log = await withDeadline(CALL_MS, "the host's log", undefined, () =>
      container.logs({ stdout: true, stderr: true, tail: 20, follow: false }),
    );
    return framesToText(log).trimEnd().split('\n');
  } catch (error) {
    return [`the host's log cannot be read: ${error instanceof Error ? error.message : String(error)}`];
  }
}

/** Text of an engine's log answer: frames of 8 bytes (stream, 3 zero bytes, big-endian length) and their content. */
export function framesToText(log: Buffer): string {
  const parts: Buffer[] = [];
  for (let at = 0; at + 8 <= log.length; ) {
    const length = log.readUInt32BE(at + 4);
    parts.push(log.subarray(at + 8, at + 8 + length));
    at += 8 + length;
  }
  return Buffer.concat(parts).toString('utf8');
}
