import { type ChannelOptions, createChannel, createClientFactory } from 'nice-grpc';
import type { CompatServiceDefinition } from 'nice-grpc/lib/service-definitions/index.js';
import { errorDetailsClientMiddleware } from 'nice-grpc-error-details';

const OPTIONS: ChannelOptions = {
  'grpc.keepalive_time_ms': 10_000,
  'grpc.keepalive_timeout_ms': 5_000,
  'grpc.keepalive_permit_without_calls': 1,
  // A peer that comes back is found again within seconds, not after the default of up to two minutes.
  'grpc.initial_reconnect_backoff_ms': 200,
  'grpc.max_reconnect_backoff_ms': 2_000,
  // Ours are addresses of this machine or its networks: a proxy that is set for the outside must not get between.
  'grpc.enable_http_proxy': 0,
  'grpc.max_receive_message_length': 4 * 1024 * 1024,
};

/**
 * A channel to "HOST:PORT" with keep-alive and quick reconnects. The caller closes it.
 *
 * @param options in place of those that channels have by default.
 */
export function connect(address: string, options: ChannelOptions = {}) {
  return createChannel(address, undefined, { ...OPTIONS, ...options });
}

/** A client for a service on a channel; its errors carry the details that {@link fromGrpcError} reads. */
export function createRpcClient<Definition extends CompatServiceDefinition>(
  definition: Definition,
  channel: ReturnType<typeof connect>,
) {
  return createClientFactory().use(errorDetailsClientMiddleware).create(definition, channel);
}
