package criu

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fh"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fsnotify"
	"google.golang.org/protobuf/proto"

	"polder/api"
)

// watching is an inotify with one watch of the inode; path "": criu has found none.
func watching(inode uint64, path string) *fdinfo.FileEntry {
	handle := &fh.FhEntry{Bytes: proto.Uint32(8), Type: proto.Uint32(1)}
	if path != "" {
		handle.Path = proto.String(path)
	}
	none := &fown.FownEntry{Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0)}
	return &fdinfo.FileEntry{
		Type: fdinfo.FdTypes_INOTIFY.Enum(), Id: proto.Uint32(1),
		Ify: &fsnotify.InotifyFileEntry{Id: proto.Uint32(1), Flags: proto.Uint32(0), Fown: none, Wd: []*fsnotify.InotifyWdEntry{{
			Id: proto.Uint32(1), IIno: proto.Uint64(inode), Mask: proto.Uint32(4), IgnoredMask: proto.Uint32(0), SDev: proto.Uint32(1), Wd: proto.Uint32(1), FHandle: handle,
		}}},
	}
}

func TestMendWatches(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "files.img")
	write := func(entries ...*fdinfo.FileEntry) {
		var all [][]byte
		for _, entry := range entries {
			all = append(all, encoded(t, entry))
		}
		if err := os.WriteFile(file, compose(filesMagic, all), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(regular(7, 0, "/bin/sh"), watching(5, "/etc"), watching(6, ""))
	if err := MendWatches(dir, map[uint64]string{5: "/not", 6: "/etc/localtime"}); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all, err := records(image, filesMagic)
	if err != nil || len(all) != 3 {
		t.Fatalf("%d records: %v", len(all), err)
	}
	for i, want := range []string{"", "/etc", "/etc/localtime"} {
		var entry fdinfo.FileEntry
		if err := proto.Unmarshal(all[i], &entry); err != nil {
			t.Fatal(err)
		}
		for _, watch := range entry.GetIfy().GetWd() {
			if got := watch.GetFHandle().GetPath(); got != want {
				t.Errorf("record %d watches %q, want %q", i, got, want)
			}
		}
	}
	write(watching(8, ""))
	if err := MendWatches(dir, map[uint64]string{6: "/etc/localtime"}); api.KindOf(err) != api.Precondition {
		t.Errorf("a watch of no name: %v", err)
	}
}
