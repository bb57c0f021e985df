#!/usr/bin/env bash
# Three hosts, one image, that image as a container and as a virtual machine, both serving HTTP: each is moved cold, warm and
# live while a third VE asks it for pages. Leaves the lab running. What is there already is used: run it again whenever you like.
set -euo pipefail
cd "$(dirname "$0")/.."
polder=$PWD/bin/polder
unset POLDER_HOST
work=$(mktemp -d)
loads=()

finish() {
	[ ${#loads[@]} = 0 ] || kill "${loads[@]}" 2>/dev/null || true
	rm -rf "$work"
}
trap finish EXIT

names=()
times=()
rows=()

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

build_image() {
	"$polder" image info web >/dev/null 2>&1 && { echo "web is there already"; return; }
	shown image build debian/13 --alias web --package nginx-light --package curl
}

launch() {
	local name=$1
	shift
	"$polder" info "$name" >/dev/null 2>&1 && { echo "$name is there already"; "$polder" start "$name" 2>/dev/null || true; return; }
	shown launch web "$name" "$@"
}

# serves VE waits until another VE gets its page.
serves() {
	for _ in $(seq 1200); do
		"$polder" exec client -- curl -sf -m 2 -o /dev/null "http://$1/" 2>/dev/null && { echo "$1 serves its page to client"; return; }
		sleep 0.25
	done
	echo "demo: $1 does not serve; see: polder exec $1 -- systemctl status nginx" >&2
	return 1
}

# field NAME reads a field of the JSON object on standard input.
field() { sed -n "s/.*\"$1\": *\"\{0,1\}\([^\",}]*\)\"\{0,1\}.*/\1/p" | head -n 1; }

# move VE MODE moves it to the next host under load, and notes what was seen.
move() {
	local name=$1 mode=$2 from to load log=$work/log
	from=$("$polder" info "$name" -o json | field host)
	[ "$from" = h1 ] && to=h2 || to=h1
	"$polder" exec "$name" -- sh -c 'echo kept > /run/mark' # in memory only
	: >"$log"
	# One connection a page; each is waited for as long as TCP takes to find its way again.
	# shellcheck disable=SC2016 # the VE's shell expands it
	"$polder" exec client -- sh -c 'while :; do curl -s -m 60 -o /dev/null -w "%{http_code}\n" "http://$0/"; done' "$name" >"$log" 2>/dev/null &
	load=$!
	loads=("$load")
	printf '$ bin/polder move %s --to %s --mode %s\n' "$name" "$to" "$mode"
	"$polder" move "$name" --to "$to" --mode "$mode" -o json >"$work/result"
	serves "$name" >/dev/null
	kill "$load" 2>/dev/null || true
	wait "$load" 2>/dev/null || true
	loads=()
	local outage state ok failed
	outage=$(field outage_ms <"$work/result")
	state=$("$polder" exec "$name" -- cat /run/mark 2>/dev/null || echo lost)
	ok=$(grep -c '^200$' "$log" || true)
	failed=$(grep -vc '^200$' "$log" || true)
	rows+=("$(printf '%-6s %-10s %-5s %s → %s %9s ms %10s ms %9s %8s   %s' "$name" "$3" "$mode" "$from" "$to" "$outage" "$(field total_ms <"$work/result")" "$ok" "$failed" "$state")")
	echo "outage $outage ms, $ok pages, $failed not answered, memory $state"
}

step 'start a lab of three hosts' shown lab up --hosts 3
step 'build the image' build_image
step 'launch client, a container, on h3' launch client --host h3
step 'launch web, a container, on h1' launch web --host h1
step 'launch webvm, a virtual machine, on h1' launch webvm --host h1 --model vm
step 'web serves' serves web
step 'webvm serves' serves webvm
printf '\n'
"$polder" host list
printf '\n'
"$polder" list
for mode in cold warm live; do
	step "move web $mode" move web "$mode" container
	step "move webvm $mode" move webvm "$mode" vm
done

printf '\n%-32s %9s\n' 'what' 'seconds'
for i in "${!names[@]}"; do
	printf '%-32s %9s\n' "${names[$i]}" "${times[$i]}"
done
printf '\nThe three kinds of migration. The outage was seen from h3 by a probe each 5 ms; pages are what client got meanwhile.\n\n'
printf '%-6s %-10s %-5s %-7s %12s %13s %9s %8s   %s\n' VE model mode moved outage total pages failed memory
printf '%s\n' "${rows[@]}"
cat <<'TEXT'

The lab is still running. What to try next:
  bin/polder move web --to h3 --plan          what a move would do
  bin/polder move --all-from h1               empty a host
  bin/polder lab kill h1                      a host dies; lab start h1 brings it back
  bin/polder exec web                         a shell in the container
  bin/polder console webvm                    the virtual machine's console (leave with Ctrl-])
  bin/polder lab down                         remove it all
TEXT
