package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"polder/internal/command"
	"polder/internal/model"
)

// mend takes back what a criu that was killed in the middle of a dump has left: its code in the VE's processes goes by itself when
// its tracer is gone, but not the lock of the VE's network, nor the state of its TCP sockets in which nothing is sent.
func mend(ctx context.Context, ve model.Spec) error {
	pids, err := pidsOf(ve)
	if err != nil {
		return err
	}
	spaces := map[string]bool{}
	for _, pid := range pids {
		if space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && !spaces[space] {
			spaces[space] = true
			if err := unlockNet(ctx, pid); err != nil {
				return err
			}
		}
	}
	for _, pid := range pids {
		if err := unrepair(pid); err != nil {
			return err
		}
	}
	return nil
}

// lockTable begins the names of criu's tables.
const lockTable = "CRIU-"

// unlockNet removes criu's tables from the network namespace of pid.
func unlockNet(ctx context.Context, pid int) error {
	there, err := netns.GetFromPid(pid)
	if errors.Is(err, os.ErrNotExist) {
		return nil // it has ended
	} else if err != nil {
		return err
	}
	defer there.Close()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread ends with the goroutine; nft is its child
		result <- func() error {
			if err := netns.Set(there); err != nil {
				return err
			}
			out, err := command.Run(ctx, nil, "nft", "list", "tables")
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(out)) {
				fields := strings.Fields(line) // table inet NAME
				if len(fields) != 3 || !strings.HasPrefix(fields[2], lockTable) {
					continue
				}
				if _, err := command.Run(ctx, nil, "nft", "delete", "table", fields[1], fields[2]); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	return <-result
}

// unrepair lets the TCP sockets of a process work again that were left in repair (tcp(7) has not heard of it; see
// "TCP_REPAIR" in linux/tcp.h).
func unrepair(pid int) error {
	process, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	} else if err != nil {
		return err
	}
	defer unix.Close(process)
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // it has ended
	}
	for _, entry := range entries {
		target, err := os.Readlink(filepath.Join(dir, entry.Name()))
		number, bad := strconv.Atoi(entry.Name())
		if err != nil || bad != nil || !strings.HasPrefix(target, "socket:") {
			continue
		}
		fd, err := unix.PidfdGetfd(process, number, 0)
		if err != nil {
			continue // closed meanwhile
		}
		err = unrepairSocket(fd)
		_ = unix.Close(fd)
		if err != nil {
			return fmt.Errorf("take socket %d of process %d out of repair: %w", number, pid, err)
		}
	}
	return nil
}

func unrepairSocket(fd int) error {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || protocol != unix.IPPROTO_TCP {
		return nil
	}
	if on, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR); err != nil || on == 0 {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 0); err != nil {
		return err
	}
	// Repair has forgotten what it was; without it a server can't be restarted while a connection of its lasts.
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
}
