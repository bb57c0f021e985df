//go:build !amd64

package hardware

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// tryKVM makes a virtual machine: elsewhere than on x86, a KVM that does so runs 64-bit kernels.
func tryKVM(kvm *os.File) error {
	const kvmCreateVM = 0xae01
	vm, err := unix.IoctlRetInt(int(kvm.Fd()), kvmCreateVM)
	if err != nil {
		return errors.New("it makes no virtual machine: " + err.Error())
	}
	return unix.Close(vm)
}
