package container

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// asRootOf calls f with the file-system identity of the VE's own root user, so that what f makes in a tree that is mapped
// to the VE's range belongs to it, and that f may do there no more than that user.
func asRootOf(base uint32, f func() error) error {
	result := make(chan error)
	go func() {
		// The identity is the thread's. Locked until the goroutine ends, it is thrown away with it: nobody else runs on it.
		runtime.LockOSThread()
		result <- func() error {
			// The order matters: without the fsuid of root a thread may not choose its fsgid.
			if err := errors.Join(unix.Setfsgid(int(base)), unix.Setfsuid(int(base))); err != nil {
				return err
			}
			// Neither call tells of a failure.
			if now, _ := unix.SetfsuidRetUid(-1); now != int(base) {
				return fmt.Errorf("take the file-system identity of id %d: refused", base)
			}
			return f()
		}()
	}()
	return <-result
}

// asMounterOf is like asRootOf, but f keeps root's power over files.
func asMounterOf(base uint32, f func() error) error {
	return asRootOf(base, func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&header, &data[0]); err != nil {
			return fmt.Errorf("read capabilities: %w", err)
		}
		// Giving up fsuid 0 took them out of the effective set only.
		for i := range data {
			data[i].Effective = data[i].Permitted
		}
		if err := unix.Capset(&header, &data[0]); err != nil {
			return fmt.Errorf("take back capabilities: %w", err)
		}
		return f()
	})
}
