package container

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
)

// userNamespace makes a user namespace that maps count ids from 0 on to base, and returns it as an open file. Nothing
// runs in it.
//
// The kernel gives a namespace only to a process, so there is one for a moment: traced, it stops in front of its first
// instruction, and is killed as soon as its namespace is open.
func userNamespace(base, count uint32) (*os.File, error) {
	runtime.LockOSThread() // a traced child belongs to the thread that started it
	defer runtime.UnlockOSThread()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(base), Size: int(count)}}
	process, err := os.StartProcess("/proc/self/exe", []string{"polder-userns"}, &os.ProcAttr{
		Env: []string{},
		Sys: &syscall.SysProcAttr{
			Cloneflags:                 syscall.CLONE_NEWUSER,
			UidMappings:                ids,
			GidMappings:                ids,
			GidMappingsEnableSetgroups: true,
			Ptrace:                     true,
			Pdeathsig:                  syscall.SIGKILL,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("make user namespace for ids %d to %d: %w", base, base+count-1, err)
	}
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", process.Pid))
	_ = process.Kill()
	_, _ = process.Wait()
	if err != nil {
		return nil, fmt.Errorf("open user namespace: %w", err)
	}
	return file, nil
}
