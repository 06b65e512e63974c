/**
 * Every default of `settings.yaml` and `config.yaml`, in the units the keys have there. A key of `config.yaml` that is
 * in {@link SETTINGS_DEFAULTS} too takes the value of the settings in force.
 */

/** Defaults of `settings.yaml`. */
export const SETTINGS_DEFAULTS = {
  redis_port: 6_379,
  /** First and last port of a host that instances lease. */
  reserved_ports: [20_000, 20_999] as readonly [number, number],
  /** Folder on a host, on Docker's volume, that holds checkpoints. */
  checkpoint_dir: '/var/lib/docker/initless/checkpoints',
  /** Removals of instances at a time. */
  recycle_workers: 4,
  /** Instances kept parked. */
  pre_start_pool_size: 0,
  /** Instances running at most. */
  max_pool_size: 10,
  /** Minutes that a parked instance is kept. */
  pre_start_timeout: 15,
  /** Minutes without a request after which an instance is removed. */
  idle_timeout: 5,
  /** Seconds that a restored instance may take to become healthy. */
  health_check_timeout: 10,
  /** Seconds for which a running instance may fail every health check; 0: for ever. */
  hang_timeout: 30,
  /** Seconds that a start from the image may take. */
  start_timeout: 120,
  /** Requests in flight per instance. */
  max_concurrency: 100,
  /** Seconds that a request may wait for an instance. */
  queue_timeout: 30,
  /** Requests that may wait for an instance at a time. */
  queue_limit: 1_000,
  /** Hosts that the instances of a service are spread over. */
  spread: 3,
  /** Seconds that a host may be away before what it had is replaced on others. */
  host_timeout: 15,
  /** Revisions that served before and are kept for a rollback. */
  keep_revisions: 3,
  /** Megabytes (10^6) per second at which a host sends revisions to others, all copies together. */
  copy_rate: 200,
} as const;

/** Defaults of `config.yaml`; `image_name` and `checkpoint_name` are the service's name. */
export const SERVICE_DEFAULTS = {
  is_enabled: true,
  tag_name: 'latest',
  checkpoint_tag_name: 'checkpoint',
  /** `path` and `timeout` of `health_check`; milliseconds. Any 2xx answer is right when `wanted` is not given. */
  health_check: { path: '/', timeout: 1_000 },
  /** Times that a warm-up path is asked for. */
  warmup_count: 1,
  protocol: 'http',
  memory: 'auto',
  reuse: false,
} as const;

/** Names under which a folder's build file is accepted, the preferred one first. */
export const DOCKERFILE_NAMES = ['Dockerfile', 'dockerfile'] as const;

/** Where the settings are looked for when no file is named, in this order. */
export const SETTINGS_SEARCH = ['settings.yaml', '/etc/docker/settings.yaml'] as const;
