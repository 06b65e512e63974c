import type http from 'node:http';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AgentServiceDefinition, type LeaseRequest } from '../../proto/gen/initless/v1/agent.js';
import { createRpcServer, type RpcServer } from '../../proto/rpc/server.js';
import { LeaseWorld } from '../unit/agent-lease-world.js';
import { freePort } from './free-port.js';
import { eventually, GatewayHarness } from './gateway-harness.js';

/** A gateway, and an agent whose instances answer only once they are thawed. */
class Host {
  world = new LeaseWorld();
  /** What the gateway said, in order: "hello", "activate". */
  readonly said: string[] = [];
  /** Told of each message of the gateway before the agent reads it. */
  onMessage: (kind: string) => void = () => {};
  readonly gateway: GatewayHarness;
  /** Where instances are reached: those with the number 1, and the others. */
  addresses = ['', ''];
  #server: RpcServer | undefined;
  #port: number;

  constructor(gateway: GatewayHarness, port: number) {
    this.gateway = gateway;
    this.#port = port;
  }

  static async start(): Promise<Host> {
    const port = await freePort();
    const hosts = [{ host: 'host1', leaseAddress: `127.0.0.1:${port}`, maxRunning: 10, parked: 0, draining: false }];
    const gateway = await GatewayHarness.start(() => {}, { service: 'web', hosts }, { waitFor: false });
    const host = new Host(gateway, port);
    const onceThawed = (id: string): http.RequestListener => {
      return async (req, res) => {
        if (id === 'web-1') await eventually('the thaw', () => host.world.happened.includes('thaw web-1'));
        req.pipe(res.writeHead(200, { 'x-instance': id }));
      };
    };
    host.addresses = [await gateway.upstream(onceThawed('web-1')), await gateway.upstream(onceThawed('another'))];
    await host.bootAgent();
    await gateway.listening('web');
    await eventually('the gateway', () => host.said.length === 1);
    return host;
  }

  async bootAgent(): Promise<void> {
    this.world.address = (id) => this.addresses[id === 'web-1' ? 0 : 1] ?? '';
    this.world.serve();
    this.#server = createRpcServer([AgentServiceDefinition.fullName], () => {});
    const { service } = this.world;
    this.#server.add(AgentServiceDefinition, {
      lease: (requests, context) => service.lease(this.#listen(requests), context),
      getHost: () => service.getHost(),
    });
    await this.#server.listen(`127.0.0.1:${this.#port}`);
  }

  /** Another agent takes over what the first one has noted. */
  async replaceAgent(): Promise<void> {
    const before = this.world;
    await this.#server?.stop(0);
    this.world = new LeaseWorld();
    this.world.address = before.address;
    for (const { id, leases, state } of before.instances.list()) {
      this.world.adopt(id, [...leases.values()], state === 'parked' ? state : 'running');
    }
    this.world.service.awaitGateways();
    await this.bootAgent();
  }

  /** Parks one, and waits until the gateway knows that it is reserved. */
  async park(): Promise<void> {
    await this.world.park();
    await this.reservations(1);
  }

  async reservations(count: number): Promise<void> {
    const isOne = ({ msg }: { msg: string }) => msg === 'parked instance reserved';
    await eventually('the reservation', () => this.gateway.log.filter(isOne).length === count);
  }

  get starts(): string[] {
    return this.world.happened.filter((what) => what.startsWith('start'));
  }

  async close(): Promise<void> {
    await this.gateway.close();
    await this.#server?.stop(0);
  }

  async *#listen(requests: AsyncIterable<LeaseRequest>): AsyncGenerator<LeaseRequest> {
    for await (const request of requests) {
      const kind = request.message?.$case ?? '';
      this.said.push(kind);
      this.onMessage(kind);
      yield request;
    }
  }
}

describe('a request to a service of which one instance is parked', () => {
  let host: Host;
  beforeEach(async () => {
    host = await Host.start();
  });
  afterEach(() => host.close());

  const ask = () => host.gateway.ask({ method: 'POST', body: 'abc' });

  it('is answered without an acquire, and the instance is given back afterwards', async () => {
    await host.park();
    expect(await ask()).toMatchObject({ status: 200, body: 'abc', headers: { 'x-instance': 'web-1' } });
    expect(host.said).toEqual(['hello', 'activate']);
    expect(host.world.granted).toEqual(['web parked']);
    expect(await host.gateway.metrics()).toContain('wakes_total{service="web",origin="restored",found="parked"} 1\n');
    await eventually('the release', () => host.world.held.length === 0);
    expect(host.starts).toEqual(['start web-1']);
  });

  it('is sent to another, whatever its method, when that instance is removed at this moment', async () => {
    await host.park();
    host.onMessage = (kind) => {
      if (kind === 'activate') host.world.instances.retire(host.world.instances.get('web-1'), 'expired');
    };
    expect(await ask()).toMatchObject({ status: 200, body: 'abc', headers: { 'x-instance': 'another' } });
    expect(host.said.filter((kind) => kind !== 'release')).toEqual(['hello', 'activate', 'acquire']);
    expect(host.world.happened).not.toContain('thaw web-1');
    expect(host.world.granted).toEqual(['web undefined']);
  });

  it('is answered by the instance that a person thaws at this moment', async () => {
    await host.park();
    host.onMessage = (kind) => {
      if (kind === 'activate') void host.world.instances.thaw('web-1');
    };
    expect(await ask()).toMatchObject({ status: 200, body: 'abc', headers: { 'x-instance': 'web-1' } });
    await eventually('the release', () => host.world.held.length === 0);
    expect(host.said).toEqual(['hello', 'activate', 'release']);
  });

  it('is answered without an acquire after the gateway was restarted', async () => {
    await host.park();
    await host.gateway.stopGateway();
    await eventually('the goodbye', () => host.world.held.length === 0);
    await host.gateway.bootGateway();
    await host.reservations(2);
    await host.gateway.listening('web');
    expect(await ask()).toMatchObject({ status: 200, headers: { 'x-instance': 'web-1' } });
    expect(host.said).toEqual(['hello', 'release', 'hello', 'activate']);
  });

  it('is answered without an acquire after the agent was restarted', async () => {
    await host.park();
    await host.replaceAgent();
    await eventually('the gateway back', () => host.said.length === 2);
    expect(await ask()).toMatchObject({ status: 200, headers: { 'x-instance': 'web-1' } });
    expect(host.said).toEqual(['hello', 'hello', 'activate']);
    expect(host.starts).toEqual([]);
  });

  it('that comes while the agent is restarted waits for it, and no other instance is started', async () => {
    await host.park();
    const replaced = host.replaceAgent();
    await eventually('the loss', () => host.gateway.log.some(({ msg }) => /lease stream|cannot be reached/.test(msg)));
    const answer = ask();
    await replaced;
    expect(await answer).toMatchObject({ status: 200, headers: { 'x-instance': 'web-1' } });
    expect(host.starts).toEqual([]);
  });

  it('is not told of it when it is reserved for another gateway: it gets one of its own', async () => {
    const other = host.world.connect('other', [], true);
    await host.world.park();
    await host.world.park();
    await host.reservations(1);
    await eventually('the reservation of the other', () => other.reserved.length === 1);
    const [mine, others] = host.world.held.map((lease) => lease.split(' ')[1]).sort();
    expect([mine, others]).toEqual(['gateway-test', 'other']);
    expect((await ask()).status).toBe(200);
    expect(host.said).toEqual(['hello', 'activate']);
    expect(host.world.held.filter((lease) => lease.endsWith('asleep'))).toHaveLength(1);
    other.cut();
  });
});
