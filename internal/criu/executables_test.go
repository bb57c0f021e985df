package criu

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"google.golang.org/protobuf/proto"
)

// encoded is a record.
func encoded(t *testing.T, m proto.Message) []byte {
	t.Helper()
	record, err := proto.MarshalOptions{AllowPartial: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return record
}

func regular(id, flags uint32, name string) *fdinfo.FileEntry {
	none := &fown.FownEntry{Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0)}
	return &fdinfo.FileEntry{
		Type: fdinfo.FdTypes_REG.Enum(), Id: proto.Uint32(id),
		Reg: &regfile.RegFileEntry{Id: proto.Uint32(id), Flags: proto.Uint32(flags), Pos: proto.Uint64(0), Fown: none, Name: proto.String(name)},
	}
}

// programOf is a process's memory whose program is the file id.
func programOf(id uint32) *mm.MmEntry {
	entry := &mm.MmEntry{ExeFileId: proto.Uint32(id)}
	for _, field := range []**uint64{
		&entry.MmStartCode, &entry.MmEndCode, &entry.MmStartData, &entry.MmEndData, &entry.MmStartStack, &entry.MmStartBrk,
		&entry.MmBrk, &entry.MmArgStart, &entry.MmArgEnd, &entry.MmEnvStart, &entry.MmEnvEnd,
	} {
		*field = proto.Uint64(0)
	}
	return entry
}

func TestMendExecutables(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, magic uint32, all ...[]byte) {
		if err := os.WriteFile(filepath.Join(dir, name), compose(magic, all), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("files.img", filesMagic, encoded(t, regular(3, unix.O_PATH, "/usr/lib/systemd/systemd-executor")), encoded(t, regular(7, 0, "/bin/sh")))
	for pid, program := range map[string]uint32{"1": 7, "211": 3, "212": 3} {
		write("mm-"+pid+".img", mmMagic, encoded(t, programOf(program)))
	}
	// What is mended already stays as it is.
	for range 2 {
		if err := MendExecutables(dir); err != nil {
			t.Fatal(err)
		}
		image, _ := os.ReadFile(filepath.Join(dir, "files.img"))
		all, err := records(image, filesMagic)
		if err != nil || len(all) != 3 {
			t.Fatalf("%d files (%v), want one more than the two", len(all), err)
		}
		var added fdinfo.FileEntry
		if err := proto.Unmarshal(all[2], &added); err != nil {
			t.Fatal(err)
		}
		if added.GetId() != 8 || added.GetReg().GetId() != 8 || added.GetReg().GetFlags() != 0 || added.GetReg().GetName() != "/usr/lib/systemd/systemd-executor" {
			t.Errorf("added %v", &added)
		}
		for pid, want := range map[string]uint32{"1": 7, "211": 8, "212": 8} {
			image, _ := os.ReadFile(filepath.Join(dir, "mm-"+pid+".img"))
			all, err := records(image, mmMagic)
			if err != nil {
				t.Fatal(err)
			}
			var memory mm.MmEntry
			if err := proto.Unmarshal(all[0], &memory); err != nil {
				t.Fatal(err)
			}
			if memory.GetExeFileId() != want {
				t.Errorf("process %s has program %d, want %d", pid, memory.GetExeFileId(), want)
			}
		}
	}
}

func FuzzFiles(f *testing.F) {
	f.Add(compose(filesMagic, [][]byte{{1, 2, 3}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		if found, err := readFiles(data); err == nil && len(found.paths) > len(found.records) {
			t.Error("there are more paths than files")
		}
	})
}
