interface Entry {
  at: number;
  order: number;
  run: () => void;
  cancelled: boolean;
}

/** Time that passes only from one event to the next. Events of the same time come in the order in which they were asked for. */
export class Clock {
  /** Milliseconds, as the core counts them. */
  now: number;
  /** Events so far. */
  steps = 0;
  /** Called after every event. */
  afterStep: () => void = () => {};
  readonly #heap: Entry[] = [];
  #order = 0;

  constructor(start = 1_000_000) {
    this.now = start;
  }

  /** Runs something later; returns what takes that back. */
  after(ms: number, run: () => void): () => void {
    const entry: Entry = { at: this.now + Math.max(0, ms), order: this.#order++, run, cancelled: false };
    this.#push(entry);
    return () => {
      entry.cancelled = true;
    };
  }

  /** Runs something again and again, until the function that this returns is called. */
  every(ms: number, run: () => void): () => void {
    let cancel = () => {};
    const next = () => {
      cancel = this.after(ms, () => {
        next();
        run();
      });
    };
    next();
    return () => cancel();
  }

  /** Lets `ms` milliseconds pass. */
  pass(ms: number): void {
    const until = this.now + ms;
    for (let first = this.#heap[0]; first !== undefined && first.at <= until; first = this.#heap[0]) {
      this.#pop();
      if (first.cancelled) continue;
      this.now = first.at;
      this.steps += 1;
      first.run();
      this.afterStep();
    }
    this.now = until;
  }

  #push(entry: Entry): void {
    const heap = this.#heap;
    let index = heap.push(entry) - 1;
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (isBefore(heap[parent]!, entry)) break;
      heap[index] = heap[parent]!;
      index = parent;
    }
    heap[index] = entry;
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop()!;
    if (heap.length === 0) return;
    let index = 0;
    for (;;) {
      const left = 2 * index + 1;
      if (left >= heap.length) break;
      const right = left + 1;
      const least = right < heap.length && isBefore(heap[right]!, heap[left]!) ? right : left;
      if (isBefore(last, heap[least]!)) break;
      heap[index] = heap[least]!;
      index = least;
    }
    heap[index] = last;
  }
}

function isBefore(a: Entry, b: Entry): boolean {
  return a.at === b.at ? a.order < b.order : a.at < b.at;
}
