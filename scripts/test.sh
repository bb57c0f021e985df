#!/usr/bin/env bash
# Every test: the unit tests, the integration tests (in a lab host of their own) and the scenarios (bin/polder on a lab, as a
# user would). Called by "make test" after the build. The last line is "N passed, N failed".
#
# A test that fails runs once more by itself, unless more than five do. One that passes then counts as passed, and is named
# before the last line: it, or what it tests, has a race to be found.
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

# check NAME makes a test of a function that must succeed and print nothing on standard output.
check() {
	local name=$1 text
	printf '{"Action":"run","Package":"polder","Test":"%s"}\n' "$name"
	if text=$("$name" 2>"$results") && [ -z "$text" ]; then
		printf '{"Action":"pass","Package":"polder","Test":"%s"}\n' "$name"
	else
		text=$({ printf '%s\n' "$text"; cat "$results"; } | sed 's/[\\"]/\\&/g; s/\t/\\t/g' | sed ':a; N; $!ba; s/\n/\\n/g')
		printf '{"Action":"output","Package":"polder","Test":"%s","Output":"%s\\n"}\n' "$name" "$text"
		printf '{"Action":"fail","Package":"polder","Test":"%s"}\n' "$name"
		status=1
	fi
}

vet() { go vet -tags integration,scenario ./...; }
gofumpt() { "${tool[@]}" gofumpt -l api client cmd internal test bench; }
lab_down() { "$polder" lab down; }
lab_up() { "$polder" lab up --no-daemon; }

unit() {
	check vet
	check gofumpt
	go test -json -timeout 5m ./... || status=1
}

# integration runs the integration tests of every package, as root in a lab host whose TMPDIR is on its btrfs pool.
integration() {
	local dir
	check lab_down
	check lab_up
	for dir in $(find internal -name '*_integration_test.go' -printf '%h\n' | sort -u); do
		in_host "$dir"
	done
	check lab_down
}

# in_host DIR [PATTERN]
in_host() {
	local dir=$1 package=polder/$1+integration name=${1//\//-} tests
	local shared=$POLDER_LAB/shared/$name
	mkdir -p "$shared"
	# With no test to run, this only shows why it does not compile.
	go test -c -tags integration -o "$shared/run.test" "./$dir" >/dev/null 2>&1 || { go test -json -tags integration -run '^$' "./$dir" || status=1; return; }
	[ ! -d "$dir/testdata" ] || cp -r "$dir/testdata" "$shared/"
	tests=${2:-}
	[ -n "$tests" ] || tests=$(grep -hoE '^func Test[A-Z0-9][A-Za-z0-9_]*' "$dir"/*_integration_test.go | sed 's/func //; /^TestMain$/d' | sed '1s/^/^(/; $s/$/)$/' | paste -sd'|')
	# shellcheck disable=SC2016 # the host's shell expands it
	go tool test2json -t -p "$package" "$polder" lab exec h1 -- sh -c '
		export TMPDIR=/var/lib/polder/pools/default/tmp
		mkdir -p "$TMPDIR" && cd "/shared/$1" && exec ./run.test -test.v=test2json -test.timeout=10m -test.run "$2"' \
		sh "$name" "$tests" </dev/null || status=1
	rm -rf "$shared"
}

scenario() {
	go test -json -tags scenario -count=1 -timeout 30m ./test || status=1
}

# again PACKAGE -test.run=PATTERN runs one test once more.
again() {
	set -- "$1" "${2#-test.run=}"
	local name=${2#^}
	case $1 in
	polder) check "${name%$}" ;;
	polder/test) go test -json -tags scenario -count=1 -timeout 30m -run "$2" ./test || status=1 ;;
	*+integration)
		lab_up >/dev/null 2>&1
		in_host "$(sed 's,^polder/,,; s,+integration$,,' <<<"$1")" "$2"
		lab_down >/dev/null 2>&1
		;;
	*) go test -json -timeout 5m -run "$2" "$1" || status=1 ;;
	esac
}

# A test that was skipped, or did not get to its end, failed. So did a package that fails without a failing test (it does not
# compile, or leaves something behind).
summary() {
	awk '
		function field(name) { return match($0, "\"" name "\":\"[^\"]*\"") ? substr($0, RSTART + length(name) + 4, RLENGTH - length(name) - 5) : "" }
		{ action = field("Action"); package = field("Package"); test = field("Test") }
		action == "fail" && test == "" { broken[package] = 1 }
		action == "fail" && test != "" { blamed[package] = 1; once[package " " test] = 1 }
		test != "" && action ~ /^(run|pass|fail|skip)$/ { state[package " " test] = action; of[package " " test] = package }
		END {
			for (t in state) {
				if (state[t] == "pass") {
					passed++
					if (t in once) print "passed only when run again: " t
					continue
				}
				failed++
				blamed[of[t]] = 1
				print "failed: " t " (" state[t] ")"
			}
			for (p in broken) if (!(p in blamed)) { failed++; print "failed: " p }
			printf "%d passed, %d failed\n", passed, failed
			exit failed > 0 || passed == 0
		}' "$results"
}

case ${1:-} in
--events) # what gotestsum runs: JSON on standard output, everything else on standard error
	shift
	trap finish EXIT
	status=0
	case ${*: -2:1} in
	-test.run=*) again "${*: -1}" "${*: -2:1}" ;; # gotestsum has added which
	*) for suite; do "$suite"; done ;;
	esac
	exit "$status"
	;;
*)
	trap 'rm -rf "$results" "$XDG_CONFIG_HOME"' EXIT
	[ $# -gt 0 ] || set -- unit integration scenario
	[ "$(id -u)" = 0 ] || { echo 'make test: it takes root' >&2; exit 1; }
	"${tool[@]}" gotestsum --format pkgname --jsonfile "$results" --rerun-fails=1 --rerun-fails-max-failures=5 --rerun-fails-run-root-test \
		--raw-command -- "$0" --events "$@" || true
	summary
	;;
esac
