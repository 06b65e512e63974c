import { HostPhase, InstanceState, MemoryMode, Origin, ServiceState } from '../../proto/gen/initless/v1/types.js';

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

/** Bytes for people: "0 B", "512 B", "1.5 MiB". */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

/** Milliseconds for people: "85 ms", "7.4 s". */
export function formatMs(ms: number): string {
  if (ms < 1000) return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
  return `${(ms / 1000).toFixed(ms < 100_000 ? 1 : 0)} s`;
}

/** How long ago something was, in its largest unit: "12s", "3m", "5h", "9d"; "-" when it is not known. */
export function formatAge(at: Date | undefined, now: Date): string {
  if (!at) return '-';
  const seconds = Math.max(0, Math.floor((now.getTime() - at.getTime()) / 1000));
  if (seconds < 60) return `${seconds}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)}h`;
  return `${Math.floor(seconds / 86_400)}d`;
}

/** Time of day of an event, in the machine's zone: "14:03:59.123". */
export function formatTime(at: Date | undefined): string {
  if (!at) return '-';
  const pad = (value: number, width = 2) => String(value).padStart(width, '0');
  return `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}.${pad(at.getMilliseconds(), 3)}`;
}

/** A value of an enumeration without its prefix, in lower case: "ready", "restored"; "unknown" for a newer one. */
function word(name: string | undefined, prefix: string): string {
  return name === undefined || name === 'UNRECOGNIZED' ? 'unknown' : name.slice(prefix.length).toLowerCase();
}

/** "ready", "building", ... */
export function serviceStateWord(state: ServiceState): string {
  return word(ServiceState[state], 'SERVICE_STATE_');
}

/** "running", "parked", ... */
export function instanceStateWord(state: InstanceState): string {
  return word(InstanceState[state], 'INSTANCE_STATE_');
}

/** "ready", "away" or "lost". */
export function hostPhaseWord(phase: HostPhase): string {
  return word(HostPhase[phase], 'HOST_PHASE_');
}

/** "restored" or "cold". */
export function originWord(origin: Origin): string {
  return word(Origin[origin], 'ORIGIN_');
}

/** "mapped", "copied" or "lazy". */
export function memoryModeWord(mode: MemoryMode): string {
  return word(MemoryMode[mode], 'MEMORY_MODE_');
}

/**
 * Text that others wrote, in one line and without what a terminal would obey: escape sequences are taken out whole,
 * other control characters become blanks.
 */
export function plainText(text: string): string {
  return (
    text
      // biome-ignore lint/suspicious/noControlCharactersInRegex: ECMA-48 escape sequences, colours above all
      .replace(/\u001b(\[[0-?]*[ -/]*[@-~]|\][^\u0007\u001b]*(\u0007|\u001b\\)?|[@-Z\\-_])/g, '')
      // biome-ignore lint/suspicious/noControlCharactersInRegex: what must not reach the terminal
      .replace(/[\u0000-\u001f\u007f-\u009f]+/g, ' ')
  );
}
