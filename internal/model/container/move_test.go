package container

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"polder/api"
)

func TestUnmetNeeds(t *testing.T) {
	here := needs{Version: moveVersion, Arch: "amd64", Kernel: "6.12.48-amd64", Flags: []string{"sse4_2", "avx2"}}
	for _, c := range []struct {
		name   string
		change func(*needs)
		want   int
		except api.MoveMode
	}{
		{"the same", func(*needs) {}, 0, ""},
		{"older kernel, fewer flags", func(n *needs) { n.Kernel, n.Flags = "6.1.0", nil }, 0, ""},
		{"newer kernel", func(n *needs) { n.Kernel = "6.18.1" }, 1, api.Cold},
		{"more flags", func(n *needs) { n.Flags = []string{"avx512f", "avx2"} }, 1, api.Cold},
		{"other protocol", func(n *needs) { n.Version++ }, 1, api.Cold},
		{"other architecture", func(n *needs) { n.Arch = "arm64" }, 1, ""},
	} {
		n := here
		c.change(&n)
		got := n.unmet(here)
		if len(got) != c.want || len(got) == 1 && got[0].Except != c.except {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

func TestMountLine(t *testing.T) {
	where, kind, ok := mountLine("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - fuse.sshfs /dev/root rw,errors=continue\n")
	if !ok || where != "/mnt2" || kind != "fuse.sshfs" {
		t.Errorf("%q, %q, %v", where, kind, ok)
	}
	for _, line := range []string{"", " - ", "36 35 98:0 / /x rw", "a b c d e f"} {
		if _, _, ok := mountLine(line); ok {
			t.Errorf("%q was taken", line)
		}
	}
}

func TestDescriptorBlocks(t *testing.T) {
	dir := t.TempDir()
	deleted, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer deleted.Close()
	for _, c := range []struct {
		path, target string
		blocks       bool
	}{
		{"", "anon_inode:[eventfd]", false},
		{"", "anon_inode:inotify", false},
		{"", "anon_inode:[eventpoll]", false},
		{"", "anon_inode:[io_uring]", true},
		{"", "anon_inode:[perf_event]", true},
		{"", "anon_inode:bpf-prog", true},
		{"/dev/null", "/dev/null", false},
		{deleted.Name(), deleted.Name(), false},
		{deleted.Name(), deleted.Name() + " (deleted)", true}, // it still has a name
		{dir, dir, false},
		{filepath.Join(dir, "gone"), "pipe:[1]", false},
	} {
		if reason, remedy := descriptorBlocks(c.path, c.target); (reason != "") != c.blocks || (remedy != "") != c.blocks {
			t.Errorf("%s: %q, %q", c.target, reason, remedy)
		}
	}
	if reason, _ := fileBlocks("/x (deleted)", unix.Stat_t{Blocks: ghostLimit/512 + 1}); reason == "" {
		t.Error("a large deleted file is let through")
	}
	if reason, _ := fileBlocks("/x (deleted)", unix.Stat_t{Blocks: 8}); reason != "" {
		t.Errorf("a small deleted file: %s", reason)
	}
}

func TestDeviceBlocks(t *testing.T) {
	for device, blocks := range map[uint64]bool{
		unix.Mkdev(1, 3): false, unix.Mkdev(5, 2): false, unix.Mkdev(136, 7): false, unix.Mkdev(10, 200): false,
		unix.Mkdev(10, 229): true, unix.Mkdev(226, 0): true,
	} {
		if reason, _ := deviceBlocks(device); (reason != "") != blocks {
			t.Errorf("%d:%d: %q", unix.Major(device), unix.Minor(device), reason)
		}
	}
}

func TestAnnouncements(t *testing.T) {
	mac := []byte{2, 0, 0, 0, 0, 1}
	arp := gratuitousARP(mac, netip.MustParseAddr("10.87.0.5"))
	want := []byte{
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1,
		2, 0, 0, 0, 0, 1, 10, 87, 0, 5, 0, 0, 0, 0, 0, 0, 10, 87, 0, 5,
	}
	if !reflect.DeepEqual(arp, want) {
		t.Errorf("arp %x, want %x", arp, want)
	}
	na := neighbourAdvertisement(mac, netip.MustParseAddr("fd00::5"))
	body := na[14+40:]
	if len(body) != 32 || na[14+5] != 32 || body[0] != 136 {
		t.Fatalf("advertisement %x", na)
	}
	// Over all of it, with the checksum in, the sum is nothing.
	pseudo := append(append([]byte{}, na[14+8:14+40]...), 0, 0, 0, 32, 0, 0, 0, 58)
	if sum := checksum(append(pseudo, body...)); sum != 0 {
		t.Errorf("checksum %#x", sum)
	}
}

func TestWithoutAttribute(t *testing.T) {
	head := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	one, two := []byte{5, 0, 8, 0, 9, 0, 0, 0}, []byte{8, 0, 1, 0, 1, 2, 3, 4}
	m := append(append(append([]byte{}, head...), one...), two...)
	if got := withoutAttribute(m, 8, 8); !reflect.DeepEqual(got, append(append([]byte{}, head...), two...)) {
		t.Errorf("got %v", got)
	}
	for _, odd := range [][]byte{head, append(append([]byte{}, head...), 0, 0, 0, 0), append(append([]byte{}, head...), 200, 0, 1, 0)} {
		withoutAttribute(odd, 8, 1) // does not hang, does not fall over
	}
}
