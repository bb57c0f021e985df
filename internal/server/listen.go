package server

import (
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
)

// socketGroup may use the socket besides root, where the group exists. Who can use it can be root on the host: a VE
// with any image is theirs to make.
const socketGroup = "polder"

// Listen makes the unix socket at path: for root and the group polder only, checked again for every connection by its
// peer's credentials. A socket that a dead server left behind is replaced; one that somebody answers at is api.Conflict.
func Listen(path string, log *slog.Logger) (net.Listener, error) {
	if err := clearSocket(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		if errors.Is(err, syscall.EINVAL) || len(path) >= 108 {
			return nil, api.Errorf(api.Invalid, "listen at %s: the path of a socket has at most 107 bytes", path)
		}
		return nil, api.Errorf(api.Internal, "listen at %s: %w", path, err)
	}
	group := lookupGroup()
	err = os.Chmod(path, 0o660)
	if err == nil && group >= 0 && os.Geteuid() == 0 {
		err = os.Chown(path, 0, group)
	}
	if err != nil {
		l.Close()
		return nil, api.Errorf(api.Internal, "listen at %s: %w", path, err)
	}
	return &guarded{UnixListener: l.(*net.UnixListener), group: group, log: log}, nil
}

// clearSocket removes a socket that nobody answers at.
func clearSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return api.Errorf(api.Internal, "listen at %s: %w", path, err)
	case info.Mode().Type() != fs.ModeSocket:
		return api.Errorf(api.Precondition, "listen at %s: something that is no socket is there; remove it or choose another path", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		conn.Close()
		return api.Errorf(api.Conflict, "listen at %s: another polder serve answers there", path)
	case !errors.Is(err, syscall.ECONNREFUSED):
		return api.Errorf(api.Conflict, "listen at %s: a socket is there that may be in use: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return api.Errorf(api.Internal, "remove stale socket %s: %w", path, err)
	}
	return nil
}

func lookupGroup() int {
	g, err := user.LookupGroup(socketGroup)
	if err != nil {
		return -1
	}
	id, err := strconv.Atoi(g.Gid)
	if err != nil {
		return -1
	}
	return id
}

// guarded accepts only peers that may use the API: a socket handed on, or with its mode changed, gives nobody else access.
type guarded struct {
	*net.UnixListener
	group int // -1: none
	log   *slog.Logger
}

// Accept implements net.Listener.
func (g *guarded) Accept() (net.Conn, error) {
	for {
		conn, err := g.AcceptUnix()
		if err != nil {
			return nil, err
		}
		cred, err := peer(conn)
		if err == nil && g.allowed(cred) {
			return conn, nil
		}
		if g.log != nil {
			g.log.Warn("connection refused: its user is neither root nor in the group", "group", socketGroup, "cred", cred, "err", err)
		}
		conn.Close()
	}
}

func (g *guarded) allowed(cred *unix.Ucred) bool {
	if cred.Uid == 0 || int(cred.Uid) == os.Geteuid() {
		return true
	}
	if g.group < 0 {
		return false
	}
	if int(cred.Gid) == g.group {
		return true
	}
	u, err := user.LookupId(strconv.Itoa(int(cred.Uid)))
	if err != nil {
		return false
	}
	groups, err := u.GroupIds()
	return err == nil && slices.Contains(groups, strconv.Itoa(g.group))
}

func peer(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred, errors.Join(err, credErr)
}
