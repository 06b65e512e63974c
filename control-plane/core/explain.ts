import { phaseOf } from './hosts.js';
import { isEnabled, type ServiceRecord, type Snapshot } from './model.js';
import { hasNamedVolumes, judgementsOf, placementOf } from './placement.js';
import { sharesOf } from './shares.js';
import { serviceView } from './view.js';

/** Why a service is on a host, or is not. */
export interface HostReasons {
  host: string;
  placed: boolean;
  reasons: string[];
  parked: number;
  maxRunning: number;
}

/** Why a service is where it is. */
export interface Explanation {
  reasons: string[];
  hosts: HostReasons[];
}

/** Why a service is where it is, from the same functions that decide it. Pure. */
export function explain(record: ServiceRecord, snapshot: Snapshot, now: number): Explanation {
  const { name, config, current, pending } = record;
  const { hosts } = placementOf(record, snapshot, now);
  const judgements = judgementsOf(record, snapshot, now);
  const shares = sharesOf(record, snapshot, now);
  const view = serviceView(record, snapshot, []);
  const reasons: string[] = [];
  if (!isEnabled(record)) reasons.push(`${name} is disabled: it is placed nowhere anew, and no host serves it`);
  if (view.problem !== undefined) reasons.push(view.problem.message);
  if (hasNamedVolumes(record))
    reasons.push('it keeps files in named volumes, which one host has: it can be on no other');
  else reasons.push(`it is spread over ${count(config.spread, 'host')} at most (spread)`);
  const pool = view.pool;
  const why = pool?.reason ? `: ${pool.reason}` : '';
  reasons.push(`${pool?.parked ?? 0} parked and ${config.maxPoolSize} running at most in all${why}`);
  if (pending?.making.kind === 'wanted')
    reasons.push(`revision ${pending.id} is to be made on ${record.host || 'no host yet'}`);
  if (current !== undefined) reasons.push(`revision ${current.id} serves; it was made on ${current.host}`);
  if (record.rolledBack)
    reasons.push('somebody went back to it: its folder is taken in again only when it changes or is applied');

  const rows = judgements.map(({ host, refusals, merits }): HostReasons => {
    const placed = record.hosts.includes(host);
    const share = shares.get(host);
    const state = snapshot.hosts.find((one) => one.name === host);
    const note = view.hosts.find((one) => one.host === host)?.note ?? '';
    const texts = [...refusals];
    if (placed && phaseOf(state, snapshot.policy, now) === 'away')
      texts.push('what it has is not replaced yet (host_timeout)');
    if (placed && !hosts.includes(host)) texts.push('it is to be left');
    if (!placed && refusals.length === 0 && record.hosts.length >= config.spread)
      texts.push('there are enough hosts that have it already');
    if (note !== '') texts.push(note);
    return {
      host,
      placed,
      reasons: [...texts, ...merits()],
      parked: share?.parked ?? 0,
      maxRunning: share?.maxRunning ?? 0,
    };
  });
  const order = (host: string) => (record.hosts.includes(host) ? record.hosts.indexOf(host) : rows.length);
  return { reasons, hosts: rows.sort((a, b) => order(a.host) - order(b.host) || (a.host < b.host ? -1 : 1)) };
}

function count(number: number, what: string): string {
  return `${number} ${what}${number === 1 ? '' : 's'}`;
}
