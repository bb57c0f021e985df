#!/usr/bin/env bash
# Measurements against peers, written into bench/RESULTS.md; see there. Arguments go to the program: scripts/bench.sh -h, scripts/bench.sh move -h, scripts/bench.sh clone -h
set -euo pipefail
cd "$(dirname "$0")/.."
[ "${1:-}" = move ] || bench/incus.sh install
program=$(mktemp -t polder-bench.XXXXXX)
trap 'rm -f "$program"' EXIT
CGO_ENABLED=0 go build -o "$program" ./bench # static: it also runs in the lab's host
case ${1:-} in
move | clone)
	what=$1
	shift
	"$program" "$what" -out bench/RESULTS.md "$@"
	;;
*) "$program" -out bench/RESULTS.md "$@" ;;
esac
