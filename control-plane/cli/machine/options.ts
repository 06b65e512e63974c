/** What every step on the machine takes beside its subject. */
export interface MachineOptions {
  /** Ends the step; what it was about to leave behind is removed. */
  signal?: AbortSignal;
  /** Told one line for each thing that takes time or that a user should know. */
  progress?: (line: string) => void;
}
