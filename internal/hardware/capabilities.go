package hardware

import (
	"context"
	"slices"
	"time"

	"polder/api"
)

// probeTimeout is for one probe; they run side by side. All of them take a few tenths of a second where nothing is wrong.
const probeTimeout = 5 * time.Second

// DefaultDataDir is where Polder keeps its data unless told otherwise.
const DefaultDataDir = "/var/lib/polder"

// Capabilities finds out what this machine can do with its data at DefaultDataDir; see CapabilitiesAt.
func Capabilities(ctx context.Context) []api.Capability { return CapabilitiesAt(ctx, DefaultDataDir) }

// CapabilitiesAt finds out what this machine can do with its data at dir, which need not be there yet. It blocks until
// every probe has answered or timed out. Without root some things cannot be tried; their Detail says so.
func CapabilitiesAt(ctx context.Context, dir string) []api.Capability {
	return run(ctx, probeTimeout, probes(dir))
}

// probe finds out about one or more capabilities, and must end soon after ctx is done.
type probe struct {
	name string // when it does not answer
	find func(ctx context.Context) []api.Capability
}

func probes(dir string) []probe {
	dir = existing(dir)
	return []probe{
		{"kvm", probeKVM},
		{"cgroup2", probeCgroups},
		{"user-namespaces", func(ctx context.Context) []api.Capability { return probeUserNamespaces(ctx, dir) }},
		{"seccomp", probeSeccomp},
		{"inotify", probeInotify},
		{"overlayfs", probeOverlay},
		{"btrfs", func(ctx context.Context) []api.Capability { return probeBtrfs(dir) }},
		{"reflink", func(ctx context.Context) []api.Capability { return probeReflink(dir) }},
		{"network", probeNetwork},
		{"vhost-net", probeVhostNet},
		{"crun", toolProbe("crun")},
		{"qemu", probeQEMU},
		{"qemu-img", toolProbe("qemu-img")},
		{"ovmf", probeOVMF},
		{"mmdebstrap", toolProbe("mmdebstrap")},
		{"image-tools", probeImageTools},
		{"btrfs-progs", toolProbe("btrfs-progs")},
		{"dnsmasq", toolProbe("dnsmasq")},
		{"criu", probeCRIU},
	}
}

func run(ctx context.Context, timeout time.Duration, probes []probe) []api.Capability {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answers := make([]chan []api.Capability, len(probes))
	for i, p := range probes {
		answers[i] = make(chan []api.Capability, 1)
		go func() { answers[i] <- p.find(ctx) }()
	}
	var all []api.Capability
	for i, p := range probes {
		select {
		case found := <-answers[i]:
			all = append(all, found...)
			continue
		case <-ctx.Done():
		}
		// One that heeds ctx has its answer now.
		select {
		case found := <-answers[i]:
			all = append(all, found...)
		case <-time.After(100 * time.Millisecond):
			all = append(all, api.Capability{Name: p.name, Level: api.Limited, Detail: "cannot tell: the probe did not end in " + timeout.String()})
		}
	}
	return all
}

// essential is what no host can do without: neither model, or no image, works when one of these is missing.
var essential = []string{
	"cgroup2", "user-namespaces", "seccomp", "veth", "bridge", "tun", "nftables", "crun", "qemu", "qemu-img", "dnsmasq",
}

// Essential says whether a host is of no use without the capability.
func Essential(name string) bool { return slices.Contains(essential, name) }
