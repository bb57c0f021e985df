//go:build amd64

package vm

import (
	"bytes"
	"errors"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// A process makes the call, and then does what it would have done: it sleeps to the end, reads what comes, and ends as it likes.
func TestRemoteCall(t *testing.T) {
	for name, script := range map[string]string{"sleeps": "echo; sleep 0.3; exit 7", "reads": "echo; read a; [ \"$a\" = x ] && exit 7"} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("/bin/sh", "-c", script)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			var errs bytes.Buffer
			cmd.Stderr = &errs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			pid := cmd.Process.Pid
			if _, err := out.Read(make([]byte, 1)); err != nil { // it is what it is to be
				t.Fatal(err)
			}
			for i := range 20 { // wherever it is just now
				got, err := remoteCall(pid, unix.SYS_GETPID, [6]uint64{})
				if err != nil || got != uint64(pid) {
					t.Fatalf("call %d: getpid in process %d: %d, %v", i, pid, got, err)
				}
			}
			if _, err := remoteCall(pid, unix.SYS_CLOSE, [6]uint64{1 << 20}); !errors.Is(err, unix.EBADF) {
				t.Errorf("a call that fails: %v", err)
			}
			if _, err := in.Write([]byte("x\n")); err != nil {
				t.Error(err)
			}
			var exit *exec.ExitError
			if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 7 {
				t.Errorf("it ended: %v %s", err, errs.String())
			}
			if _, err := remoteCall(pid, unix.SYS_GETPID, [6]uint64{}); err == nil {
				t.Error("a process that has ended made a call")
			}
		})
	}
}
