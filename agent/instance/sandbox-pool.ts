import type { Logger } from 'pino';
import { repeat, withDeadline } from '../../proto/rpc/deadline.js';
import { InitlessError, toInitlessError } from '../../proto/rpc/errors.js';
import type { Netns } from '../runtime/netns.js';
import { netnsPath, type PortRange, type Sandbox, type Sandboxes, type SandboxSettings } from '../runtime/sandbox.js';
import { appearance, differences } from '../runtime/sandbox-look.js';
import { type Entry, Ledger, type SandboxCounts, type Stage } from './sandbox-ledger.js';
import { choose, mayFill, mayKeep, pauseAfter, remembered, SPARES, surplus, wanted } from './sandbox-policy.js';

/**
 * Sandboxes made ahead of time, bound to a service only when they are taken, looked at when they come back, and then
 * used again or removed. All that takes time and is nobody's to wait for is done in the background, few at a time.
 */
export class SandboxPool implements Sandboxes {
  readonly #netns: Netns;
  readonly #log: Pick<Logger, 'info' | 'warn' | 'error'>;
  readonly #now: () => number;
  readonly #ledger: Ledger;
  readonly #jobs = new Set<Promise<void>>();
  #settings: SandboxSettings;
  /** When sandboxes were taken. */
  #taken: number[] = [];
  /** How many want a sandbox or a port now, and what wakes those of them that wait. */
  #wanting = 0;
  #waiting: (() => void)[] = [];
  /** Background jobs are begun until it aborts; undefined before the start. */
  #signal: AbortSignal | undefined;
  /** How a new sandbox looks, and whether that is to be looked at again: the machine may have changed. */
  #fresh: string[] | undefined;
  #freshWanted = true;
  /** Failures to make a spare in a row, and when the next may be made. */
  #failures = 0;
  #notBefore = 0;
  /** Whether this kernel has ever forgotten connections when it was asked to; undefined before the first time. */
  #forgets: boolean | undefined;

  constructor(
    netns: Netns,
    settings: SandboxSettings,
    log: Pick<Logger, 'info' | 'warn' | 'error'>,
    now: () => number = () => performance.now(),
  ) {
    this.#netns = netns;
    this.#settings = settings;
    this.#ledger = new Ledger(settings.ports);
    this.#log = log;
    this.#now = now;
  }

  /**
   * Loads the host's rules and begins to make spares. Sandboxes of an earlier agent stay if they are in `kept`; all
   * others, its spares among them, go in the background: new ones are made faster than those are proved to be whole.
   */
  async start(kept: readonly Sandbox[], signal: AbortSignal): Promise<void> {
    for (const sandbox of kept) {
      const entry = this.#ledger.enter(sandbox.index, sandbox.port, 'used');
      entry.leadsTo = sandbox.servicePort;
      entry.sandbox = sandbox;
    }
    this.#netns.clearMarks();
    await this.#netns.loadHostRules(this.#settings, kept, signal);
    this.#signal = signal;
    this.#claimStrays();
    this.#upkeep();
  }

