import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { packFolder } from '../../../control-plane/contexts/folder.js';
import { AdminServiceDefinition, type ApplyServiceRequest } from '../../../proto/gen/initless/v1/admin.js';
import { type connect, createRpcClient } from '../../../proto/rpc/client.js';

/** Uploads at a time. */
const AT_ONCE = 8;
const FIRST_PORT = 20_000;

/** Services that are only ever simulated: their folders, and how they are applied. */
export class Services {
  readonly count: number;
  readonly #root: string;
  readonly #parked: (index: number) => number;
  readonly #admin;

  /** @param parked instances that each is to keep parked, by its number. */
  constructor(root: string, count: number, parked: (index: number) => number, channel: ReturnType<typeof connect>) {
    this.#root = root;
    this.count = count;
    this.#parked = parked;
    this.#admin = createRpcClient(AdminServiceDefinition, channel);
  }

  /** Applies all of them. */
  async applyAll(): Promise<void> {
    const waiting = Array.from({ length: this.count }, (_, index) => index);
    const apply = async () => {
      for (let index = waiting.shift(); index !== undefined; index = waiting.shift()) await this.apply(index, 0);
    };
    await Promise.all(Array.from({ length: AT_ONCE }, apply));
  }

  /** Applies one of them; another round is another revision. */
  async apply(index: number, round: number): Promise<void> {
    const name = `service${String(index).padStart(4, '0')}`;
    const folder = join(this.#root, name);
    await mkdir(folder, { recursive: true });
    await writeFile(join(folder, 'Dockerfile'), `FROM scratch\nLABEL round=${round}\n`);
    const pool = `pre_start_pool_size: ${this.#parked(index)}\nmax_pool_size: 12\n`;
    const text = `service_name: ${name}\nservice_port: 80\nhost_port: ${FIRST_PORT + index}\n${pool}`;
    await writeFile(join(folder, 'config.yaml'), text);
    async function* messages(): AsyncGenerator<ApplyServiceRequest> {
      yield { source: { $case: 'upload', value: { origin: folder } } };
      for await (const chunk of packFolder(folder)) yield { source: { $case: 'chunk', value: chunk } };
    }
    await this.#admin.applyService(messages());
  }
}
