package criu

import (
	"os"
	"path/filepath"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"google.golang.org/protobuf/proto"

	"polder/api"
)

// MendWatches changes the images in dir so that watches (inotify) that criu has found no path for get the one that names has for
// their inode. criu writes such a watch down by a file handle, which means nothing on another host. A watch that is in no names is
// an error. criu follows a path that is a link.
func MendWatches(dir string, names map[uint64]string) error {
	path := filepath.Join(dir, "files.img")
	image, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	all, err := records(image, filesMagic)
	if err != nil {
		return api.Errorf(api.Invalid, "%s: %w", path, err)
	}
	mended := false
	for i, record := range all {
		var entry fdinfo.FileEntry
		if err := proto.Unmarshal(record, &entry); err != nil {
			return api.Errorf(api.Invalid, "%s: %w", path, err)
		}
		changed, err := nameWatches(&entry, names)
		if err != nil {
			return err
		}
		if changed {
			mended = true
			if all[i], err = proto.Marshal(&entry); err != nil {
				return err
			}
		}
	}
	if !mended {
		return nil
	}
	return os.WriteFile(path, compose(filesMagic, all), 0o644)
}

func nameWatches(entry *fdinfo.FileEntry, names map[uint64]string) (changed bool, err error) {
	for _, watch := range entry.GetIfy().GetWd() {
		if watch.GetFHandle().GetPath() != "" {
			continue
		}
		name, known := names[watch.GetIIno()]
		if !known || watch.FHandle == nil {
			return false, noPath(entry, watch.GetIIno())
		}
		watch.FHandle.Path = proto.String(name)
		changed = true
	}
	for _, mark := range entry.GetFfy().GetMark() {
		if mark.GetIe() != nil && mark.GetIe().GetFHandle().GetPath() == "" {
			return false, noPath(entry, mark.GetIe().GetIIno())
		}
	}
	return changed, nil
}

func noPath(entry *fdinfo.FileEntry, inode uint64) error {
	return api.Errorf(api.Precondition, "a process watches a file (%s, inode %d) that has no name, or is a link: let it end its watch", entry.GetType(), inode)
}
