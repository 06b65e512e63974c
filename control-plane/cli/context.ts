import type { Writable } from 'node:stream';
import type { Command } from 'commander';
import { type Admin, connectAdmin } from './admin.js';
import { type Project, projectOf } from './project.js';

/** What the program has of the outside world; tests give their own. */
export interface CliIo {
  stdout: Writable;
  stderr: Writable;
  env: NodeJS.ProcessEnv;
  /** Folder that relative paths start from. */
  cwd: string;
  /** Aborts when the user presses Ctrl-C or the program is told to end. */
  signal: AbortSignal;
}

/** How the program ends. */
export const EXIT = {
  ok: 0,
  /** Something failed; stderr says what and what to do. */
  failed: 1,
  /** The command line is not right. */
  usage: 2,
  /** It serves, but cannot be checkpointed: every start is a cold one. */
  degraded: 3,
  /** Ctrl-C. */
  interrupted: 130,
} as const;

/** Options that every command has. */
export interface GlobalOptions {
  server?: string;
  timeout?: number;
  project?: string;
  portBase?: number;
}

/** What a command's action is given. */
export interface CliContext extends CliIo {
  /** Names, ports and folders of the project that is meant. */
  project: Project;
  /** Address of the control plane, "HOST:PORT". */
  server: string;
  /** The bound on one call, in milliseconds: `--timeout`, or what the command thinks right. */
  timeoutMs(standard: number): number;
  /** Runs `work` with a connection to the control plane and closes it afterwards. */
  withAdmin<T>(work: (admin: Admin) => Promise<T>): Promise<T>;
  /** A line for people, on stderr. */
  say(line: string): void;
}

/** The context of one run of `command`. Flags win over INITLESS_* in the environment, those over defaults. */
export function contextOf(io: CliIo, command: Command): CliContext {
  const options = command.optsWithGlobals<GlobalOptions>();
  const project = projectOf(options, io.env);
  const server = options.server ?? io.env.INITLESS_SERVER ?? `localhost:${project.ports.grpc}`;
  return {
    ...io,
    project,
    server,
    timeoutMs: (standard) => (options.timeout === undefined ? standard : options.timeout * 1000),
    async withAdmin(work) {
      const admin = connectAdmin(server, io.signal);
      try {
        return await work(admin);
      } finally {
        admin.close();
      }
    },
    say: (line) => io.stderr.write(`${line}\n`),
  };
}
