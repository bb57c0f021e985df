package criu

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/cgroup"
	"google.golang.org/protobuf/proto"
)

func TestComplaints(t *testing.T) {
	for _, c := range []struct{ name, log, want string }{
		{"nothing", "(00.000001) Version: 4.2.1\n", ""},
		{
			"place is left out", "(00.031337) Error (criu/files.c:1234): Can't dump file 7 of that type [20660]\n(00.04) Error (criu/cr-dump.c:2111): Dumping FAILED.\n",
			"Can't dump file 7 of that type [20660]; Dumping FAILED.",
		},
		{"harmless ones", "(00.1) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n(00.2) Error (criu/util.c:1723): iptables-save -V failed\n", ""},
		{"tools that it does without", "Error (criu/util.c:641): execvp(\"ip6tables-restore\", ...) failed: No such file or directory\nError (a.c:1): a\n", "a"},
		{"of a process", "(00.142368)      1: Error (criu/files-reg.c:2267): Can't open file fd/1: Permission denied\n", "Can't open file fd/1: Permission denied"},
		{"repeated", "Error (a.c:1): x\nError (a.c:1): x\n", "x"},
		{"many", "Error (a.c:1): a\nError (a.c:1): b\nError (a.c:1): c\nError (a.c:1): d\nError (a.c:1): e\n", "a; b; c; … (2 more)"},
		{"not text", "Error (a.c:1): \xff\xfe\n", "?"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Complaints([]byte(c.log)); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func image(t *testing.T, e *cgroup.CgroupEntry) []byte {
	t.Helper()
	record, err := proto.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	head := binary.LittleEndian.AppendUint32(nil, imageMagic)
	head = binary.LittleEndian.AppendUint32(head, cgroupMagic)
	return append(binary.LittleEndian.AppendUint32(head, uint32(len(record))), record...)
}

func TestMoveGroups(t *testing.T) {
	member := func(path string, prefix uint32) *cgroup.CgMemberEntry {
		return &cgroup.CgMemberEntry{Name: proto.String(""), Path: proto.String(path), CgnsPrefix: proto.Uint32(prefix)}
	}
	set := func(members ...*cgroup.CgMemberEntry) *cgroup.CgroupEntry {
		return &cgroup.CgroupEntry{Sets: []*cgroup.CgSetEntry{{Id: proto.Uint32(1), Ctls: members}}}
	}
	got, err := moveGroups(image(t, set(member("/a/b", 4), member("/a/b/init.scope", 4), member("/a/bc", 1), member("/else", 1))), "/a/b", "/somewhere/b")
	if err != nil {
		t.Fatal(err)
	}
	want := image(t, set(member("/somewhere/b", 12), member("/somewhere/b/init.scope", 12), member("/a/bc", 1), member("/else", 1)))
	if !bytes.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzMoveGroups(f *testing.F) {
	f.Add([]byte("\x19\x43\x56\x54\x30\x83\x38\x59\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if changed, err := moveGroups(bytes.Clone(data), "/a", "/b"); err == nil && len(changed) < 12 {
			t.Error("it became no image")
		}
	})
}

func FuzzComplaints(f *testing.F) {
	f.Add([]byte("(00.031337) Error (criu/files.c:1234): x\n"))
	f.Fuzz(func(t *testing.T, log []byte) {
		if got := Complaints(log); strings.ContainsRune(got, '\n') {
			t.Errorf("%q has more than one line", got)
		}
	})
}
