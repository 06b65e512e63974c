import net, { type AddressInfo } from 'node:net';
import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { HeldLease } from '../../gateway/agent-stream.js';
import { Wake } from '../../gateway/wake.js';
import { AgentServiceDefinition } from '../../proto/gen/initless/v1/agent.js';
import { createRpcServer, type RpcServer } from '../../proto/rpc/server.js';
import { LeaseWorld } from '../unit/agent-lease-world.js';
import { eventually } from './gateway-harness.js';

/** The agent's leases and the gateway's, over real connections that can be cut. */
class Wire {
  world = new LeaseWorld();
  /** What the gateway was told, in order. */
  readonly events: string[] = [];
  readonly reserved: HeldLease[] = [];
  readonly wake: Wake;
  #server: RpcServer | undefined;
  #agentPort = 0;
  readonly #sockets = new Set<net.Socket>();
  readonly #door = net.createServer((client) => this.#join(client));

  constructor() {
    const note = (what: string) => (name: string) => void this.events.push(`${what} ${name.split(' ').at(-1)}`);
    this.wake = new Wake('gateway-1', pino({ level: 'silent' }), {
      up: () => void this.events.push('up'),
      down: () => void this.events.push('down'),
      silent: () => {},
      resumed: note('resumed'),
      reserved: (_service, lease) => void this.reserved.push(lease),
      revoked: note('revoked'),
      recalled: note('recalled'),
      confirmed: note('confirmed'),
      fillEnded: (name, failure) =>
        void this.events.push(`${failure ? 'not filled' : 'filled'} ${name.split(' ').at(-1)}`),
    });
  }

  get address(): string {
    return `127.0.0.1:${(this.#door.address() as AddressInfo).port}`;
  }

