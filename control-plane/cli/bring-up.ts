import { existsSync, readdirSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { gatewayArguments } from './commands/gateway.js';
import type { CliContext } from './context.js';
import { projectRoot } from './machine/root.js';
import type { Project } from './project.js';
import { startSupervisor } from './supervisor/control.js';
import { type Plan, RunFiles } from './supervisor/files.js';

/** What control plane and gateway are started with. */
export interface UpSettings {
  /** Absolute path of the settings file. */
  settings: string | undefined;
  /** Absolute path of the folder that services are read from. */
  codeDir: string | undefined;
}

/**
 * The settings of an `initless up`: the flags, else what the last one was given, else ./settings.yaml where there is
 * one. Relative paths start from `cwd`.
 */
export function upSettings(
  flags: { settings?: string; codeDir?: string },
  last: Plan | undefined,
  cwd: string,
  exists: (path: string) => boolean,
): UpSettings {
  const at = (path: string | undefined) => (path === undefined ? undefined : resolve(cwd, path));
  if (flags.settings !== undefined || flags.codeDir !== undefined) {
    return { settings: at(flags.settings), codeDir: at(flags.codeDir) };
  }
  if (last) return { settings: last.settings, codeDir: last.codeDir };
  const local = resolve(cwd, 'settings.yaml');
  return { settings: exists(local) ? local : undefined, codeDir: undefined };
}

/** Control plane and gateway of a project, as what is to be kept running. */
export function planFor(project: Project, { settings, codeDir }: UpSettings, root: string, build: string): Plan {
  return {
    build,
    settings,
    codeDir,
    parts: [
      {
        name: 'control-plane',
        args: [
          join(root, 'dist/control-plane/cli/main.js'),
          'control-plane',
          ...['--project', project.name, '--port-base', String(project.ports.grpc)],
          ...(settings === undefined ? [] : ['--settings', settings]),
          ...(codeDir === undefined ? [] : ['--code-dir', codeDir]),
        ],
        readyUrl: `http://127.0.0.1:${project.ports.http}/readyz`,
      },
      {
        name: 'gateway',
        args: gatewayArguments(project, `127.0.0.1:${project.ports.grpc}`, {}),
        readyUrl: `http://127.0.0.1:${project.ports.gatewayHttp}/readyz`,
      },
    ],
  };
}

/** Starts control plane and gateway under a supervisor, or finds them there. Gives whether anything was started. */
export async function bringUp(context: CliContext, flags: { settings?: string; codeDir?: string }): Promise<boolean> {
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
