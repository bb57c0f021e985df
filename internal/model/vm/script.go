package vm

// execScript runs in the VE, by its /bin/sh, for one Exec. The agent can neither stream a command's output nor feed its
// input, but it can read and write files; so the script turns the streams into files in its directory $d, on a tmpfs:
//
//	out.0, out.1, …   standard output in pieces of at most 64 × 64 KiB, readable while they grow; so is standard error in
//	                  err.0, …; truncating a piece says that it has been read; two unread pieces make the command wait
//	in.1, in.2, …     standard input, in pieces that the host writes; a line with the number in the fifo control says that
//	                  the piece is whole, "end" that none follows; a piece that has been consumed is removed
//	journal           "out 1": piece 0 is whole and 1 has begun; "out end"; "out failed"; "exit 0": the command has ended
//	pid, tty          the command's process group, its terminal
//
// What it makes itself is nobody else's business; the command begins with the umask that a container's has.
//
// It needs what a POSIX shell has, setsid, setpriv for another user, and script for a terminal (Debian: util-linux and
// bsdutils, both essential).
const execScript = `d=$1 user=$2 cwd=$3 line=$4 input=$5; shift 5
umask 077
mkdir -p "${d%/*}" && mkdir "$d" && mkfifo -m 666 "$d/in" "$d/out" "$d/err" "$d/control" || exit 125
say() { echo "$*" >>"$d/journal"; }
as=
if [ -n "$user" ]; then
  u=${user%%:*} g= groups=--clear-groups
  case $user in *:*) g=${user#*:};; esac
  entry=$(getent passwd "$u")
  case $u in *[!0-9]*) u=$(echo "$entry" | cut -d: -f3); [ -n "$u" ] || { echo "user $user: not known" >&2; exit 125; };; esac
  if [ -z "$g" ]; then g=$(echo "$entry" | cut -d: -f4); [ -n "$entry" ] && groups=--init-groups; fi
  case $g in *[!0-9]*) g=$(getent group "$g" | cut -d: -f3); [ -n "$g" ] || { echo "group of user $user: not known" >&2; exit 125; };; esac
  [ -n "$HOME" ] || HOME=$(echo "$entry" | cut -d: -f6)
  as="setpriv --reuid=$u --regid=${g:-0} $groups --"
fi
export HOME="${HOME:-/root}"
: >"$d/journal"
pump() {
  i=0
  while :; do
    dd bs=65536 count=64 of="$d/$1.$i" 2>/dev/null || { say "$1 failed"; return; }
    [ -s "$d/$1.$i" ] || break
    i=$((i+1)); say "$1 $i"
    [ $i -gt 1 ] || continue
    while [ -s "$d/$1.$((i-2))" ]; do sleep 0.02; done
    rm -f "$d/$1.$((i-2))"
  done
  say "$1 end"
}
feed() {
  while read -r n && [ "$n" != end ]; do
    cat "$d/in.$n" || return
    rm -f "$d/in.$n"
  done
}
pump out <"$d/out" & pumps=$!
if [ "$input" = 1 ]; then
  feed <"$d/control" >"$d/in" 2>/dev/null & pids=$!
else
  : >"$d/in" & pids=$!
fi
if [ -n "$line" ]; then
  SHELL=/bin/sh setsid script -qefc "umask 022; echo \$\$ >$d/pid; tty >$d/tty; $line $as $*" /dev/null <"$d/in" >"$d/out" 2>&1 & main=$!
else
  pump err <"$d/err" & pumps="$pumps $!"
  setsid sh -c 'umask 022; echo $$ >"$1/pid"; cd -- "$2" || exit 126; shift 2; exec "$@"' sh "$d" "${cwd:-/}" $as "$@" <"$d/in" >"$d/out" 2>"$d/err" & main=$!
fi
echo $main $pids $pumps >"$d/pids"
wait $main
say "exit $?"
wait $pumps
`

// killScript ends the command of $1 with the signal $2; the group's id is there as soon as the command runs.
const killScript = `for i in 1 2 3 4 5 6 7 8 9 10; do [ -s "$1/pid" ] && break; sleep 0.1; done
kill -s "$2" -- -"$(cat "$1/pid")" 2>/dev/null || kill -s "$2" "$(cat "$1/pid")"`

// cleanScript ends what is left of $1 and removes it.
const cleanScript = `kill -KILL -- $(cat "$1/pids") 2>/dev/null; rm -rf "$1"`

// resizeScript sets the size of the terminal of $1 to $2 rows and $3 columns, once it has one.
const resizeScript = `for i in 1 2 3 4 5 6 7 8 9 10; do [ -s "$1/tty" ] && break; sleep 0.1; done
stty -F "$(cat "$1/tty")" rows "$2" cols "$3"`
