import { onHost } from '../e2e/support.js';

/** Memory of one instance, over all its processes and those of the daemon that fills it. MB (2^20 bytes). */
export interface InstanceMemory {
  /**
   * What only this instance holds: anonymous pages and shared memory by its share of them (Pss_Anon, Pss_Shmem). Not what
   * is private in a mapping of a file: a clean page of the page cache counts as private there, too, as long as only one
   * instance maps it, but the kernel keeps it once for all of them and can drop it.
   */
  own: number;
  /**
   * Its proportional share of all it maps (Pss), page cache and libraries too: the sum over instances counts each page
   * once, however many map it.
   */
  share: number;
}

/** Measures instances, running or parked, in the order given. Rejects when one has no process. */
export async function memoryOf(ids: readonly string[]): Promise<InstanceMemory[]> {
  const text = await onHost(
    `
    for id in ${ids.join(' ')}; do
      echo "== $id"
      for root in /sys/fs/cgroup/unified /sys/fs/cgroup; do
        if [ ! -e $root/initless/$id/cgroup.procs ]; then continue; fi
        for pid in $(cat $root/initless/$id/cgroup.procs); do cat /proc/$pid/smaps_rollup; done
        # A daemon may end meanwhile.
        for pid in $(cat $root/initless/$id.lazy/cgroup.procs 2> /dev/null); do
          cat /proc/$pid/smaps_rollup 2> /dev/null || true
        done
        break
      done
    done
    `,
    300_000,
  );
  const sections = text.split('== ').slice(1);
  return ids.map((id, index) => {
    const section = sections[index] ?? '';
    const sum = (field: string) =>
      [...section.matchAll(new RegExp(`^${field}:\\s+(\\d+) kB`, 'gm'))].reduce(
        (total, [, kb]) => total + Number(kb),
        0,
      );
    const share = sum('Pss') / 1024;
    if (share === 0) throw new Error(`${id} has no processes to be measured`);
    return { own: (sum('Pss_Anon') + sum('Pss_Shmem')) / 1024, share };
  });
}
