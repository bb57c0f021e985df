package crun

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Console is the socket at which crun hands over the terminal that it made inside a container.
type Console struct{ listener *net.UnixListener }

// ListenConsole makes the socket at path.
func ListenConsole(path string) (Console, error) {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	return Console{listener}, err
}

// Accept blocks until the terminal comes, or until Close. The file is the terminal's master end, usable with deadlines;
// the caller closes it.
func (c Console) Accept() (*os.File, error) {
	conn, err := c.listener.AcceptUnix()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	data, control := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*8))
	_, n, _, _, err := conn.ReadMsgUnix(data, control)
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	var files []int
	for _, message := range messages {
		if more, err := unix.ParseUnixRights(&message); err == nil {
			files = append(files, more...)
		}
	}
	if len(files) != 1 {
		for _, fd := range files {
			_ = unix.Close(fd)
		}
		return nil, fmt.Errorf("receive terminal: %d descriptors came instead of one", len(files))
	}
	unix.CloseOnExec(files[0])
	// Non-blocking, or a read would hold a thread and could not be ended by Close.
	if err := unix.SetNonblock(files[0], true); err != nil {
		return nil, errors.Join(err, unix.Close(files[0]))
	}
	return os.NewFile(uintptr(files[0]), "terminal"), nil
}

// Close ends Accept.
func (c Console) Close() error { return c.listener.Close() }
