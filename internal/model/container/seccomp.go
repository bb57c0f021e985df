package container

import (
	"runtime"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// seccomp is the filter of every container: an allow list, with less in it for an application than for a system.
//
// Some calls are refused that would do no harm, because a running VE that uses them could not be moved: CRIU carries
// neither io_uring nor nested UTS namespaces, nor what a process has denied itself by Landlock, which may keep CRIU from talking to
// its own code in the process. Programs fall back by themselves. clone3 hides its flags from filters
// behind a pointer; with ENOSYS the C library uses clone instead, whose flags are seen.
func seccomp(system bool) *specs.LinuxSeccomp {
	allowed := ordinary()
	flagged := []string{"clone"}
	refused := uint64(unix.CLONE_NEWUTS)
	if system {
		allowed = append(allowed, administration()...)
		flagged = append(flagged, "unshare")
	} else {
		// A user namespace of its own would give an application all capabilities that it was not given.
		refused |= unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP
	}
	calls := []specs.LinuxSyscall{
		{Names: allowed, Action: specs.ActAllow},
		refuse(unix.ENOSYS, refusedForMoving()...),
		refuse(unix.EPERM, forbidden()...),
	}
	if !system {
		calls = append(calls, refuse(unix.EPERM, append(administration(), "unshare")...))
	}
	calls = append(calls, allowWithout(refused, flagged...))
	for bit := uint64(1); bit <= refused; bit <<= 1 {
		if refused&bit != 0 {
			calls = append(calls, refuseFlag(bit, flagged...))
		}
	}
	return &specs.LinuxSeccomp{
		DefaultAction:   specs.ActErrno,
		DefaultErrnoRet: errno(unix.ENOSYS),
		Architectures:   architectures(),
		Syscalls:        append(calls, sockets()...),
	}
}

// sockets allows all families but AF_ALG and AF_VSOCK: the kernel's crypto interface is attack surface that nothing
// needs, and vsock knows no namespaces: it would reach the VMs of this host.
func sockets() []specs.LinuxSyscall {
	family := func(action specs.LinuxSeccompAction, ret *uint, op specs.LinuxSeccompOperator, value uint64) specs.LinuxSyscall {
		return specs.LinuxSyscall{
			Names: []string{"socket"}, Action: action, ErrnoRet: ret,
			Args: []specs.LinuxSeccompArg{{Index: 0, Op: op, Value: value}},
		}
	}
	none := errno(unix.EAFNOSUPPORT)
	return []specs.LinuxSyscall{
		family(specs.ActAllow, nil, specs.OpLessThan, unix.AF_ALG),
		family(specs.ActErrno, none, specs.OpEqualTo, unix.AF_ALG),
		family(specs.ActAllow, nil, specs.OpEqualTo, unix.AF_ALG+1),
		family(specs.ActErrno, none, specs.OpEqualTo, unix.AF_VSOCK),
		family(specs.ActAllow, nil, specs.OpGreaterThan, unix.AF_VSOCK),
	}
}

func refuse(with unix.Errno, names ...string) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: names, Action: specs.ActErrno, ErrnoRet: errno(with)}
}

// allowWithout allows calls whose first argument has none of the flags.
func allowWithout(flags uint64, names ...string) specs.LinuxSyscall {
	return specs.LinuxSyscall{
		Names: names, Action: specs.ActAllow,
		Args: []specs.LinuxSeccompArg{{Index: 0, Op: specs.OpMaskedEqual, Value: flags, ValueTwo: 0}},
	}
}

// refuseFlag refuses calls whose first argument has the flag.
func refuseFlag(flag uint64, names ...string) specs.LinuxSyscall {
	return specs.LinuxSyscall{
		Names: names, Action: specs.ActErrno, ErrnoRet: errno(unix.EPERM),
		Args: []specs.LinuxSeccompArg{{Index: 0, Op: specs.OpMaskedEqual, Value: flag, ValueTwo: flag}},
	}
}

func errno(e unix.Errno) *uint {
	n := uint(e)
	return &n
}

// architectures whose programs run here: 32-bit ones too, but not x32, which nobody uses.
func architectures() []specs.Arch {
	if runtime.GOARCH == "arm64" {
		return []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	}
	return []specs.Arch{specs.ArchX86_64, specs.ArchX86}
}
