package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"polder/api"
)

// The files of the guest that virsh moves: the base is in the directory that all hosts share, its own disk in each host.
const (
	virshBase    = "virsh-base.qcow2"
	virshDisk    = "/var/lib/bench.qcow2"
	virshName    = "bench"
	virshAddress = "10.99.0.50"
	virshMAC     = "52:54:00:99:00:50"
)

var virshWays = []struct {
	name  string
	flags []string
}{
	{"default", nil},
	{"auto-converge", []string{"--auto-converge"}},
	{"post-copy", []string{"--postcopy", "--postcopy-after-precopy"}},
}

// virsh is libvirt on the first two hosts, and a network of its own to the third.
type virsh struct {
	*moves
	host string // where the guest is
}

// newVirsh installs libvirt in the lab's hosts and starts it: without locks, logs and security labels, as fast as it gets.
func (m *moves) newVirsh(ctx context.Context) (*virsh, error) {
	v := &virsh{moves: m, host: "h1"}
	m.say("installing libvirt in h1 and h2")
	base := filepath.Join(m.lab(), "shared", virshBase)
	if _, err := os.Stat(base); errors.Is(err, os.ErrNotExist) {
		if _, err := m.cli(ctx, "image", "export", vmImage, base); err != nil {
			return nil, err
		}
		if err := os.Chmod(base, 0o644); err != nil {
			return nil, err
		}
	}
	for _, host := range []string{"h1", "h2", "h3"} {
		if _, err := m.at(ctx, host, "sh", "-ec", virshNetwork, "sh", host); err != nil {
			return nil, err
		}
		if host == "h3" {
			continue
		}
		if _, err := m.at(ctx, host, "sh", "-ec", virshInstall); err != nil {
			return nil, err
		}
	}
	domain := strings.NewReplacer("NAME", virshName, "MEMORY", fmt.Sprint(vmMemory), "DISK", virshDisk, "MAC", virshMAC).Replace(virshDomain)
	return v, os.WriteFile(filepath.Join(m.lab(), "shared/domain.xml"), []byte(domain), 0o644)
}

// virshNetwork is a bridge of its own in each host, and a VXLAN that learns between them; the third host gives out addresses.
const virshNetwork = `
ip link show benchbr >/dev/null 2>&1 && exit 0
ip link add benchbr type bridge forward_delay 0
ip link add benchx type vxlan id 99 dstport 4799 dev eth0
for h in h1 h2 h3; do [ "$h" = "$1" ] || bridge fdb append 00:00:00:00:00:00 dev benchx dst "$(getent ahostsv4 "$h" | awk 'NR==1 { print $1 }')"; done
ip link set benchx mtu 1400 master benchbr up
ip link set benchbr mtu 1400 up
[ "$1" = h3 ] || exit 0
ip addr add 10.99.0.1/24 dev benchbr
dnsmasq --conf-file=/dev/null --pid-file=/run/bench-dnsmasq.pid --port=0 --interface=benchbr --bind-interfaces --except-interface=lo \
	--dhcp-range=10.99.0.50,10.99.0.50 --dhcp-option=26,1400 --dhcp-leasefile=/run/bench.leases
`

const virshInstall = `
command -v libvirtd >/dev/null || {
	apt-get update >/dev/null
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients >/dev/null 2>&1
}
cat >/etc/libvirt/qemu.conf <<'END'
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
clear_emulator_capabilities = 0
remember_owner = 0
END
printf 'listen_tls = 0\nlisten_tcp = 1\nauth_tcp = "none"\nauth_unix_rw = "none"\n' >/etc/libvirt/libvirtd.conf
virsh -c qemu:///system list >/dev/null 2>&1 || libvirtd --daemon --listen
for i in $(seq 100); do virsh -c qemu:///system list >/dev/null 2>&1 && exit 0; sleep 0.1; done
exit 1
`

const virshDomain = `<domain type='qemu'>
 <name>NAME</name><memory unit='MiB'>MEMORY</memory><vcpu>1</vcpu>
 <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>
 <cpu mode='custom' match='exact'><model>Westmere</model></cpu>
 <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
  <disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/><source file='DISK'/><target dev='vda' bus='virtio'/></disk>
  <interface type='bridge'><source bridge='benchbr'/><mac address='MAC'/><mtu size='1400'/><model type='virtio'/></interface>
  <serial type='null'/><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
 </devices>
</domain>
`

// makeDisk is an empty overlay on the base.
func (v *virsh) makeDisk(ctx context.Context, host string) error {
	_, err := v.at(ctx, host, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "/shared/"+virshBase, virshDisk, fmt.Sprintf("%dM", diskMiB))
	return err
}

// boot starts the guest on the first host, as full of memory as Polder's.
func (v *virsh) boot(ctx context.Context) error {
	if err := v.destroy(ctx); err != nil {
		return err
	}
	if err := v.makeDisk(ctx, v.host); err != nil {
		return err
	}
	if _, err := v.at(ctx, v.host, "virsh", "-q", "create", "/shared/domain.xml"); err != nil {
		return err
	}
	_, err := v.ask(ctx, "hold", fmt.Sprint(vmDirtying), "1")
	return err
}

// destroy ends the guest wherever it is.
func (v *virsh) destroy(ctx context.Context) error {
	var errs []error
	for _, host := range []string{"h1", "h2"} {
		_, err := v.at(ctx, host, "sh", "-ec", "virsh -q list --name | grep -qx "+virshName+" || exit 0; virsh -q destroy "+virshName)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (v *virsh) ask(ctx context.Context, words ...string) (string, error) {
	return v.at(ctx, "h3", append([]string{sharedProgram, insideAsk, virshAddress}, words...)...)
}

// migrated is one migration; gaveUp: it was ended, since it did not converge.
type migrated struct {
	moved
	gaveUp bool
}

// migrate moves the guest to the other host, unless that takes longer than the budget.
func (v *virsh) migrate(ctx context.Context, flags []string) (r migrated, err error) {
	to := other(v.host)
	// What one that was ended has left.
	_, _ = v.at(ctx, v.host, "virsh", "-q", "domjobabort", virshName)
	_, _ = v.at(ctx, to, "virsh", "-q", "destroy", virshName)
	if err := v.makeDisk(ctx, to); err != nil {
		return r, err
	}
	before, err := v.sentBy(ctx, v.host)
	if err != nil {
		return r, err
	}
	cmd := exec.CommandContext(ctx, v.polder, "lab", "exec", "h3", "--", sharedProgram, insideProbe, virshAddress)
	cmd.Env = append(os.Environ(), v.env()...)
	p, err := startProber(ctx, cmd)
	if err != nil {
		return r, err
	}
	<-time.After(300 * time.Millisecond)
	argv := append([]string{
		"timeout", "-s", "INT", "-k", "20", fmt.Sprint(int(v.budget.Seconds())),
		"virsh", "migrate", "--live", "--copy-storage-inc",
	}, flags...)
	began := time.Now()
	_, failed := v.at(ctx, v.host, append(argv, virshName, "qemu+tcp://"+to+"/system", "tcp://"+to)...)
	took := time.Since(began)
	if r.seen, err = p.stop(); err != nil {
		return r, err
	}
	after, err := v.sentBy(ctx, v.host)
	if err != nil {
		return r, err
	}
	if failed != nil && took >= v.budget {
		r.gaveUp = true
		return r, nil
	} else if failed != nil {
		return r, failed
	}
	v.host = to
	r.OutageMS, r.TotalMS, r.TransferredBytes = -1, took.Milliseconds(), api.Bytes(after-before)
	return r, nil
}
