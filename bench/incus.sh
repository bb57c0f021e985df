#!/usr/bin/env bash
# Incus as the peer of a measurement: a daemon in namespaces of its own, with a btrfs pool and a bridge.
#
#   incus.sh install         from Debian 12 backports (or Debian 13), and the busybox of the idle containers
#   incus.sh up DIR          starts it, all state below DIR; returns when it is ready
#   incus.sh run DIR CMD…    runs CMD (usually: incus …) inside
#   incus.sh image DIR ROOT.tar ALIAS
#   incus.sh down DIR        stops it and removes DIR
set -euo pipefail

install_it() {
	command -v incusd >/dev/null 2>&1 || [ -x /usr/libexec/incus/incusd ] || {
		if ! apt-cache show incus >/dev/null 2>&1; then
			printf '%s\n' 'Types: deb' 'URIs: http://deb.debian.org/debian' 'Suites: bookworm-backports' 'Components: main' \
				'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg' >/etc/apt/sources.list.d/polder-bench.sources
			apt-get update -qq
		fi
		apt-get install -y -qq -t bookworm-backports --no-install-recommends incus ||
			apt-get install -y -qq --no-install-recommends incus
	}
	apt-get install -y -qq --no-install-recommends lxcfs dnsmasq-base btrfs-progs busybox-static
	grep -q ^root: /etc/subuid || echo root:1000000:1000000000 >>/etc/subuid
	grep -q ^root: /etc/subgid || echo root:1000000:1000000000 >>/etc/subgid
}

inside() { # DIR CMD…
	local pid
	pid=$(cat "$1/pid")
	shift
	nsenter -t "$pid" -m -n env INCUS_DIR="$dir/state" "$@"
}

up() {
	mkdir -p "$dir/state"
	cat >"$dir/inside.sh" <<-'EOF'
		set -e
		readlink /proc/self/ns/net >"$1/ns"
		mount -t sysfs sysfs /sys
		mount -t cgroup2 cgroup2 /sys/fs/cgroup
		ip link set lo up
		export INCUS_DIR="$1/state" INCUS_LXC_TEMPLATE_CONFIG=/usr/share/lxcfs PATH="$PATH:/usr/libexec/incus"
		exec incusd --group root --logfile "$1/incusd.log"
	EOF
	unshare -m -n --propagation private bash "$dir/inside.sh" "$dir" >"$dir/out.log" 2>&1 &
	echo $! >"$dir/pid"
	disown
	for _ in $(seq 300); do
		[ -S "$dir/state/unix.socket" ] && break
		sleep 0.1
	done
	PATH="$PATH:/usr/libexec/incus" inside "$dir" incusd waitready --timeout 60
	inside "$dir" incus storage create bt btrfs size=20GiB
	inside "$dir" incus network create ib0 ipv4.address=10.99.0.1/16 ipv4.nat=false ipv6.address=none
	inside "$dir" incus profile device add default root disk path=/ pool=bt
	inside "$dir" incus profile device add default eth0 nic network=ib0 name=eth0
}

import() { # ROOT.tar ALIAS
	local meta
	meta=$(mktemp -d)
	printf 'architecture: x86_64\ncreation_date: 1\nproperties:\n  description: %s\n' "$2" >"$meta/metadata.yaml"
	tar -C "$meta" -cf "$dir/meta.tar" metadata.yaml
	rm -r "$meta"
	inside "$dir" incus image import "$dir/meta.tar" "$1" --alias "$2"
}

# left prints the processes in the network namespace of DIR's Incus: the daemon, dnsmasq, a monitor for each container.
left() {
	local ns proc
	ns=$(cat "$dir/ns" 2>/dev/null) || return 0
	for proc in /proc/[0-9]*; do
		[ "$(readlink "$proc/ns/net")" != "$ns" ] || echo "${proc#/proc/}"
	done
}

down() {
	local pid
	if pid=$(cat "$dir/pid" 2>/dev/null) && left | grep -qx "$pid"; then
		# Those that don't run are but files.
		inside "$dir" incus list status=running -f csv -c n |
			xargs -r -n 20 nsenter -t "$pid" -m -n env INCUS_DIR="$dir/state" incus delete -f || true
		kill "$pid" 2>/dev/null || true
		for _ in $(seq 100); do
			kill -0 "$pid" 2>/dev/null || break
			sleep 0.1
		done
	fi
	# Also what a daemon that was killed has left. With the last of them go the mounts, the links and the loop device.
	for _ in $(seq 100); do
		pid=$(left)
		[ -n "$pid" ] || break
		# shellcheck disable=SC2086 # several
		kill -9 $pid 2>/dev/null || true
		sleep 0.1
	done
	rm -rf "$dir"
	# LXC's own, one for all; it goes when no other container is there.
	findmnt -n -t cgroup2 -o TARGET | while read -r cgroups; do
		if [ -d "$cgroups/lxc.pivot" ]; then rmdir "$cgroups/lxc.pivot" 2>/dev/null || true; fi
	done
}

verb=${1:?install|up|run|image|down}
shift
if [ "$verb" = install ]; then
	install_it
	exit
fi
dir=$(realpath -m "${1:?directory}")
shift
case $verb in
up) up ;;
run) inside "$dir" "$@" ;;
image) import "$@" ;;
down) down ;;
*) echo "incus.sh: unknown verb $verb" >&2 && exit 2 ;;
esac
