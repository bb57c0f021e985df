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
	runtime.LockOSThread()
	// The order matters: without the fsuid of root a thread may not choose its fsgid.
	if err := errors.Join(unix.Setfsgid(int(base)), unix.Setfsuid(int(base))); err != nil {
		return err // the thread ends with its goroutine, locked as it is
	}
	if now, _ := unix.SetfsuidRetUid(-1); now != int(base) {
		return fmt.Errorf("take the file-system identity of id %d: refused", base)
	}
	result := f()
	if err := errors.Join(unix.Setfsuid(0), unix.Setfsgid(0)); err != nil {
		return err
	}
	if now, _ := unix.SetfsuidRetUid(-1); now != 0 {
		return errors.New("take back the file-system identity of root: refused")
	}
	runtime.UnlockOSThread()
	return result
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
