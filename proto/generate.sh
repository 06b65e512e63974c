#!/usr/bin/env bash
# Generates proto/gen from proto/initless: TypeScript by ts-proto, and the descriptor set that the servers' reflection
# answers from and that the next change is checked against for breakage. The messages of CRIU's images (proto/criu) are
# TypeScript only, made with other options, after the first run, which empties proto/gen.
# `--check` only says whether proto/gen is fresh.
set -euo pipefail
cd "$(dirname "$0")/.."
buf=node_modules/.bin/buf
generate() {
  "$buf" generate --output "$1"
  "$buf" generate --template buf.gen.criu.yaml --output "$1"
  "$buf" build --exclude-path proto/criu -o "$1/proto/gen/descriptors.binpb"
}
if [ "${1:-}" = --check ]; then
  fresh=$(mktemp -d)
  trap 'rm -rf "$fresh"' EXIT
  generate "$fresh"
  diff -r "$fresh/proto/gen" proto/gen || { echo "proto/gen is stale: run 'npm run generate' and commit what it writes" >&2; exit 1; }
  exit 0
fi
generate .
