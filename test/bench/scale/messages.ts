/** What the process of the simulated agents is told. */
export type Order =
  /** Lose this many agents, all at once. */
  | { kind: 'kill'; agents: number }
  /** Take so many instances a second into use; 0: none any more. */
  | { kind: 'churn'; perSecond: number };

/** What it tells, every tenth of a second. */
export interface Tally {
  connected: number;
  /** Instances on the agents that are there. */
  instances: number;
  /** Commands carried out so far. */
  commands: number;
  /** Hosts that were lost. */
  lost: string[];
  /** What went wrong first. Empty: nothing. */
  error: string;
}