  /** Keeps as many spares as are wanted until the start's signal aborts. No job is under way when it is done. */
  async run(signal: AbortSignal): Promise<void> {
    let strays = this.#now() + SPARES.strayMs;
    await repeat(SPARES.tickMs, signal, () => {
      if (this.#now() >= strays) {
        strays = this.#now() + SPARES.strayMs;
        this.#claimStrays();
      }
      this.#upkeep();
    });
    await Promise.all(this.#jobs);
  }

  /** Changes which ports may be leased: spares with others are removed, sandboxes in use keep theirs until they end. */
  usePorts(ports: PortRange): void {
    this.#settings = { ...this.#settings, ports };
    this.#ledger.range = ports;
    for (const entry of this.#ledger.all('spare')) if (!this.#ledger.inRange(entry)) entry.stage = 'leaving';
    this.#upkeep();
  }

  /** Has instances open no connection to other hosts' agents, "ADDRESS:PORT", from now on. Errors: INTERNAL. */
  async useAgents(agents: readonly string[]): Promise<void> {
    await this.#netns.forbidAgents(agents, this.#signal);
  }

  /** How many there are of what. */
  counts(): SandboxCounts {
    return this.#ledger.counts();
  }

  async take(servicePort: number, signal?: AbortSignal): Promise<Sandbox> {
    this.#taken = remembered([...this.#taken, this.#now()], this.#now());
    const { entry, made } = await this.#obtain(signal, () => {
      const spare = choose(this.#ledger.all('spare'), servicePort);
      if (spare) spare.stage = 'used';
      const entry = spare ?? this.#ledger.enterFree('used');
      return entry && { entry, made: spare !== undefined };
    });
    const { index, port = 0, leadsTo } = entry;
    const address = `${this.#settings.hostAddress}:${port}`;
    const sandbox = { index, port, servicePort, netns: netnsPath(index), address };
    entry.sandbox = sandbox;
    entry.leadsTo = servicePort;
    this.#mark(entry, false);
    this.#upkeep();
    const steps = await Promise.allSettled([
      ...(made ? [] : [this.#netns.make(index, signal)]),
      ...(leadsTo === servicePort ? [] : [this.#netns.bind(sandbox, leadsTo !== undefined, signal)]),
    ]);
    const failed = steps.find((step) => step.status === 'rejected');
    if (failed === undefined) return sandbox;
    entry.sandbox = undefined;
    entry.stage = 'leaving';
    this.#mark(entry, true);
    this.#upkeep();
    throw failed.reason;
  }

  giveBack(sandbox: Sandbox): void {
    const entry = this.#ledger.get(sandbox.index);
    // The number may be somebody else's by now: what is given back twice must not take it from him.
    if (entry?.sandbox !== sandbox) return;
    entry.sandbox = undefined;
    entry.stage = 'returned';
    this.#mark(entry, true);
    this.#upkeep();
  }

  async leasePort(signal?: AbortSignal): Promise<{ index: number; port: number }> {
    const { index, port = 0 } = await this.#obtain(signal, () => {
      const entry = this.#ledger.enterFree('port');
      if (entry) return entry;
      // A spare makes room, unless another one is just doing that.
      if (this.#onTheirWay('leaving', 'removing').length === 0) {
        const spare = choose(this.#ledger.all('spare'), 0);
        if (spare) spare.stage = 'leaving';
        this.#upkeep();
      }
      return undefined;
    });
    return { index, port };
  }

  returnPort(index: number): void {
    const entry = this.#ledger.get(index);
    if (entry?.stage !== 'port') return;
    this.#ledger.strike(entry);
    this.#changed();
    this.#upkeep();
  }

  /** What `attempt` gives, tried again whenever something has come back, for as long as something may. */
  async #obtain<T>(signal: AbortSignal | undefined, attempt: () => T | undefined): Promise<T> {
    signal?.throwIfAborted();
    const until = this.#now() + SPARES.waitMs;
    this.#wanting++;
    try {
      for (;;) {
        const found = attempt();
        if (found !== undefined) return found;
        await this.#change(until, signal);
      }
    } finally {
      this.#wanting--;
    }
  }

  /** Waits until something has come back. Errors: PORTS_EXHAUSTED when nothing is on its way, or not in time. */
  async #change(until: number, signal: AbortSignal | undefined): Promise<void> {
    const left = until - this.#now();
    const nothing = this.#onTheirWay('making', 'returned', 'checking', 'leaving', 'removing').length === 0;
    if (nothing || left <= 0 || this.#signal === undefined || this.#signal.aborted) throw this.#exhausted();
    try {
      await withDeadline(
        left,
        'a leased port to come free',
        signal,
        () => new Promise<void>((resolve) => this.#waiting.push(resolve)),
      );
    } catch (error) {
      if (error instanceof InitlessError && error.code === 'DEADLINE') throw this.#exhausted();
      throw error;
    }
  }

  #onTheirWay(...stages: readonly Stage[]): Entry[] {
    const now = this.#now();
    return this.#ledger.all(...stages).filter((entry) => this.#ledger.inRange(entry) && entry.notBefore <= now);
  }

  #changed(): void {
    for (const wake of this.#waiting.splice(0)) wake();
  }

  #exhausted(): InitlessError {
    const { first, last } = this.#settings.ports;
    return new InitlessError('PORTS_EXHAUSTED', `all ${last - first + 1} leased ports ${first}-${last} are in use`, {
      nextStep: "widen 'reserved_ports' in the settings file, or lower 'max_pool_size'",
    });
  }

  /** Begins what there is to do in the background, as far as it may be done at a time. */
  #upkeep(): void {
    const signal = this.#signal;
    if (signal === undefined) return;
    while (!signal.aborted && this.#jobs.size < SPARES.atATime) {
      const work = this.#nextJob(signal);
      if (work === undefined) return;
      const job = work.finally(() => {
        this.#jobs.delete(job);
        this.#changed();
        this.#upkeep();
      });
      this.#jobs.add(job);
    }
  }

  #nextJob(signal: AbortSignal): Promise<void> | undefined {
    const now = this.#now();
    const ledger = this.#ledger;
    const target = wanted(this.#taken, now, ledger.capacity());
    const have = ledger.all('making', 'spare', 'checking').length;
    const returned = ledger.all('returned')[0];
    if (returned && ledger.inRange(returned) && mayKeep(have, target)) return this.#check(returned, signal);
    if (returned) returned.stage = 'leaving';
    for (const spare of surplus(ledger.all('spare'), have - target, now)) spare.stage = 'leaving';
    const leaving = ledger.all('leaving').find((entry) => entry.notBefore <= now);
    if (leaving) return this.#remove(leaving, signal);
    // A port that comes free is for whoever waits for one.
    if (have >= target || now < this.#notBefore || this.#wanting > 0) return undefined;
    if (!mayFill(this.#taken, now, ledger.all('spare').length)) return undefined;
    const entry = ledger.enterFree('making');
    return entry && this.#fill(entry, signal);
  }

  async #fill(entry: Entry, signal: AbortSignal): Promise<void> {
    this.#mark(entry, true);
    try {
      await this.#netns.make(entry.index, signal);
      if (this.#freshWanted) {
        this.#fresh = appearance(await this.#netns.look(entry.index, signal), entry.index);
        this.#freshWanted = false;
      }
      this.#failures = 0;
      this.#ready(entry);
    } catch (thrown) {
      entry.stage = 'leaving';
      const pause = pauseAfter(++this.#failures);
      this.#notBefore = this.#now() + pause;
      this.#report(thrown, signal, { sandbox: entry.index, pause }, 'a spare sandbox could not be made');
    }
  }

  /** Proves that nothing of its tenant is left in a sandbox, or has it removed. */
  async #check(entry: Entry, signal: AbortSignal): Promise<void> {
    entry.stage = 'checking';
    let clean = false;
    try {
      const found = appearance(await this.#netns.look(entry.index, signal), entry.index);
      const odd = this.#fresh ? differences(this.#fresh, found) : ['it is not known yet how a new one looks'];
      if (odd.length > 0) {
        this.#freshWanted = true;
        const about = { sandbox: entry.index, found: odd.slice(0, 10) };
        this.#log.info(about, 'a sandbox is not used again: it is not as it was when it was new');
      } else clean = await this.#forget(entry, signal);
    } catch (thrown) {
      this.#report(thrown, signal, { sandbox: entry.index }, 'a sandbox is not used again: it could not be looked at');
    }
    if (clean) this.#ready(entry);
    else entry.stage = 'leaving';
  }

  #ready(entry: Entry): void {
    entry.stage = this.#ledger.inRange(entry) ? 'spare' : 'leaving';
    entry.since = this.#now();
  }

  async #remove(entry: Entry, signal: AbortSignal): Promise<void> {
    entry.stage = 'removing';
    try {
      await this.#netns.destroy(entry.index, entry.port, signal);
      await this.#forget(entry, signal);
      this.#ledger.strike(entry);
      this.#mark(entry, false);
    } catch (thrown) {
      entry.stage = 'leaving';
      const pause = pauseAfter(++entry.failures);
      entry.notBefore = this.#now() + pause;
      this.#report(thrown, signal, { sandbox: entry.index, pause }, 'a sandbox could not be removed');
    }
  }

  /**
   * Whether the kernel has forgotten a sandbox's connections. On one that never could, ports are leased again all the
   * same, and it is said once; on one that could, a failure is one like any other.
   */
  async #forget(entry: Entry, signal: AbortSignal): Promise<boolean> {
    try {
      await this.#netns.forget(entry.index, signal);
      this.#forgets = true;
      return true;
    } catch (thrown) {
      if (this.#forgets || signal.aborted) throw thrown;
      if (this.#forgets === undefined) {
        this.#report(thrown, signal, {}, 'connections of past instances cannot be forgotten');
      }
      this.#forgets = false;
      return false;
    }
  }

  #report(thrown: unknown, signal: AbortSignal, about: object, message: string): void {
    // What is stopped half-way is removed by the next agent.
    if (signal.aborted) return;
    const { code, message: error } = toInitlessError(thrown);
    this.#log.warn({ ...about, code, error }, message);
  }

  /** Takes charge of sandboxes that are on the host and that nobody here knows, to remove them. */
  #claimStrays(): void {
    try {
      const strays = this.#netns.present().filter((index) => this.#ledger.get(index) === undefined);
      for (const index of strays) this.#ledger.enter(index, undefined, 'leaving');
      if (strays.length > 0) this.#log.info({ sandboxes: strays }, 'removing sandboxes that nobody uses');
    } catch (error) {
      this.#log.error({ error }, 'the sandboxes on this host could not be listed');
    }
  }

  #mark(entry: Entry, spare: boolean): void {
    try {
      this.#netns.mark(entry.index, spare);
    } catch (error) {
      this.#log.error({ error, sandbox: entry.index }, 'the note of a spare sandbox could not be changed');
    }
  }
}
