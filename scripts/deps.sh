#!/usr/bin/env bash
# Installs what this machine lacks for building and testing Polder: Debian packages, and Go. Does nothing, and asks no
# mirror, when all is there. Lab hosts bring their own QEMU, crun and the rest.
set -euo pipefail
cd "$(dirname "$0")/.."

# A program that must be there, and the package that has it.
declare -A tools=(
	[git]=git [curl]=curl [mmdebstrap]=mmdebstrap [mkfs.btrfs]=btrfs-progs [ip]=iproute2 [nft]=nftables [xz]=xz-utils
	[nsenter]=util-linux [setpriv]=util-linux [unshare]=util-linux [losetup]=mount [pgrep]=procps [zstd]=zstd [modprobe]=kmod
)
declare -A files=(
	[/etc/ssl/certs/ca-certificates.crt]=ca-certificates
	[/usr/share/keyrings/debian-archive-keyring.gpg]=debian-archive-keyring
)

export PATH=$PATH:/usr/sbin:/sbin DEBIAN_FRONTEND=noninteractive

need_root() {
	[ "$(id -u)" = 0 ] || { echo "deps: $1: run this as root, or install it yourself" >&2; exit 1; }
}

# The lists of a fresh machine may be missing or too old to find anything by.
apt_install() {
	apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 && return
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 || {
		echo "deps: apt-get install $*: failed; see what it says by hand" >&2
		return 1
	}
}

packages() {
	local missing=() name
	for name in "${!tools[@]}"; do
		command -v "$name" >/dev/null || missing+=("${tools[$name]}")
	done
	for name in "${!files[@]}"; do
		[ -e "$name" ] || missing+=("${files[$name]}")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	need_root "missing: ${missing[*]}"
	echo "deps: installing ${missing[*]}"
	apt_install "${missing[@]}"
}

# at_least HAVE WANT compares versions such as 1.26.0.
at_least() {
	[ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}

go_version() {
	# An older Go would fetch a newer one now: ask the one that is installed.
	command -v go >/dev/null || return 0
	GOTOOLCHAIN=local go env GOVERSION 2>/dev/null | sed 's/^go//; s/[-+ ].*//'
}

# Go 1.21 and later fetch the version that go.mod asks for by themselves (GOTOOLCHAIN=auto, see the Makefile).
golang() {
	local want=1.21 have
	[ "${GOTOOLCHAIN:-auto}" != local ] || want=$(sed -n 's/^go //p' go.mod)
	have=$(go_version)
	[ -n "$have" ] && at_least "$have" "$want" && return
	need_root "Go ${have:-is not installed}, want $want or later"
	echo "deps: installing Go (found: ${have:-none})"
	golang_from_debian || golang_from_web
	hash -r
	have=$(go_version)
	[ -n "$have" ] && at_least "$have" "$want" && return
	echo "deps: Go ${have:-is missing}, want $want or later: see https://go.dev/doc/install" >&2
	exit 1
}

golang_from_debian() {
	[ "${GOTOOLCHAIN:-auto}" != local ] || return 1
	local codename suite=
	# shellcheck source=/dev/null
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	apt-get update -qq || return 1
	if ! candidate ""; then
		suite=$codename-backports
		if ! candidate "$suite"; then
			printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' "$(mirror)" "$suite" \
				/usr/share/keyrings/debian-archive-keyring.gpg >/etc/apt/sources.list.d/polder-backports.sources
			apt-get update -qq || return 1
		fi
		candidate "$suite" || return 1
	fi
	apt_install ${suite:+-t "$suite"} golang-go
}

# candidate SUITE says whether apt knows a golang-go that will do, in SUITE or at all.
candidate() {
	local version
	version=$(apt-cache ${1:+-t "$1"} policy golang-go 2>/dev/null | sed -n 's/^ *Candidate: *\(2:\)\?//p')
	case $version in '' | *none*) return 1 ;; esac
	at_least "${version%%[~+-]*}" 1.21
}

# mirror is where this machine gets Debian from.
mirror() {
	local found
	found=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
		grep -v '^#' | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 || true)
	echo "${found:-http://deb.debian.org/debian}"
}

golang_from_web() {
	local want arch file sum
	want=$(sed -n 's/^go //p' go.mod)
	arch=$(dpkg --print-architecture)
	file=go$want.linux-$arch.tar.gz
	curl -fsSL --retry 3 -o "/tmp/$file" "https://go.dev/dl/$file" || return 1
	sum=$(curl -fsSL 'https://go.dev/dl/?mode=json&include=all' | tr -d ' \n' | grep -o "\"filename\":\"$file\"[^}]*" |
		sed -n 's/.*"sha256":"\([0-9a-f]*\)".*/\1/p')
	echo "$sum  /tmp/$file" | sha256sum --check --quiet || { rm -f "/tmp/$file"; return 1; }
	rm -rf /usr/local/go
	tar -C /usr/local -xzf "/tmp/$file"
	rm -f "/tmp/$file"
}

packages
golang
