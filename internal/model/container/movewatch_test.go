package container

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A watch of the file that a link leads to becomes one of the link, under the same number, and its process is told of nothing but
// what happens to the link.
func TestTurn(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "polder-watch-") // has one device for all, where btrfs has not
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	zone, name := filepath.Join(dir, "zone"), filepath.Join(dir, "localtime")
	if err := os.WriteFile(zone, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("zone", name); err != nil {
		t.Fatal(err)
	}
	var of, ofLink unix.Stat_t
	if err := unix.Stat(name, &of); err != nil {
		t.Fatal(err)
	}
	if err := unix.Lstat(name, &ofLink); err != nil {
		t.Fatal(err)
	}
	device := uint64(unix.Major(of.Dev))<<20 | uint64(unix.Minor(of.Dev))
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if got := watchesOf(os.Getpid(), device, of.Ino); got != nil {
		t.Errorf("nobody watches the file, not %v", got)
	}
	number, err := unix.InotifyAddWatch(fd, name, unix.IN_ATTRIB)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE); err != nil { // so that it is not by chance the next number
		t.Fatal(err)
	}
	want := watch{pid: os.Getpid(), fd: fd, number: uint32(number), mask: unix.IN_ATTRIB}
	got := watchesOf(os.Getpid(), device, of.Ino)
	if len(got) != 1 || got[0] != want {
		t.Fatalf("watches of the file: %v, want %v", got, want)
	}

	link, err := os.OpenFile(name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	if err := got[0].turn(link); err != nil {
		t.Fatal(err)
	}
	if got := watchesOf(os.Getpid(), device, of.Ino); got != nil {
		t.Errorf("watches of the file still: %v", got)
	}
	if got := watchesOf(os.Getpid(), device, ofLink.Ino); len(got) != 1 || got[0] != want {
		t.Errorf("watches of the link: %v, want %v", got, want)
	}
	event := make([]byte, 16<<10)
	if n, err := unix.Read(fd, event); err != unix.EAGAIN {
		t.Errorf("it was told of something: %v, %v", event[:max(n, 0)], err)
	}
	if err := unix.Lchown(name, os.Getuid(), os.Getgid()); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Read(fd, event); err != nil {
		t.Fatal(err)
	}
	if wd, mask := binary.NativeEndian.Uint32(event), binary.NativeEndian.Uint32(event[4:]); wd != uint32(number) || mask&unix.IN_ATTRIB == 0 {
		t.Errorf("told %x of watch %d", mask, wd)
	}
}
