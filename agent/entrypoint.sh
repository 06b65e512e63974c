#!/bin/sh
# Makes the container fit for a Docker engine, then keeps the agent running.
#
# The reaper above it adopts orphans, instances' processes among them. The loop below starts the agent again when it
# dies, so that the host's engine and its instances outlive it. SIGTERM ends the agent, and with it the host.
#
# Its arguments, if any, are "agent" and the agent's flags: what settings.ts reads beside the environment.
set -u

if [ "${1-}" = agent ]; then shift; fi

log() { echo "host: $*" >&2; }

fail() {
  log "$*; is the container started as control-plane/cli/machine/host-spec.ts says?"
  exit 1
}

# Docker mounts /sys and the cgroup hierarchies read-only where a container is not --privileged. The container has a
# cgroup namespace of its own: what is mounted here shows, and changes, only what is below the container's cgroup.
open_cgroups() {
  mount -o remount,rw /sys || return 1
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    mount -o remount,bind,rw /sys/fs/cgroup && delegate_controllers
    return
  fi
  mount -o remount,rw /sys/fs/cgroup || return 1
  for hierarchy in /sys/fs/cgroup/*; do
    if [ -L "$hierarchy" ] || ! mountpoint -q "$hierarchy"; then continue; fi
    mount -o remount,bind,rw "$hierarchy" || return 1
  done
  # Beside version 1 the kernel has the version 2 hierarchy, which tells by inotify when a group has become empty.
  if ! mountpoint -q /sys/fs/cgroup/unified; then
    mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup/unified \
      || log 'the version 2 cgroup hierarchy cannot be mounted beside version 1'
  fi
}

# Version 2 gives controllers to the children of a group only while no process is in the group itself.
delegate_controllers() {
  mkdir -p /sys/fs/cgroup/init
  for pid in $(cat /sys/fs/cgroup/cgroup.procs); do
    # A process may end in between.
    echo "$pid" > /sys/fs/cgroup/init/cgroup.procs 2> /dev/null || :
  done
  for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control || log "cgroup controller $controller cannot be used in this host"
  done
}

open_cgroups || fail 'the cgroup hierarchies cannot be made writable'
mountpoint -q /run || fail '/run is not a tmpfs'
if [ ! -e /dev/net/tun ]; then
  mkdir -p /dev/net && mknod -m 666 /dev/net/tun c 10 200 || fail 'devices cannot be made'
fi

stopping=
agent=
nap=
on_term() {
  stopping=yes
  for pid in $agent $nap; do kill -TERM "$pid" 2> /dev/null; done
}
trap on_term TERM INT

# A wait is cut short by a signal, so it is repeated until the process is gone.
await() {
  while :; do
    wait "$1"
    status=$?
    kill -0 "$1" 2> /dev/null || return "$status"
  done
}

delay=0
while [ -z "$stopping" ]; do
  started=$(date +%s)
  node --enable-source-maps /opt/initless/dist/agent/main.js "$@" &
  agent=$!
  await "$agent"
  code=$?
  agent=
  if [ -n "$stopping" ]; then break; fi
  # At once after a long life, then after 1, 2, 4 and at most 5 s.
  if [ $(($(date +%s) - started)) -ge 30 ]; then delay=0; fi
  log "the agent ended with code $code; it is started again in $delay s"
  sleep "$delay" &
  nap=$!
  await "$nap"
  nap=
  delay=$((delay == 0 ? 1 : delay * 2 > 5 ? 5 : delay * 2))
done
# Where the kernel has no version 2 hierarchy, what is frozen outlives even SIGKILL, and holds the container's end up.
for file in /sys/fs/cgroup/freezer/initless/*/freezer.state; do
  if [ -e "$file" ]; then echo THAWED > "$file"; fi
done
exit 0
