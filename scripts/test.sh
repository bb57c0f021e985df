#!/usr/bin/env bash
# Every test: the unit tests, the integration tests (in a lab host of their own) and the scenarios (bin/polder on a lab, as a
# user would). Called by "make test" after the build. The last line is "N passed, N failed".
#
#   scripts/test.sh [unit] [integration] [scenario]     default: all three
set -euo pipefail
cd "$(dirname "$0")/.."
polder=$PWD/bin/polder
tool=(go tool -modfile="$PWD/tools/go.mod")
results=$(mktemp)
export POLDER_LAB=/var/lib/polder-check XDG_CONFIG_HOME
XDG_CONFIG_HOME=$(mktemp -d)
unset POLDER_HOST

finish() {
	[ ! -e "$POLDER_LAB" ] || "$polder" lab down >/dev/null 2>&1
	rm -rf "$results" "$XDG_CONFIG_HOME"
}

# check NAME CMD… makes a test of a command that must succeed and print nothing on standard output.
check() {
	local name=$1 text
	shift
	printf '{"Action":"run","Package":"polder","Test":"%s"}\n' "$name"
	if text=$("$@" 2>"$results") && [ -z "$text" ]; then
		printf '{"Action":"pass","Package":"polder","Test":"%s"}\n' "$name"
	else
		text=$({ printf '%s\n' "$text"; cat "$results"; } | sed 's/[\\"]/\\&/g; s/\t/\\t/g' | sed ':a; N; $!ba; s/\n/\\n/g')
		printf '{"Action":"output","Package":"polder","Test":"%s","Output":"%s\\n"}\n' "$name" "$text"
		printf '{"Action":"fail","Package":"polder","Test":"%s"}\n' "$name"
	fi
}

unit() {
	local dirs=(api client cmd internal test)
	check vet go vet -tags integration,scenario ./...
	check gofumpt "${tool[@]}" gofumpt -l "${dirs[@]}"
	go test -json -timeout 5m ./... || true
}

# integration runs the integration tests of every package, as root in a lab host whose TMPDIR is on its btrfs pool.
integration() {
	local dir
	check lab_down "$polder" lab down
	check lab_up "$polder" lab up --no-daemon
	for dir in $(find internal -name '*_integration_test.go' -printf '%h\n' | sort -u); do
		in_host "$dir"
	done
	check lab_down_again "$polder" lab down
}

in_host() {
	local dir=$1 package=polder/$1 name=${1//\//-} tests
	local shared=$POLDER_LAB/shared/$name
	mkdir -p "$shared"
	# With no test to run, this only shows why it does not compile.
	go test -c -tags integration -o "$shared/run.test" "./$dir" >/dev/null 2>&1 || { go test -json -tags integration -run '^$' "./$dir" || true; return; }
	[ ! -d "$dir/testdata" ] || cp -r "$dir/testdata" "$shared/"
	tests=$(grep -hoE '^func Test[A-Z0-9][A-Za-z0-9_]*' "$dir"/*_integration_test.go | sed 's/func //; /^TestMain$/d' | paste -sd'|')
	# shellcheck disable=SC2016 # the host's shell expands it
	go tool test2json -t -p "$package" "$polder" lab exec h1 -- sh -c '
		export TMPDIR=/var/lib/polder/pools/default/tmp
		mkdir -p "$TMPDIR" && cd "/shared/$1" && exec ./run.test -test.v=test2json -test.timeout=10m -test.run "^($2)\$"' \
		sh "$name" "$tests" </dev/null || true
	rm -rf "$shared"
}

scenario() {
	go test -json -tags scenario -count=1 -timeout 30m ./test || true
}

# A test that was skipped, or did not get to its end, failed. So did a package that fails without a failing test (it does not
# compile, or leaves something behind).
summary() {
	awk '
		function field(name) { return match($0, "\"" name "\":\"[^\"]*\"") ? substr($0, RSTART + length(name) + 4, RLENGTH - length(name) - 5) : "" }
		{ action = field("Action"); package = field("Package"); test = field("Test") }
		action == "fail" && test == "" { broken[package] = 1 }
		test != "" && action ~ /^(run|pass|fail|skip)$/ { state[package, test] = action; of[package, test] = package }
		END {
			for (t in state) {
				if (state[t] == "pass") { passed++; continue }
				failed++
				blamed[of[t]] = 1
			}
			for (p in broken) if (!(p in blamed)) failed++
			printf "%d passed, %d failed\n", passed, failed
			exit failed > 0 || passed == 0
		}' "$results"
}

case ${1:-} in
--events) # what gotestsum runs: JSON on standard output, everything else on standard error
	shift
	trap finish EXIT
	for suite; do "$suite"; done
	;;
*)
	trap 'rm -rf "$results" "$XDG_CONFIG_HOME"' EXIT
	[ $# -gt 0 ] || set -- unit integration scenario
	[ "$(id -u)" = 0 ] || { echo 'make test: it takes root' >&2; exit 1; }
	"${tool[@]}" gotestsum --format pkgname --jsonfile "$results" --raw-command -- "$0" --events "$@" || true
	summary
	;;
esac
