package criu

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"google.golang.org/protobuf/proto"

	"polder/api"
)

// MendExecutables changes the images in dir so that a process finds its program although another one has the same file open as
// a mere path (O_PATH), as systemd has its executor. criu takes the two for one, restores the program's descriptor as a path,
// too, and the kernel refuses that: "PR_SET_MM_MAP failed with -9". Such programs get an entry of their own.
func MendExecutables(dir string) error {
	path := filepath.Join(dir, "files.img")
	image, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	files, err := readFiles(image)
	if err != nil {
		return api.Errorf(api.Invalid, "%s: %w", path, err)
	}
	if len(files.paths) == 0 {
		return nil
	}
	processes, err := filepath.Glob(filepath.Join(dir, "mm-*.img"))
	if err != nil {
		return err
	}
	for _, process := range processes {
		if err := files.mend(process); err != nil {
			return api.Errorf(api.Invalid, "%s: %w", process, err)
		}
	}
	return os.WriteFile(path, compose(filesMagic, files.records), 0o644)
}

// files are the open files of all processes.
type files struct {
	records [][]byte
	paths   map[uint32]*fdinfo.FileEntry // those open as paths, by id
	own     map[uint32]uint32            // the id of the program's own entry, for those that are programs too
	next    uint32                       // id that no file has
}

func readFiles(image []byte) (*files, error) {
	all, err := records(image, filesMagic)
	if err != nil {
		return nil, err
	}
	f := &files{records: all, paths: map[uint32]*fdinfo.FileEntry{}, own: map[uint32]uint32{}}
	for _, record := range all {
		var entry fdinfo.FileEntry
		if err := proto.Unmarshal(record, &entry); err != nil {
			return nil, err
		}
		f.next = max(f.next, entry.GetId()+1)
		if entry.GetType() == fdinfo.FdTypes_REG && entry.GetReg().GetFlags()&unix.O_PATH != 0 {
			f.paths[entry.GetId()] = &entry
		}
	}
	return f, nil
}

// mend gives a process whose program is one of the paths an entry to open it by.
func (f *files) mend(process string) error {
	image, err := os.ReadFile(process)
	if err != nil {
		return err
	}
	all, err := records(image, mmMagic)
	if err != nil || len(all) != 1 {
		return fmt.Errorf("%d records: %w", len(all), err)
	}
	var memory mm.MmEntry
	if err := proto.Unmarshal(all[0], &memory); err != nil {
		return err
	}
	path := f.paths[memory.GetExeFileId()]
	if path == nil {
		return nil
	}
	id, err := f.program(path)
	if err != nil {
		return err
	}
	memory.ExeFileId = proto.Uint32(id)
	record, err := proto.Marshal(&memory)
	if err != nil {
		return err
	}
	return os.WriteFile(process, compose(mmMagic, [][]byte{record}), 0o644)
}

// program is the entry of a path's file as a program.
func (f *files) program(path *fdinfo.FileEntry) (id uint32, err error) {
	if id, ok := f.own[path.GetId()]; ok {
		return id, nil
	}
	entry := proto.CloneOf(path)
	entry.Id, entry.Reg.Id = proto.Uint32(f.next), proto.Uint32(f.next)
	entry.Reg.Flags, entry.Reg.Pos = proto.Uint32(unix.O_RDONLY), proto.Uint64(0)
	record, err := proto.Marshal(entry)
	if err != nil {
		return 0, err
	}
	f.records = append(f.records, record)
	f.own[path.GetId()] = f.next
	f.next++
	return f.next - 1, nil
}
