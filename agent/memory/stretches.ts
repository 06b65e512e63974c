/** Addresses, or places in a file, from one up to but not including another. */
export interface Stretch {
  start: bigint;
  end: bigint;
}

/**
 * What stretches of two lists have in common, with the two it lies in. Both lists are in order and without overlaps of
 * their own. In order; takes time in proportion to the lists and the result.
 */
export function* overlaps<A extends Stretch, B extends Stretch>(
  ours: Iterable<A>,
  theirs: readonly B[],
): Generator<Stretch & { a: A; b: B }> {
  let next = 0;
  for (const a of ours) {
    while (next < theirs.length && (theirs[next] as B).end <= a.start) next++;
    for (let i = next; i < theirs.length; i++) {
      const b = theirs[i] as B;
      if (b.start >= a.end) break;
      yield { start: greater(a.start, b.start), end: lesser(a.end, b.end), a, b };
    }
  }
}

/** What of the first list's stretches no one of the second's covers. Both are in order; the second's may overlap. */
export function* uncovered<A extends Stretch>(
  ours: Iterable<A>,
  theirs: readonly Stretch[],
): Generator<Stretch & { a: A }> {
  let next = 0;
  for (const a of ours) {
    while (next < theirs.length && (theirs[next] as Stretch).end <= a.start) next++;
    let at = a.start;
    for (let i = next; i < theirs.length && at < a.end; i++) {
      const other = theirs[i] as Stretch;
      if (other.start >= a.end) break;
      if (other.start > at) yield { start: at, end: other.start, a };
      at = greater(at, other.end);
    }
    if (at < a.end) yield { start: at, end: a.end, a };
  }
}

function lesser(a: bigint, b: bigint): bigint {
  return a < b ? a : b;
}

function greater(a: bigint, b: bigint): bigint {
  return a > b ? a : b;
}
