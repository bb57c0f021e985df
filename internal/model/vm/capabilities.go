package vm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"polder/api"
)

// Capabilities says what virtual machines can do here.
func (m *Model) Capabilities(ctx context.Context) []api.Capability {
	all := []api.Capability{m.emulatorCapability(ctx), m.acceleratorCapability(), m.firmwareCapability(), m.followCapability()}
	return append(all,
		api.Capability{Name: "exec", Level: api.OK, Detail: "by the qemu-guest-agent in the image"},
		api.Capability{Name: "console", Level: api.OK, Detail: "serial port"},
		api.Capability{Name: "fork", Level: api.OK, Detail: "while it runs, memory and all (polder clone --live); its guest agent gives each fork its identity"},
		api.Capability{Name: "move", Level: api.OK, Detail: "live and warm, with its disk: pre-copy, slowed down where its memory changes too fast"},
		api.Capability{Name: "pause", Level: api.OK, Detail: "by qemu; the memory stays"},
	)
}

func (m *Model) emulatorCapability(ctx context.Context) api.Capability {
	c := api.Capability{Name: "qemu", Level: api.OK}
	number, err := m.version.newest(ctx, m.cfg.QEMU)
	switch {
	case err != nil:
		c.Level, c.Detail, c.Remedy = api.Missing, err.Error(), "apt-get install qemu-system-x86"
	case oldQEMU(number):
		c.Level, c.Remedy = api.Limited, "apt-get install -t bookworm-backports qemu-system-x86"
		c.Detail = fmt.Sprintf("version %s: kvm needs %d.%d, and 7.2 crashes newer kernels when it emulates", number, leastQEMU[0], leastQEMU[1])
	default:
		c.Detail = "version " + number
	}
	return c
}

func (m *Model) acceleratorCapability() api.Capability {
	if m.cfg.KVM {
		return api.Capability{Name: "kvm", Level: api.OK, Detail: "vms run on the CPU"}
	}
	return api.Capability{
		Name: "kvm", Level: api.Limited, Detail: "not usable: vms are emulated (tcg), 10 to 30 times slower",
		Remedy: "enable VT-x or AMD-V in the firmware, or nested virtualization when this is a vm; modprobe kvm_intel or kvm_amd",
	}
}

func (m *Model) followCapability() api.Capability {
	if err := m.CanFollow(); err != nil {
		return api.Capability{
			Name: "post-copy", Level: api.Limited, Detail: "memory can't follow a VM to here: " + err.Error(),
			Remedy: "sysctl vm.unprivileged_userfaultfd=1, or a kernel of 6.1 or later",
		}
	}
	return api.Capability{Name: "post-copy", Level: api.OK, Detail: "memory can follow a VM to here (polder move --mode post-copy)"}
}

func (m *Model) firmwareCapability() api.Capability {
	code := filepath.Join(m.cfg.Firmware, "OVMF_CODE_4M.fd")
	if _, err := os.Stat(code); err != nil {
		return api.Capability{Name: "uefi", Level: api.Missing, Detail: err.Error(), Remedy: "apt-get install ovmf"}
	}
	return api.Capability{Name: "uefi", Level: api.OK, Detail: code}
}
