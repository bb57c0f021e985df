package hardware

import (
	"context"
	"os"
	"sync"

	"polder/api"
	"polder/internal/command"
)

// criuFeatures are those of "criu check --feature" that moves of containers use.
var criuFeatures = []struct{ name, feature, with, without, remedy string }{
	{
		"criu-pre-dump", "mem_dirty_track", "memory is copied while a container runs",
		"the kernel does not track written memory: live moves of containers copy it while the container stands still",
		"boot a kernel with CONFIG_MEM_SOFT_DIRTY (Debian's has)",
	},
	{
		"criu-lazy-pages", "uffd-noncoop", "memory can follow after a container was moved",
		"no post-copy of containers", "boot a kernel with CONFIG_USERFAULTFD (Debian's has)",
	},
	{
		"criu-pidfd-store", "pidfd_store", "repeated dumps are safe against reused process ids",
		"repeated dumps may mistake a reused process id", "boot Linux 5.13 or newer",
	},
	{
		"criu-network-lock", "network_lock_nftables", "connections are kept still by nftables while a container moves",
		"connections can only be kept still by iptables", "modprobe nf_tables; apt-get install criu nftables",
	},
}

// brokenSockets: CRIU before 4.2 cannot restore sockets on kernels from 6.16 on (SO_PASSCRED).
var (
	brokenSocketsKernel = version{6, 16, 0}
	brokenSocketsCRIU   = version{4, 2, 0}
)

// newerCRIU: Debian 13 is without criu, Debian 12's is too old.
const newerCRIU = "add Debian 14 (forky) to apt's sources, then: apt-get install criu/forky libnl-3-200/forky"

func probeCRIU(ctx context.Context) []api.Capability {
	criu, v := findTool("criu").capability(ctx)
	if criu.Level == api.Missing {
		criu.Detail += ": without it they move cold only"
		criu.Remedy = newerCRIU
	}
	if kernel, ok := parseVersion(kernelRelease()); criu.Level == api.OK && ok && !kernel.less(brokenSocketsKernel) && v.less(brokenSocketsCRIU) {
		criu.Level = api.Limited
		criu.Detail = v.String() + " fails on sockets of Linux " + kernel.String() + ": want 4.2 or newer"
		criu.Remedy = newerCRIU + "; or boot Debian 13's own kernel"
	}
	found := make([]api.Capability, 1+len(criuFeatures))
	found[0] = criu
	var wg sync.WaitGroup
	for i, f := range criuFeatures {
		c := &found[1+i]
		*c = api.Capability{Name: f.name, Level: api.OK, Detail: f.with}
		switch {
		case criu.Level == api.Missing:
			c.Level, c.Detail, c.Remedy = api.Missing, "needs criu", criu.Remedy
		case os.Geteuid() != 0:
			c.Level, c.Detail, c.Remedy = api.Limited, "cannot be tried without root", "sudo polder doctor"
		default:
			wg.Go(func() {
				if _, err := command.Run(ctx, nil, "criu", "check", "--feature", f.feature); err != nil {
					c.Level, c.Detail, c.Remedy = api.Limited, f.without, f.remedy
				}
			})
		}
	}
	wg.Wait()
	return found
}
