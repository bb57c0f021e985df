package store

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Members' connections to each other must break soon after the link between them did. etcd means to see to that by deadlines, but its
// dialer sets none (client/pkg/transport: Dial is given, DialContext is taken), so that after a cut both ends wait for the kernel's
// next retransmission, whose pauses double: a member was back as long after a cut as the cut had been. The sockets are etcd's own and
// it has no hook for them, so they are looked up among this process' descriptors.
const (
	linkTimeout = 5 * time.Second // without an answer from the other kernel; etcd's own idea of it
	linkIdle    = 2 * time.Second // after which an idle connection is tried
	linkEvery   = time.Second     // between two tries, and between two looks for new connections
	linkTries   = 3
)

// tendLinks gives the connections between members a limit, until ctx is done.
func tendLinks(ctx context.Context, port int, log *slog.Logger) {
	ticker := time.NewTicker(linkEvery)
	defer ticker.Stop()
	var tended map[string]bool
	for {
		var err error
		if tended, err = limitLinks(port, tended); err != nil {
			log.Warn("the connections between the store's members can not be looked after", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// limitLinks does so for those that are not among the known ones, and returns all that are there.
func limitLinks(port int, known map[string]bool) (now map[string]bool, err error) {
	const dir = "/proc/self/fd"
	now = map[string]bool{}
	fds, err := os.ReadDir(dir)
	if err != nil {
		return known, err
	}
	var errs []error
	for _, entry := range fds {
		socket, err := os.Readlink(filepath.Join(dir, entry.Name()))
		if err != nil || !strings.HasPrefix(socket, "socket:") {
			continue // closed meanwhile, or something else
		}
		fd, err := strconv.Atoi(entry.Name())
		if err == nil && !known[socket] && isLink(fd, port) {
			err = limit(fd)
		}
		if err != nil && !errors.Is(err, unix.EBADF) {
			errs = append(errs, err)
			continue
		}
		now[socket] = true
	}
	return now, errors.Join(errs...)
}

// isLink says whether a socket is a connection from or to a member's port.
func isLink(fd, port int) bool {
	remote, err := unix.Getpeername(fd)
	if err != nil {
		return false
	}
	local, err := unix.Getsockname(fd)
	return err == nil && (portOf(remote) == port || portOf(local) == port)
}

func portOf(a unix.Sockaddr) int {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return a.Port
	case *unix.SockaddrInet6:
		return a.Port
	}
	return 0
}

func limit(fd int) error {
	set := func(option, value int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, option, value) }
	return errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
		set(unix.TCP_KEEPIDLE, int(linkIdle/time.Second)), set(unix.TCP_KEEPINTVL, int(linkEvery/time.Second)), set(unix.TCP_KEEPCNT, linkTries),
		set(unix.TCP_USER_TIMEOUT, int(linkTimeout/time.Millisecond)),
	)
}
