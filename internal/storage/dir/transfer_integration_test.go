//go:build integration

package dir

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/command"
	"polder/internal/storage"
)

func fillNothing(_ context.Context, path string) error {
	return os.WriteFile(filepath.Join(path, "file"), []byte("base"), 0o644)
}

var transfer = storage.Transfer{ID: "v", Kind: storage.Tree, Base: "b"}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// poolsWithVolume: a volume of "b" in the first, whose upper layer is given; the second is on a file system of this size.
func poolsWithVolume(t *testing.T, size string) (from, to storage.Pool, upper string) {
	t.Helper()
	from, to = open(t, fileSystem(t, "512M", "mkfs.ext4", "-q")), open(t, fileSystem(t, size, "mkfs.ext4", "-q"))
	must(t, from.AddBase(t.Context(), "b", storage.Tree, fillNothing))
	var stream bytes.Buffer
	must(t, from.SendBase(t.Context(), "b", storage.Tree, &stream))
	must(t, to.ReceiveBase(t.Context(), "b", storage.Tree, &stream))
	v, err := from.Clone(t.Context(), "b", storage.Tree, "v", 0)
	must(t, err)
	return from, to, v.Upper
}

// A pool that gets full while a volume comes keeps nothing of it.
func TestFullWhileReceiving(t *testing.T) {
	from, to, upper := poolsWithVolume(t, "64M")
	if _, err := command.Run(t.Context(), nil, "dd", "if=/dev/urandom", "of="+upper+"/big", "bs=1M", "count=100"); err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	must(t, from.SendRound(t.Context(), transfer, 0, &stream))
	err := to.ReceiveRound(t.Context(), transfer, 0, &stream)
	if api.KindOf(err) != api.Exhausted || !strings.Contains(err.Error(), "is full: delete") {
		t.Errorf("got %v", err)
	}
	must(t, to.EndTransfer(t.Context(), "v"))
	if left, err := os.ReadDir(filepath.Join(to.Path(), "volumes")); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	must(t, os.Remove(upper+"/big"))
	stream.Reset()
	must(t, from.SendRound(t.Context(), transfer, 0, &stream))
	must(t, to.ReceiveRound(t.Context(), transfer, 0, &stream))
	_, err = to.FinishReceive(t.Context(), transfer)
	must(t, err)
}

// What only an overlay knows of comes along: whiteouts, opaque directories, redirects; what is true on one file system only does not.
func TestUpperLayerIsSentAsItIs(t *testing.T) {
	from, to, upper := poolsWithVolume(t, "64M")
	must(t, unix.Mknod(upper+"/file", unix.S_IFCHR, 0))
	must(t, os.Mkdir(upper+"/opaque", 0o755))
	must(t, unix.Setxattr(upper+"/opaque", "trusted.overlay.opaque", []byte("y"), 0))
	must(t, unix.Setxattr(upper+"/opaque", "trusted.overlay.origin", []byte("handle"), 0))
	var stream bytes.Buffer
	must(t, from.SendRound(t.Context(), transfer, 0, &stream))
	must(t, to.ReceiveRound(t.Context(), transfer, 0, &stream))
	v, err := to.FinishReceive(t.Context(), transfer)
	must(t, err)
	var st unix.Stat_t
	if err := unix.Lstat(v.Upper+"/file", &st); err != nil || st.Mode != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("the whiteout is %o %x, %v", st.Mode, st.Rdev, err)
	}
	value := make([]byte, 10)
	if n, err := unix.Getxattr(v.Upper+"/opaque", "trusted.overlay.opaque", value); err != nil || string(value[:n]) != "y" {
		t.Errorf("opaque: %q, %v", value, err)
	}
	if _, err := unix.Getxattr(v.Upper+"/opaque", "trusted.overlay.origin", value); err != unix.ENODATA {
		t.Errorf("an inode of the other host came along: %v", err)
	}
}

// Of a large file that changed in place, only the blocks that changed are sent; of one that did not, nothing.
func TestOnlyChangedBlocksAreSent(t *testing.T) {
	from, to, upper := poolsWithVolume(t, "256M")
	must(t, os.WriteFile(upper+"/big", bytes.Repeat([]byte("content"), 10<<20), 0o644))
	send := func(n int) int {
		t.Helper()
		var stream bytes.Buffer
		must(t, from.SendRound(t.Context(), transfer, n, &stream))
		size := stream.Len()
		must(t, to.ReceiveRound(t.Context(), transfer, n, &stream))
		return size
	}
	if n := send(0); n < 70<<20 {
		t.Errorf("%d bytes in round 0", n)
	}
	f, err := os.OpenFile(upper+"/big", os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("changed"), 30<<20)
	must(t, err)
	must(t, f.Close())
	if n := send(1); n < 64<<10 || n > 80<<10 {
		t.Errorf("%d bytes for one block", n)
	}
	if n := send(2); n > 1000 {
		t.Errorf("%d bytes for nothing", n)
	}
	v, err := to.FinishReceive(t.Context(), transfer)
	must(t, err)
	one, err := os.ReadFile(upper + "/big")
	must(t, err)
	if two, err := os.ReadFile(v.Upper + "/big"); err != nil || !bytes.Equal(one, two) {
		t.Errorf("the files differ, %v", err)
	}
}

// A stream writes nowhere but into its tree, whatever it says.
func TestHostileTree(t *testing.T) {
	_, to, _ := poolsWithVolume(t, "64M")
	outside := filepath.Join(to.Path(), "outside")
	must(t, os.Mkdir(outside, 0o700))
	link := entry{Do: doMake, Path: []byte("link"), Mode: unix.S_IFLNK | 0o777, Target: []byte("../../../outside")}
	for name, evil := range map[string][]entry{
		"dots":     {{Do: doMake, Path: []byte("../../../outside/x"), Mode: unix.S_IFIFO}},
		"inside":   {{Do: doMake, Path: []byte("a/../../../outside/x"), Mode: unix.S_IFIFO}},
		"absolute": {{Do: doMake, Path: []byte(outside + "/x"), Mode: unix.S_IFIFO}},
		"link":     {link, {Do: doMake, Path: []byte("link/x"), Mode: unix.S_IFIFO}},
		"mode":     {{Do: doMake, Path: []byte("x"), Mode: 0o170000}},
		"remove":   {{Do: doRemove, Path: []byte("..")}},
		"hardlink": {{Do: doLink, Path: []byte("x"), Target: []byte("../../../outside")}},
		"patch":    {link, {Do: doPatch, Path: []byte("link"), Mode: unix.S_IFREG | 0o600}},
		"fifo":     {{Do: doMake, Path: []byte("f"), Mode: unix.S_IFIFO}, {Do: doPatch, Path: []byte("f"), Mode: unix.S_IFREG}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := to.ReceiveRound(t.Context(), transfer, 0, bytes.NewReader(treeStream(t, evil...))); err == nil {
				t.Error("it was taken")
			}
			must(t, to.EndTransfer(t.Context(), "v"))
			if list, err := os.ReadDir(outside); err != nil || len(list) > 0 {
				t.Errorf("outside has %v, %v", list, err)
			}
		})
	}
}
