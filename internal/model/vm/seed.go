package vm

import (
	"errors"
	"fmt"
	"os"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"

	"polder/internal/model"
)

// isoBlock is the logical block size of ISO 9660, in bytes.
const isoBlock = 2048

// writeSeed makes the disk that cloud-init's NoCloud source reads: it goes by the label, "cidata". User-data holds
// secrets: nobody but the VE's user may read it.
func writeSeed(ve model.Spec) error {
	if ve.CloudInit.UserData == "" {
		return nil
	}
	path := seedFile(ve)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	err = fillSeed(f, map[string]string{
		"user-data":      ve.CloudInit.UserData,
		"meta-data":      ve.CloudInit.MetaData,
		"network-config": ve.CloudInit.NetworkConfig,
	})
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(path+".new", path)
}

func fillSeed(f *os.File, files map[string]string) error {
	work, err := os.MkdirTemp("", "polder-seed-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	iso, err := iso9660.Create(file.New(f, false), 0, 0, isoBlock, work)
	if err != nil {
		return err
	}
	for name, text := range files {
		if text == "" && name == "network-config" {
			continue // an empty one would configure no network
		}
		w, err := iso.OpenFile("/"+name, os.O_CREATE|os.O_RDWR)
		if err != nil {
			return err
		}
		_, err = w.Write([]byte(text))
		if err := errors.Join(err, w.Close()); err != nil {
			return err
		}
	}
	if err := iso.Finalize(iso9660.FinalizeOptions{RockRidge: true, Joliet: true, VolumeIdentifier: "cidata"}); err != nil {
		return err
	}
	// The last block is written as far as it is used only; a disk of that size would cut it off.
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return f.Truncate((info.Size() + isoBlock - 1) / isoBlock * isoBlock)
}
