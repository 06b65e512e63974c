import type { Logger } from 'pino';
import { toInitlessError } from '../../proto/rpc/errors.js';
import type { RpcServer } from '../../proto/rpc/server.js';

/** How often addresses that are not bound yet are asked for. */
const ASK_MS = 2_000;
/** How often they are asked for once all are bound: a network may be made anew with another address. */
const ASK_AGAIN_MS = 30_000;

/** The gRPC servers, one for each address, all with the same services. */
export class Listeners {
  readonly #makeServer: () => RpcServer;
  readonly #log: Logger;
  readonly #servers = new Map<string, RpcServer>();
  readonly #refused = new Map<string, string>();
  #ready = false;
  #stopped = false;
  #timer: NodeJS.Timeout | undefined;
  #asking: Promise<void> = Promise.resolve();

  constructor(makeServer: () => RpcServer, log: Logger) {
    this.#makeServer = makeServer;
    this.#log = log;
  }

  /** Listens on an address and gives the port. Errors: PORT_TAKEN. */
  async listen(address: string): Promise<number> {
    const server = this.#makeServer();
    const port = await server.listen(address);
    server.setReady(this.#ready);
    this.#servers.set(address, server);
    this.#log.info({ address, port }, 'gRPC listens');
    return port;
  }

  /** Listens on more addresses, as they appear. */
  listenLater(addresses: () => Promise<string[]>): void {
    if (this.#stopped) return;
    this.#asking = this.#ask(addresses).then((allBound) => {
      if (this.#stopped) return;
      this.#timer = setTimeout(() => this.listenLater(addresses), allBound ? ASK_AGAIN_MS : ASK_MS);
    });
  }

  /** What health checks answer from now on. */
  setReady(ready: boolean): void {
    this.#ready = ready;
    for (const server of this.#servers.values()) server.setReady(ready);
  }

  /** Takes no more calls, and cuts those that have not ended after `graceMs`. */
  async stop(graceMs: number): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    await this.#asking;
    await Promise.all([...this.#servers.values()].map((server) => server.stop(graceMs)));
  }

  /** Whether there are any, and all are bound. */
  async #ask(addresses: () => Promise<string[]>): Promise<boolean> {
    let wanted: string[];
    try {
      wanted = await addresses();
    } catch (error) {
      this.#complain('the network', toInitlessError(error).message);
      return false;
    }
    for (const address of wanted) {
      if (this.#servers.has(address) || this.#stopped) continue;
      try {
        await this.listen(address);
        this.#refused.delete(address);
      } catch (error) {
        this.#complain(address, toInitlessError(error).message);
      }
    }
    return wanted.length > 0 && wanted.every((address) => this.#servers.has(address));
  }

  /** Says each reason once, not every two seconds. */
  #complain(address: string, reason: string): void {
    if (this.#refused.get(address) === reason) return;
    this.#refused.set(address, reason);
    this.#log.warn({ address }, `not listening there yet, trying on: ${reason}`);
  }
}
