#!/usr/bin/env bash
# Incus as the peer of a measurement: a daemon in namespaces of its own, with a btrfs pool and a bridge.
#
#   incus.sh install         from Debian 12 backports (or Debian 13)
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
	apt-get install -y -qq --no-install-recommends lxcfs dnsmasq-base btrfs-progs
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
		mount -t sysfs sysfs /sys
		mount -t cgroup2 cgroup2 /sys/fs/cgroup
		ip link set lo up
		export INCUS_DIR="$1/state" INCUS_LXC_TEMPLATE_CONFIG=/usr/share/lxcfs PATH="$PATH:/usr/libexec/incus"
		exec incusd --group root --logfile "$1/incusd.log"
	EOF
	unshare -m -n --propagation private bash "$dir/inside.sh" "$dir" >"$dir/out.log" 2>&1 &
	echo $! >"$dir/pid"
	disown
	for _ in $(seq 100); do
		[ -S "$dir/state/unix.socket" ] && break
		sleep 0.1
	done
	PATH="$PATH:/usr/libexec/incus" inside "$dir" incusd waitready --timeout 60
	inside "$dir" incus storage create bt btrfs size=12GiB
	inside "$dir" incus network create ib0 ipv4.address=10.99.0.1/24 ipv4.nat=false ipv6.address=none
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

down() {
	[ -f "$dir/pid" ] || { rm -rf "$dir"; return; }
	local pid
	pid=$(cat "$dir/pid")
	if kill -0 "$pid" 2>/dev/null; then
		inside "$dir" incus list -f csv -c n | xargs -r -n 20 nsenter -t "$pid" -m -n env INCUS_DIR="$dir/state" incus delete -f || true
		inside "$dir" incus network list -f csv | grep -q ib0 && {
			inside "$dir" incus image list -f csv -c f | xargs -r nsenter -t "$pid" -m -n env INCUS_DIR="$dir/state" incus image delete || true
			inside "$dir" incus profile device remove default eth0 || true
			inside "$dir" incus profile device remove default root || true
			inside "$dir" incus network delete ib0 || true # ends its dnsmasq
			inside "$dir" incus storage delete bt || true
		}
		kill "$pid"
		while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
	fi
	rm -rf "$dir"
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
