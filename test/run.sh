#!/usr/bin/env bash
# `npm test`: set-up, then every check and test. `--full` (`npm run test:full`) adds what takes hours.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1-} in
  '') full= ;;
  --full) full=yes; export INITLESS_PROPERTY_RUNS=100000 ;;
  *) echo "usage: test/run.sh [--full]" >&2; exit 1 ;;
esac

bash control-plane/cli/setup.sh --test

step() { printf '\n== %s\n' "$*"; }

step 'generated files are fresh'
bash proto/generate.sh --check

step 'the contract: style, and nothing broken since the last commit'
node_modules/.bin/buf lint
last=$(mktemp --suffix=.binpb)
trap 'rm -f "$last"' EXIT
if git rev-parse --is-inside-work-tree > /dev/null 2>&1 && git show HEAD:proto/gen/descriptors.binpb > "$last" 2> /dev/null; then
  node_modules/.bin/buf breaking --against "$last"
else
  echo 'no earlier descriptor set in git: nothing to compare with'
fi

step 'format, lint and types'
node_modules/.bin/biome check .
node_modules/.bin/tsc -p tsconfig.json --noEmit --incremental false

step 'unit and contract tests'
node_modules/.bin/vitest run --project fast

step 'the whole system on this machine'
node_modules/.bin/vitest run --project e2e

if [ -n "$full" ]; then
  step 'soaks and density'
  node_modules/.bin/vitest run --project full
fi
