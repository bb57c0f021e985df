#!/usr/bin/env bash
# Measurements against peers, written into bench/RESULTS.md; see there. Arguments go to the program: scripts/bench.sh -h
set -euo pipefail
cd "$(dirname "$0")/.."
bench/incus.sh install
program=$(mktemp -t polder-bench.XXXXXX)
trap 'rm -f "$program"' EXIT
CGO_ENABLED=0 go build -o "$program" ./bench # static: it also runs in the lab's host
"$program" -out bench/RESULTS.md "$@"
