# NAME MACHINE-ID MAC…, one for each network device in the order of the PCI bus. In the environment: RANDOM_SEED, and KEY_KIND and
# PUBLIC_KIND of the SSH host keys.
set -eu
umask 022
name=$1 machine=$2
shift 2

# What is there is overwritten in place: it may be a mount.
put() {
	[ ! -e "$1" ] || printf '%s\n' "$2" > "$1"
}

printf '%s\n' "$name" > /proc/sys/kernel/hostname
put /etc/hostname "$name"
put /etc/machine-id "$machine"
[ -L /var/lib/dbus/machine-id ] || put /var/lib/dbus/machine-id "$machine"
put /var/lib/systemd/random-seed "$RANDOM_SEED"
[ ! -e /var/lib/systemd/credential.secret ] || rm -f /var/lib/systemd/credential.secret
[ ! -e /var/lib/cloud/instance ] || rm -f /var/lib/cloud/instance # so that cloud-init takes the system for a new one

put /etc/ssh/ssh_host_ed25519_key "$KEY_ED25519"
put /etc/ssh/ssh_host_ed25519_key.pub "$PUBLIC_ED25519"
put /etc/ssh/ssh_host_ecdsa_key "$KEY_ECDSA"
put /etc/ssh/ssh_host_ecdsa_key.pub "$PUBLIC_ECDSA"
if [ -e /etc/ssh/ssh_host_rsa_key ]; then
	rm -f /etc/ssh/ssh_host_rsa_key
	ssh-keygen -q -t rsa -N '' -C '' -f /etc/ssh/ssh_host_rsa_key
fi

# All addresses follow from a device's own: it loses them, and whoever configures it asks for new ones.
batch=
for device in /sys/bus/pci/devices/*/virtio*/net/*; do
	[ -e "$device" ] && [ $# -gt 0 ] || continue
	device=${device##*/}
	batch="${batch}link set $device down
link set $device address $1
link set $device up
"
	shift
done
ip -batch - <<END
$batch
END

if [ -s /run/sshd.pid ]; then
	read -r pid < /run/sshd.pid
	kill -HUP "$pid" || true
fi
