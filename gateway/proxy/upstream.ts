import http from 'node:http';
import { splitAddress } from '../address.js';

/**
 * An idle connection to an instance is closed after this long, milliseconds: before the usual servers close it
 * themselves (gunicorn after 2 s, uvicorn and Node after 5), which would meet a request half way.
 */
const IDLE_CONNECTION_MS = 1_500;

/** The connections to one leased instance. */
export class Upstream {
  /** Instance, for messages and as a suspect. */
  readonly instance: string;
  /** "ADDRESS:PORT". */
  readonly address: string;
  readonly host: string;
  readonly port: number;
  readonly connections = new http.Agent({ keepAlive: true, timeout: IDLE_CONNECTION_MS, maxFreeSockets: 256 });

  /** @param address "ADDRESS:PORT", IPv6 in brackets. */
  constructor(instance: string, address: string) {
    this.instance = instance;
    this.address = address;
    const { host, port } = splitAddress(address);
    this.host = host;
    this.port = port;
  }

  /** Closes connections that no request uses. */
  closeIdle(): void {
    for (const sockets of Object.values(this.connections.freeSockets)) {
      for (const socket of sockets ?? []) socket.destroy();
    }
  }

  /** Closes all connections: no request uses any. */
  close(): void {
    this.connections.destroy();
  }
}
