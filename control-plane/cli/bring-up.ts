import { existsSync, mkdirSync, readdirSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { gatewayArguments } from './commands/gateway.js';
import type { CliContext } from './context.js';
import { projectRoot } from './machine/root.js';
import type { Project } from './project.js';
import { startSupervisor } from './supervisor/control.js';
import { type Part, type Plan, RunFiles } from './supervisor/files.js';

/** What is given to `initless up`. */
export interface UpFlags {
  settings?: string;
  codeDir?: string;
  /** Gateways, 1 to 9. */
  gateways?: number;
  /** Keep a Redis running, and the control plane's state in it. */
  redis?: boolean;
}

/** What control plane and gateways are started with. */
export interface UpSettings {
  /** Absolute path of the settings file. */
  settings: string | undefined;
  /** Absolute path of the folder that services are read from. */
  codeDir: string | undefined;
  gateways: number;
  redis: boolean;
}

/**
 * The settings of an `initless up`: the flags, else what the last one was given, else ./settings.yaml where there is
 * one. Relative paths start from `cwd`.
 */
export function upSettings(
  flags: UpFlags,
  last: Plan | undefined,
  cwd: string,
  exists: (path: string) => boolean,
): UpSettings {
  const at = (path: string | undefined) => (path === undefined ? undefined : resolve(cwd, path));
  const gateways = flags.gateways ?? last?.gateways ?? 1;
  const redis = flags.redis ?? last?.redis ?? false;
  if (flags.settings !== undefined || flags.codeDir !== undefined) {
    return { settings: at(flags.settings), codeDir: at(flags.codeDir), gateways, redis };
  }
  if (last) return { settings: last.settings, codeDir: last.codeDir, gateways, redis };
  const local = resolve(cwd, 'settings.yaml');
  return { settings: exists(local) ? local : undefined, codeDir: undefined, gateways, redis };
}

/** Control plane and gateways of a project, and its Redis, as what is to be kept running. */
export function planFor(project: Project, given: UpSettings, root: string, build: string): Plan {
  const { settings, codeDir, gateways, redis } = given;
  return {
    build,
    settings,
    codeDir,
    gateways,
    redis,
    parts: [
      ...(redis ? [redisPart(project)] : []),
      {
        name: 'control-plane',
        args: [
          join(root, 'dist/control-plane/cli/main.js'),
          'control-plane',
          ...['--project', project.name, '--port-base', String(project.ports.grpc)],
          ...(settings === undefined ? [] : ['--settings', settings]),
          ...(codeDir === undefined ? [] : ['--code-dir', codeDir]),
        ],
        ...(redis && { env: { INITLESS_REDIS_HOST: '127.0.0.1', INITLESS_REDIS_PORT: String(project.ports.redis) } }),
        readyUrl: `http://127.0.0.1:${project.ports.http}/readyz`,
      },
      ...Array.from({ length: gateways }, (_, index) => gatewayPart(project, index + 1)),
    ],
  };
}

/**
 * A gateway. The first one has loopback's usual addresses; those after it have 127.0.0.2 and so on, each with the services'
 * own ports.
 */
function gatewayPart(project: Project, number: number): Part {
  const address = `127.0.0.${number}`;
  const http = `${address}:${project.ports.gatewayHttp}`;
  const flags = number === 1 ? {} : { listen: [address], httpListen: http };
  return {
    name: number === 1 ? 'gateway' : `gateway-${number}`,
    args: gatewayArguments(project, `127.0.0.1:${project.ports.grpc}`, flags),
    readyUrl: `http://${http}/readyz`,
  };
}

/** A Redis on loopback whose every change is on disk within a second, and which throws nothing away for want of memory. */
function redisPart(project: Project): Part {
  const dir = join(project.stateDir, 'redis');
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  return {
    name: 'redis',
    program: 'redis-server',
    args: [
      ...['--bind', '127.0.0.1', '--port', String(project.ports.redis), '--dir', dir],
      ...['--appendonly', 'yes', '--save', '', '--maxmemory-policy', 'noeviction'],
    ],
    readyUrl: `tcp://127.0.0.1:${project.ports.redis}`,
  };
}

/** Starts control plane and gateways under a supervisor, or finds them there. Gives whether anything was started. */
export async function bringUp(context: CliContext, flags: UpFlags): Promise<boolean> {
  const files = new RunFiles(context.project.runDir);
  const settings = upSettings(flags, files.readPlan(), context.cwd, existsSync);
  const root = projectRoot();
  const plan = planFor(context.project, settings, root, buildOf(root));
  return startSupervisor(files, plan, context.signal, context.say);
}

/** Stands for the compiled code: when its newest file was written. */
function buildOf(root: string): string {
  const newest = ['proto', 'control-plane', 'gateway'].map((part) => newestBelow(join(root, 'dist', part)));
  return new Date(Math.max(...newest)).toISOString();
}

function newestBelow(folder: string): number {
  if (!existsSync(folder)) return 0;
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.js'))
    .reduce((newest, name) => Math.max(newest, statSync(join(folder, name)).mtimeMs), 0);
}
