import { readFile } from 'node:fs/promises';
import { arch, release } from 'node:os';
import type { Fingerprint } from '../../proto/gen/initless/v1/types.js';
import { InitlessError } from '../../proto/rpc/errors.js';
import { lastLines, run } from './exec.js';
import { readIfThere } from './files.js';

/** Answers the reads of resource limits that the kernel refuses to root without CAP_SYS_RESOURCE; see prlimit-shim.c. */
const PRLIMIT_SHIM = '/usr/local/lib/initless/prlimit-shim.so';
const CAP_SYS_RESOURCE = 24n;
/** CRIU's settings for dumps, which runc makes, and for restores; the host image has it. */
export const CRIU_CONFIG = '/etc/criu/runc.conf';

/** What to preload into CRIU for a dump, or undefined where nothing is missing. */
export async function dumpPreload(): Promise<string | undefined> {
  const status = await readFile('/proc/self/status', 'utf8');
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? '0'}`);
  return ((effective >> CAP_SYS_RESOURCE) & 1n) === 1n ? undefined : PRLIMIT_SHIM;
}

/** What a checkpoint that is made here needs of the machine that restores it. Errors: UNSUPPORTED without CRIU or runc. */
export async function fingerprint(): Promise<Fingerprint> {
  const [criu, runc, cpuinfo] = await Promise.all([
    version('criu', ['--version'], /Version:\s*(\S+)/),
    version('runc', ['--version'], /runc version\s*(\S+)/),
    readFile('/proc/cpuinfo', 'utf8'),
  ]);
  return {
    kernel: release(),
    criu,
    runc,
    arch: arch() === 'x64' ? 'x86_64' : arch() === 'arm64' ? 'aarch64' : arch(),
    cpuModel: /^model name\s*:\s*(.+)$/m.exec(cpuinfo)?.[1] ?? '',
    cpuFlags: (/^(?:flags|Features)\s*:\s*(.+)$/m.exec(cpuinfo)?.[1] ?? '').split(' ').sort(),
  };
}

async function version(program: string, args: string[], pattern: RegExp): Promise<string> {
  try {
    const { stdout } = await run(program, args, { timeoutMs: 10_000 });
    return pattern.exec(stdout)?.[1] ?? 'unknown';
  } catch (cause) {
    throw new InitlessError('UNSUPPORTED', `${program} does not run in this host: ${(cause as Error).message}`, {
      nextStep: "the host image brings it; rebuild the image and the host with 'initless host up'",
      cause,
    });
  }
}

/** Asks CRIU itself whether this kernel can be used. Errors: UNSUPPORTED with CRIU's words. */
export async function checkKernel(): Promise<void> {
  try {
    await run('criu', ['check'], { timeoutMs: 15_000 });
  } catch (cause) {
    const said = cause instanceof InitlessError ? cause.outputTail : [];
    throw new InitlessError('UNSUPPORTED', `CRIU cannot work on kernel ${release()}: ${said.at(-1) ?? String(cause)}`, {
      nextStep: 'use a kernel with CONFIG_CHECKPOINT_RESTORE, and a host with the capabilities that README names',
      outputTail: said,
      cause,
    });
  }
}

/** Why a checkpoint made on `made` cannot be restored on `here`, or undefined when it can. Pure. */
export function incompatibility(made: Fingerprint, here: Fingerprint): string | undefined {
  if (made.arch !== here.arch) return `it was made on ${made.arch}, this host is ${here.arch}`;
  if (made.kernel !== here.kernel) return `it was made on kernel ${made.kernel}, this host runs ${here.kernel}`;
  if (made.criu !== here.criu) return `it was made by CRIU ${made.criu}, this host has ${here.criu}`;
  const present = new Set(here.cpuFlags);
  const missing = made.cpuFlags.filter((flag) => !present.has(flag));
  if (missing.length > 0) return `the CPU lacks what the one it was made on had: ${missing.slice(0, 10).join(' ')}`;
  return undefined;
}

/** The lines of a CRIU log that say what went wrong, oldest first, without time stamps and process ids. */
export async function criuErrors(file: string): Promise<string[]> {
  const text = await readIfThere(file);
  const errors = text
    .split('\n')
    .filter((line) => /Error \(/.test(line))
    // Harmless wherever CAP_SYS_RESOURCE is missing, and always first.
    .filter((line) => !/RLIMIT_NOFILE for self/.test(line))
    .map((line) => line.replace(/^\([\d.]+\)\s*(\d+:\s*)?/, '').trim());
  return lastLines(errors.join('\n'), 20);
}
