#!/usr/bin/env bash
# A one-host lab, one image, and that image as a container and as a virtual machine that reach each other by name. Leaves
# the lab running. What is there already is used: run it again whenever you like.
set -euo pipefail
cd "$(dirname "$0")/.."
polder=$PWD/bin/polder
unset POLDER_HOST

names=()
times=()

# step TEXT CMD… says what a command is for, runs it, and remembers how long it took.
step() {
	local text=$1 start=$EPOCHREALTIME
	shift
	printf '\n== %s\n' "$text"
	"$@"
	names+=("$text")
	times+=("$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f", b - a }')")
}

# shown ARG… runs polder, and says what was typed.
shown() {
	printf '$ bin/polder %s\n' "$*"
	"$polder" "$@"
}

# running VE waits until its systemd has come up.
running() {
	local state=
	for _ in $(seq 1200); do
		state=$("$polder" exec "$1" -- systemctl is-system-running 2>/dev/null) && break
		[ "$state" = degraded ] && break
		sleep 0.25
	done
	[ "$state" = running ] || { echo "demo: $1 is ${state:-not reachable}; see: polder exec $1 -- systemctl --failed" >&2; return 1; }
	echo "$1 is $state"
}

# reaches FROM TO waits until TO answers: systemd may be up before it has found the network.
reaches() {
	for _ in $(seq 60); do
		"$polder" exec "$1" -- ping -c 1 -W 1 "$2" >/dev/null 2>&1 && break
		sleep 0.25
	done
	shown exec "$1" -- ping -c 2 "$2"
}

build_image() {
	"$polder" image info debian/13 >/dev/null 2>&1 && { echo "debian/13 is there already"; return; }
	shown image build debian/13
}

launch() {
	local name=$1
	shift
	"$polder" info "$name" >/dev/null 2>&1 && { echo "$name is there already"; "$polder" start "$name" 2>/dev/null || true; return; }
	shown launch debian/13 "$name" "$@"
}

step 'start a one-host lab' shown lab up --hosts 1
step 'build the image' build_image
step 'launch c1, a container' launch c1
step 'launch v1, a virtual machine' launch v1 --model vm
step 'c1 is up' running c1
step 'v1 is up' running v1
step 'c1 reaches v1 by name' reaches c1 v1
step 'v1 reaches c1 by name' reaches v1 c1

printf '\n'
"$polder" list
printf '\nkernel of c1: %s\nkernel of v1: %s\n' "$("$polder" exec c1 -- uname -r)" "$("$polder" exec v1 -- uname -r)"

printf '\n%-32s %9s\n' 'what' 'seconds'
for i in "${!names[@]}"; do
	printf '%-32s %9s\n' "${names[$i]}" "${times[$i]}"
done
cat <<'TEXT'

The lab is still running. What to try next:
  bin/polder exec c1                          a shell in the container
  bin/polder console v1                       the virtual machine's console (leave with Ctrl-])
  bin/polder lab exec h1 -- pkill -9 polder   kill the daemon: both run on
  bin/polder list
  bin/polder lab down                         remove it all
TEXT
