//go:build integration

package container

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// A file that is open on a mount which is in no namespace, as that of a service that has restarted, is found; others are not.
func TestUnmounted(t *testing.T) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		t.Fatal(err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(mount)
	gone, err := unix.Openat(mount, "f", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(gone)
	there, err := os.Create(t.TempDir() + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	s := survey{mounted: mountIDs([]int{os.Getpid()})}
	for fd, want := range map[int]bool{gone: true, int(there.Fd()): false} {
		target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		if err != nil {
			t.Fatal(err)
		}
		if got := s.unmounted(os.Getpid(), strconv.Itoa(fd), target); got != want {
			t.Errorf("%s is open on a mount that is gone: %v", target, got)
		}
	}
	id, ok := mountOf(os.Getpid(), strconv.Itoa(gone))
	if !ok {
		t.Fatal("the mount of a file is not told")
	}
	var st unix.Stat_t
	if err := unix.Fstat(gone, &st); err != nil {
		t.Fatal(err)
	}
	s.outside = []string{fmt.Sprintf("file[%x:%x]", id, st.Ino)}
	if s.unmounted(os.Getpid(), strconv.Itoa(gone), "/f") {
		t.Error("a file that is handed in from outside blocks")
	}
}