  async open(): Promise<void> {
    await this.bootAgent();
    await new Promise<void>((resolve) => this.#door.listen(0, '127.0.0.1', () => resolve()));
    this.wake.setAgents(new Map([[this.address, 'host1']]));
    await eventually('the stream', () => this.events.includes('up'));
  }

  async bootAgent(): Promise<void> {
    this.world.serve();
    this.#server = createRpcServer([AgentServiceDefinition.fullName], () => {});
    this.#server.add(AgentServiceDefinition, this.world.service);
    this.#agentPort = await this.#server.listen(`127.0.0.1:${this.#agentPort}`);
  }

  /** Another agent takes over what the first one has noted. */
  async replaceAgent(filling = false): Promise<void> {
    const before = this.world;
    await this.#server?.stop(0);
    this.world = new LeaseWorld();
    this.world.filling = filling;
    for (const { id, leases } of before.instances.list()) this.world.adopt(id, [...leases.values()]);
    this.world.service.awaitGateways();
    await this.bootAgent();
  }

  /** Cuts all connections, as a network does: neither side says anything. */
  cut(): void {
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  /** Cuts all connections and lets no other one through. */
  shut(): void {
    this.#door.close();
    this.cut();
  }

  acquire(): Promise<HeldLease> {
    return new Promise((resolve, reject) => {
      this.wake.acquire(this.address, { service: 'web', timeoutMs: 5_000, suspects: [] }, (answer) => {
        if (answer.kind === 'granted') resolve(answer.lease);
        else reject(answer.error);
      });
    });
  }

  async close(): Promise<void> {
    await this.wake.close();
    this.shut();
    await this.#server?.stop(0);
  }

  #join(client: net.Socket): void {
    const agent = net.connect({ host: '127.0.0.1', port: this.#agentPort });
    for (const [from, to] of [
      [client, agent],
      [agent, client],
    ] as const) {
      this.#sockets.add(from);
      from.on('error', () => {});
      from.on('close', () => {
        this.#sockets.delete(from);
        to.destroy();
      });
      from.pipe(to);
    }
  }
}

describe('a gateway and an agent', () => {
  let wire: Wire;
  beforeEach(async () => {
    wire = new Wire();
    await wire.open();
  });
  afterEach(() => wire.close());

  it('agree on what is held after their connection was cut', async () => {
    const { granted } = await wire.acquire();
    expect(wire.world.held).toEqual([`${granted.leaseId} gateway-1 2`]);
    wire.cut();
    await eventually('the lease to be resumed', () => wire.events.includes(`resumed ${granted.leaseId}`));
    expect(wire.events).toEqual(['up', 'down', `resumed ${granted.leaseId}`, 'up']);
    expect(wire.world.held).toEqual([`${granted.leaseId} gateway-1 2`]);
  });

  it('agree on it after the agent was replaced, also on what was given back meanwhile', async () => {
    const kept = await wire.acquire();
    const returned = await wire.acquire();
    kept.shrink(1);
    await eventually('the slot back', () => wire.world.held.includes(`${kept.granted.leaseId} gateway-1 1`));
    await wire.replaceAgent();
    returned.release(0);
    await eventually('the lease to be resumed', () => wire.events.includes(`resumed ${kept.granted.leaseId}`));
    await eventually('one lease', () => wire.world.held.length === 1);
    expect(wire.world.held).toEqual([`${kept.granted.leaseId} gateway-1 1`]);
    kept.release(0);
    await eventually('no lease', () => wire.world.held.length === 0);
  });

  it('agree that nothing is held once the gateway has stopped', async () => {
    await wire.acquire();
    await wire.wake.close();
    expect(wire.world.held).toEqual([]);
  });

  it('agree that nothing is held once no route leads to the agent and the last lease is given back', async () => {
    const lease = await wire.acquire();
    wire.wake.setAgents(new Map());
    expect(wire.world.held).toHaveLength(1);
    lease.release(0);
    await eventually('no lease', () => wire.world.held.length === 0);
  });

  it('agree on what is filled, also over a cut and another agent, and on what was right before', async () => {
    wire.world.filling = true;
    const lease = await wire.acquire();
    const { leaseId, filling } = lease.granted;
    expect(filling).toBe(true);
    lease.confirm(1);
    await eventually('the word', () => wire.events.includes(`confirmed ${leaseId}`));
    wire.cut();
    await eventually('the lease to be resumed', () => wire.events.includes(`resumed ${leaseId}`));
    expect(wire.events).not.toContain(`filled ${leaseId}`);
    await wire.replaceAgent(true);
    await eventually('it again', () => wire.events.filter((what) => what === `resumed ${leaseId}`).length === 2);
    expect(wire.events).not.toContain(`filled ${leaseId}`);
    wire.world.endFill.get(lease.granted.instance)?.(undefined);
    await eventually('the end of the fill', () => wire.events.includes(`filled ${leaseId}`));
    wire.cut();
    await eventually('the stream back', () => wire.events.filter((what) => what === 'up').length === 4);
    expect(wire.events.filter((what) => what.startsWith('filled'))).toHaveLength(1);
  });

  it('agree on what was filled while they were cut off, and that what is lost is not', async () => {
    wire.world.filling = true;
    const { granted } = await wire.acquire();
    await wire.replaceAgent();
    await eventually('the end of the fill', () => wire.events.includes(`filled ${granted.leaseId}`));
    wire.world.filling = true;
    const other = await wire.acquire();
    wire.world = new LeaseWorld();
    await wire.replaceAgent();
    await eventually('its loss', () => wire.events.includes(`revoked ${other.granted.leaseId}`));
    const ofOther = wire.events.filter((what) => what.endsWith(other.granted.leaseId));
    expect(ofOther).toEqual([`not filled ${other.granted.leaseId}`, `revoked ${other.granted.leaseId}`]);
  });

  it('differ when the agent has forgotten an instance: the gateway is told', async () => {
    const { granted } = await wire.acquire();
    for (const instance of wire.world.instances.list()) await wire.world.instances.remove(instance.id, 'operator');
    await eventually('its end', () => wire.events.includes(`revoked ${granted.leaseId}`));
    wire.cut();
    await eventually('the stream back', () => wire.events.filter((what) => what === 'up').length === 2);
    await eventually('its end again', () => wire.events.filter((what) => what.startsWith('revoked')).length === 2);
  });

  it('differ when the gateway is gone without a word: what it held stands for a while', async () => {
    const { granted } = await wire.acquire();
    wire.shut();
    await eventually('the loss', () => wire.world.log.some((line) => line.startsWith('the gateway is away')));
    expect(wire.world.held).toEqual([`${granted.leaseId} gateway-1 2`]);
  });
});
