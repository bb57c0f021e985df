package criu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/cgroup"
	"google.golang.org/protobuf/proto"

	"polder/api"
)

// MoveGroups changes the images in dir so that what was in the control group from, or below it, is restored in to. criu itself
// can do that only for groups that it was told to restore too.
func MoveGroups(dir, from, to string) error {
	path := filepath.Join(dir, "cgroup.img")
	image, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || from == to {
		return nil // all were in criu's own
	} else if err != nil {
		return err
	}
	changed, err := moveGroups(image, from, to)
	if err != nil {
		return api.Errorf(api.Invalid, "%s: %w", path, err)
	}
	return os.WriteFile(path, changed, 0o644)
}

func moveGroups(image []byte, from, to string) ([]byte, error) {
	found, err := records(image, cgroupMagic)
	if err != nil {
		return nil, err
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%d records, want one", len(found))
	}
	var all cgroup.CgroupEntry
	if err := proto.Unmarshal(found[0], &all); err != nil {
		return nil, err
	}
	for _, set := range all.GetSets() {
		for _, member := range set.GetCtls() {
			below, ok := strings.CutPrefix(member.GetPath(), from)
			if !ok || below != "" && below[0] != '/' {
				continue
			}
			member.Path = proto.String(to + below)
			if member.CgnsPrefix != nil && int(member.GetCgnsPrefix()) == len(from) {
				member.CgnsPrefix = proto.Uint32(uint32(len(to)))
			}
		}
	}
	record, err := proto.Marshal(&all)
	if err != nil {
		return nil, err
	}
	return compose(cgroupMagic, [][]byte{record}), nil
}
