import {
  type Route,
  RoutingServiceDefinition,
  type WatchRoutesRequest,
} from '../../../proto/gen/initless/v1/routing.js';
import { type connect, createRpcClient } from '../../../proto/rpc/client.js';
import { PushStream } from '../../../proto/rpc/push-stream.js';

/** The route table as a gateway has it. */
export class RouteWatch {
  readonly routes = new Map<string, Route>();
  readonly #abort = new AbortController();
  readonly #done: Promise<void>;

  constructor(channel: ReturnType<typeof connect>) {
    const said = new PushStream<WatchRoutesRequest>('a gateway');
    said.push({ message: { $case: 'hello', value: { gateway: 'bench', table: '', version: 0 } } });
    this.#done = this.#read(createRpcClient(RoutingServiceDefinition, channel), said);
    this.#done.catch(() => undefined);
  }

  /** Ends it. */
  async stop(): Promise<void> {
    this.#abort.abort();
    await this.#done.catch(() => undefined);
  }

  async #read(
    client: ReturnType<typeof createRpcClient<typeof RoutingServiceDefinition>>,
    said: PushStream<WatchRoutesRequest>,
  ): Promise<void> {
    for await (const change of client.watchRoutes(said, { signal: this.#abort.signal })) {
      if (!change.isChange) this.routes.clear();
      for (const service of change.removed) this.routes.delete(service);
      for (const route of change.routes) this.routes.set(route.service, route);
    }
  }
}
