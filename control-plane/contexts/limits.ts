/** Entries in a build context, files, folders and links together, at most. */
export const MAX_ENTRIES = 100_000;

/** Bytes in a build context's files, at most. */
export const MAX_BYTES = 1024 ** 3;

/** Name of the configuration file at the top of a service's folder. */
export const CONFIG_FILE = 'config.yaml';
