import { onHost } from './support.js';

/** What of instances is on the host, whoever knows of it. */
export interface OnHost {
  /** Containers that runc knows, and instances that have a process; runc knows nothing of those that were restored. */
  containers: string[];
  /** Instances that have a folder. */
  folders: string[];
  /** Instances that have a mount. */
  mounts: string[];
  /** Instances that have a cgroup, in any hierarchy. */
  cgroups: string[];
  /** Sandboxes that have a namespace or a link and are not noted as spare: those in use, and those that leaked. */
  namespaces: string[];
  /** Processes of CRIU and runc. */
  tools: string[];
}

const INSTANCES = '/var/lib/docker/initless/instances';

/** Looks, inside the host, at what there is of instances. */
export async function onTheHost(): Promise<OnHost> {
  const text = await onHost(`
    section() { echo "== $1"; }
    section containers; runc --root /run/initless/runc list --quiet
    for file in /sys/fs/cgroup/initless/*/cgroup.procs /sys/fs/cgroup/pids/initless/*/cgroup.procs; do
      if [ -n "$(cat $file 2> /dev/null)" ]; then basename $(dirname $file); fi
    done
    section folders; ls ${INSTANCES}
    section mounts; cut -d ' ' -f 2 /proc/mounts | sed -n 's#^${INSTANCES}/\\([^/]*\\).*#\\1#p'
    section cgroups; find /sys/fs/cgroup -mindepth 2 -maxdepth 3 -type d -path '*/initless/*' | sed 's#.*/##'
    section namespaces
    { ip netns list | cut -d ' ' -f 1; ls /sys/class/net | grep '^il[0-9]' || true; } | sort -u \\
      | while read -r name; do [ -e /run/initless/sandboxes/$name ] || echo "$name"; done
    section tools; for name in criu runc; do pidof "$name" || true; done
  `);
  const found: Record<string, string[]> = {};
  let section: string[] = [];
  for (const line of text.split('\n').map((each) => each.trim())) {
    if (line.startsWith('== ')) {
      section = [];
      found[line.slice(3)] = section;
    } else if (line !== '' && !section.includes(line)) section.push(line);
  }
  for (const names of Object.values(found)) names.sort();
  return found as unknown as OnHost;
}

/** What is on a host with exactly these instances running or parked. */
export function exactly(ids: readonly string[]): Omit<OnHost, 'namespaces'> {
  const names = [...ids].sort();
  return { containers: names, folders: names, mounts: names, cgroups: names, tools: [] };
}

/** Whether the kernel says that an instance is frozen. */
export async function isFrozen(instance: string): Promise<boolean> {
  const text = await onHost(`
    for root in /sys/fs/cgroup/unified /sys/fs/cgroup; do
      file=$root/initless/${instance}/cgroup.events
      if [ -e "$file" ]; then grep '^frozen' "$file"; exit; fi
    done
  `);
  return text.trim() === 'frozen 1';
}
