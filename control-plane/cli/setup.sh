#!/usr/bin/env bash
# Brings the machine to where the project can run: Debian packages, npm packages, the built code. What is there is left
# alone, so that a second run takes no time. `--redis` also gets Redis, `--test` that and what only the tests use.
# A step that fails says which, why, and what to do; then the exit code is 1.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

CACHE=/var/cache/initless
GRPCURL=github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3

want_tests=
want_redis=
for argument in "$@"; do
  case $argument in
    --test) want_tests=yes want_redis=yes ;;
    --redis) want_redis=yes ;;
    *) echo "setup: unknown option $argument; there are --test and --redis" >&2; exit 1 ;;
  esac
done

say() { echo "setup: $*" >&2; }

# fail STEP WHY WHAT-TO-DO
fail() {
  printf 'setup: %s failed: %s\n       %s\n' "$1" "$2" "$3" >&2
  exit 1
}

# Runs a command quietly, bounded; when it fails, its last lines are shown. quietly SECONDS COMMAND...
quietly() {
  local seconds=$1 log status=0
  shift
  log=$(mktemp)
  timeout --kill-after=10 "$seconds" "$@" > "$log" 2>&1 < /dev/null || status=$?
  if [ "$status" -ne 0 ]; then
    tail -n 20 "$log" | sed 's/^/  | /' >&2
    if [ "$status" -eq 124 ]; then say "gave up after $seconds s"; fi
  fi
  rm -f "$log"
  return "$status"
}

check_machine() {
  [ "$(id -u)" -eq 0 ] || fail 'the check of the machine' 'not root' 'run it as root: engine, namespaces and CRIU need it'
  if ! command -v apt-get > /dev/null || ! command -v dpkg-query > /dev/null; then
    fail 'the check of the machine' 'this is not Debian' 'use a Debian machine (12 or newer)'
  fi
  command -v node > /dev/null || fail 'the check of the machine' 'node is not installed' 'install Node 20 or newer, with npm'
  command -v npm > /dev/null || fail 'the check of the machine' 'npm is not installed' 'install npm'
  local version
  version=$(node --version)
  version=${version#v}
  [ "${version%%.*}" -ge 20 ] || fail 'the check of the machine' "Node is $version" 'install Node 20 or newer'
}

# Names of the Debian packages that are missing. Engine and client are looked for as programs, since they may come from
# elsewhere than Debian: an engine is dockerd, not the client, which says nothing about an engine.
missing_packages() {
  local package
  for package in ca-certificates debian-archive-keyring gpg iproute2 mmdebstrap nftables procps util-linux; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null)" = installed ] || echo "$package"
  done
  if ! command -v dockerd > /dev/null; then echo docker.io; fi
  if [ -n "$want_redis" ] && ! command -v redis-server > /dev/null; then echo redis-server; fi
}

install_packages() {
  local missing
  missing=$(missing_packages)
  if [ -z "$missing" ]; then return; fi
  # One word for each package is what is wanted here.
  # shellcheck disable=SC2086
  set -- $missing
  say "installing $*"
  # Where no init system runs, a package that starts its service only fails; we start the engine ourselves.
  local policy=/usr/sbin/policy-rc.d
  if [ ! -d /run/systemd/system ] && [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
    # shellcheck disable=SC2064
    trap "rm -f '$policy'" EXIT
  fi
  # A source that is not ours may be out of reach: only what cannot be installed is an error.
  quietly 300 apt-get -o DPkg::Lock::Timeout=120 update || say 'apt-get update failed; going on with the lists that are there'
  # docker.io had the client in it up to Debian 12; later it is a package of its own.
  if ! command -v docker > /dev/null && [ -n "$(apt-cache --quiet=2 search --names-only '^docker-cli$')" ]; then set -- "$@" docker-cli; fi
  DEBIAN_FRONTEND=noninteractive quietly 900 apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$@" \
    || fail 'the installation of Debian packages' 'apt-get install failed, see above' "make this work, then try again: apt-get install $*"
  # Ours is started with a port and a folder of its own; the package's, with its port for all, was not asked for.
  case " $* " in
    *' redis-server '*) if [ -d /run/systemd/system ]; then systemctl disable --now redis-server > /dev/null 2>&1 || say 'redis-server could not be stopped'; fi ;;
  esac
}

# Whether what npm installed is what package-lock.json says; optional packages for other platforms may be missing.
packages_are_current() {
  [ -f node_modules/.package-lock.json ] || return 1
  node -e '
    const read = (path) => JSON.parse(require("fs").readFileSync(path, "utf8")).packages;
    const wanted = read("package-lock.json");
    const found = read("node_modules/.package-lock.json");
    const differs = ([path, entry]) =>
      path !== "" && (found[path] ? found[path].version !== entry.version : !entry.optional && !entry.devOptional);
    process.exit(Object.entries(wanted).some(differs) ? 1 : 0);
  '
}

install_modules() {
  if packages_are_current; then return; fi
  say 'installing npm packages'
  # Not `npm ci`: it wants the other platforms' optional packages too, which not every registry mirror carries.
  quietly 900 npm install --no-save --no-audit --no-fund \
    || fail 'npm install' 'see above' 'the machine needs a way to the npm registry; then try again'
}

build() {
  if [ -f dist/.built ] && [ -z "$(
    find package.json tsconfig.json proto control-plane agent gateway test \
      \( -name '*.ts' -o -name '*.json' -o -name '*.binpb' -o -type d \) -newer dist/.built -print -quit
  )" ]; then return; fi
  say 'building'
  # Dated before the build: what changes during it is built next time.
  mkdir -p dist
  touch dist/.building
  quietly 300 npm run --silent build || fail 'the build' 'see above' "correct it; 'npm run build' shows all of it"
  mv dist/.building dist/.built
}

# grpcurl is in no Debian release. Tests that use it are skipped where it cannot be had.
install_grpcurl() {
  if command -v grpcurl > /dev/null || [ -x "$CACHE/bin/grpcurl" ]; then return; fi
  if ! command -v go > /dev/null; then
    say 'note: neither grpcurl nor go is installed; the tests that call grpcurl are skipped'
    return
  fi
  say 'building grpcurl (for the tests)'
  mkdir -p "$CACHE/bin"
  GOBIN="$CACHE/bin" GOFLAGS=-mod=mod quietly 600 go install "$GRPCURL" \
    || say "note: grpcurl could not be built; the tests that call it are skipped"
}

check_machine
# One set-up at a time: demo and tests may be started together.
mkdir -p "$CACHE"
exec 9> "$CACHE/setup.lock"
flock --wait 1800 9 || fail 'the wait for another set-up' 'it took more than 30 minutes' "end it, then try again ('fuser $CACHE/setup.lock' names it)"
install_packages
install_modules
build
if [ -n "$want_tests" ]; then install_grpcurl; fi
