import type { Logger } from 'pino';
import type { Store } from './store/store.js';

/** How a control plane is set up. */
export interface ControlPlaneOptions {
  /** Name that everything on the machine carries. */
  project: string;
  /** Folder for the store and the build contexts. */
  stateDir: string;
  /** Settings file. Without: ./settings.yaml, /etc/docker/settings.yaml, or none. */
  settingsPath?: string;
  /** Folder that services are read from; wins over the settings. */
  codeDir?: string;
  /** Address for gRPC, "HOST:PORT". */
  listen?: string;
  /** Address for HTTP, "HOST:PORT". */
  httpListen?: string;
  /** More addresses for gRPC, which may appear later; asked for until each is bound. */
  extraAddresses?: () => Promise<string[]>;
  /** Ports of other parts that no service may have, besides those listened on here. */
  ownPorts?: readonly number[];
  /** Without: JSON lines on standard output, readable ones on a terminal. */
  logger?: Logger;
  /** Environment, for `INITLESS_*`. */
  env?: NodeJS.ProcessEnv;
  /** Folder that relative paths start from. */
  cwd?: string;
  /** Store to use in place of the one that the settings choose. */
  store?: Store;
  /** Ends waiting for what the start needs. */
  signal?: AbortSignal;
}

/** A control plane that runs. */
export interface ControlPlane {
  readonly grpcPort: number;
  readonly httpPort: number;
  /** Reads the settings and `code_dir` again. */
  reload(): Promise<void>;
  /** Stops being ready, drains, stops, closes the store. */
  stop(): Promise<void>;
}

/** Where it listens unless told otherwise. */
export const DEFAULT_LISTEN = '127.0.0.1:7070';
export const DEFAULT_HTTP_LISTEN = '127.0.0.1:7071';
/** Ports of the other parts: an agent's two on a machine that is itself a host, and the gateway's. */
export const DEFAULT_OWN_PORTS: readonly number[] = [7072, 7073, 7074];
