package hardware

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"polder/api"
)

// KVM says whether VMs with a 64-bit kernel run on KVM here, and if not, why not: then they run under TCG. A /dev/kvm
// that opens is no proof: some hosts have it without the CPU's virtualization, for kernels made for that only. So a
// few instructions are run in long mode, which takes milliseconds, and half a second where it hangs. It needs
// read and write access to /dev/kvm.
func KVM() (usable bool, why string) {
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err == nil {
		defer kvm.Close()
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return false, "there is no /dev/kvm"
	case runtime.GOARCH == "amd64" && !cpuHas("vmx", "svm"):
		return false, "there is a /dev/kvm, but the CPU has neither vmx nor svm: it runs no ordinary 64-bit kernel"
	case err != nil:
		return false, fmt.Sprintf("/dev/kvm cannot be opened: %v", errors.Unwrap(err))
	}
	if err := tryKVM(kvm); err != nil {
		return false, fmt.Sprintf("KVM fails a test of a few 64-bit instructions: %v", err)
	}
	return true, ""
}

// cpuHas says whether the CPU has one of these flags.
func cpuHas(any ...string) bool {
	flags, err := procValue("/proc/cpuinfo", "flags")
	if err != nil {
		return false
	}
	for _, flag := range strings.Fields(flags) {
		for _, want := range any {
			if flag == want {
				return true
			}
		}
	}
	return false
}

func probeKVM(context.Context) []api.Capability {
	usable, why := KVM()
	c := api.Capability{Name: "kvm", Level: api.OK, Detail: "runs 64-bit VMs"}
	if usable {
		return []api.Capability{c}
	}
	c.Level, c.Detail = api.Limited, why+"; VMs run under TCG, many times slower"
	switch _, err := os.Stat("/dev/kvm"); {
	case runtime.GOARCH == "amd64" && !cpuHas("vmx", "svm"):
		c.Remedy = "turn on VT-x or AMD-V in the firmware, or nested virtualization in the hypervisor that this machine runs on"
	case unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) == unix.EACCES:
		c.Remedy = "sudo polder doctor"
	case err != nil:
		c.Remedy = "modprobe kvm_intel || modprobe kvm_amd"
	default:
		c.Remedy = "look in the kernel's log: dmesg | grep -i kvm"
	}
	if _, err := os.Stat("/dev/kvm"); err != nil {
		c.Level = api.Missing
	}
	return []api.Capability{c}
}
