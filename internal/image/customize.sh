#!/bin/sh
# Runs on the host at the end of a build, with the new root as $1: settles services, and removes what must not be in an
# image that many are made of.
set -e
root=$1
cache=$2
inside() { chroot "$root" "$@"; }

inside systemctl -q enable systemd-networkd.service systemd-resolved.service polder-ssh-keys.service qemu-guest-agent.service
# What a virtual environment has no use for, or gets when it is first used. The ssh generator would listen on vsock too.
inside systemctl -q mask modprobe@drm.service modprobe@efi_pstore.service modprobe@configfs.service modprobe@fuse.service modprobe@dm_mod.service \
	modprobe@loop.service sys-kernel-config.mount sys-fs-fuse-connections.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
	sshd-keygen.service
mkdir -p "$root"/etc/systemd/system-generators
for generator in gpt-auto ssh tpm2 hibernate-resume; do
	ln -sf /dev/null "$root/etc/systemd/system-generators/systemd-$generator-generator"
done
# Scrubs LVM snapshots only.
inside systemctl -q disable e2scrub_reap.service e2scrub_all.timer 2>/dev/null || true
# The first boot has nothing to rebuild. Debian 12 has no such program, and nothing that would ask.
[ ! -e "$root/usr/lib/systemd/systemd-update-done" ] || inside /usr/lib/systemd/systemd-update-done

for deb in "$root"/var/cache/apt/archives/*.deb; do
	name=${deb##*/}
	[ -e "$cache/$name" ] || { cp "$deb" "$cache/.$$.$name" && mv "$cache/.$$.$name" "$cache/$name"; }
done

rm -f "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
rm -f "$root"/etc/ssh/ssh_host_* "$root"/etc/hostname "$root"/var/lib/systemd/random-seed "$root"/var/lib/dbus/machine-id
rm -f "$root"/etc/.resolv.conf.systemd-resolved.bak "$root"/etc/resolv.conf "$root"/etc/.pwd.lock "$root"/var/lib/systemd/credential.secret
ln -s ../run/systemd/resolve/stub-resolv.conf "$root"/etc/resolv.conf
: > "$root"/etc/machine-id
rm -f "$root"/vmlinuz.old "$root"/initrd.img.old "$root"/boot/vmlinuz.old "$root"/boot/initrd.img.old
rm -rf "$root"/var/cache/apt/*.bin "$root"/var/cache/ldconfig/aux-cache "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old
find "$root"/var/log "$root"/tmp "$root"/var/tmp "$root"/run -xdev -mindepth 1 ! -type d -delete
find "$root"/etc -xdev -name '*-' -type f -path '*/etc/[a-z]*-' -maxdepth 1 -delete
