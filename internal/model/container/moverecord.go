package container

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"polder/internal/model"
)

// moveRecord is there from the moment at which a move lays hands on a VE until it goes on: what any daemon needs to let it go
// on, or to tell that it stands still for a move and was not paused by anybody.
type moveRecord struct {
	Version int  `json:"version"`
	Paused  bool `json:"paused"` // it was paused before the move, and stays so
	// Arrived: it was received here, and has not gone on yet.
	Arrived bool `json:"arrived"`
}

func moveFile(ve model.Spec) string { return filepath.Join(bundleDir(ve), "move.json") }

func writeMove(ve model.Spec, r moveRecord) error {
	r.Version = moveVersion
	content, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return replaceFile(moveFile(ve), content)
}

// readMove gives the record; ok is false when the VE is not being moved.
func readMove(ve model.Spec) (r moveRecord, ok bool) {
	content, err := os.ReadFile(moveFile(ve))
	if err != nil || json.Unmarshal(content, &r) != nil {
		return moveRecord{}, false
	}
	return r, true
}

func forgetMove(ve model.Spec) error {
	if err := os.Remove(moveFile(ve)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// imagesDir has the images of a VE that is on its way.
func imagesDir(ve model.Spec) string { return filepath.Join(bundleDir(ve), "images") }

// mountImages makes an empty directory for images, in memory.
func mountImages(ve model.Spec) (dir string, err error) {
	if err := unmountImages(ve); err != nil {
		return "", err
	}
	dir = imagesDir(ve)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	// What CRIU makes in the VE's user namespace reads them too, as nobody in particular, and without walking here. No limit of its own: what is not there is missing for the VE's memory just as well.
	if err := unix.Mount("polder", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755,size=100%,huge=never"); err != nil {
		return "", errors.Join(err, os.Remove(dir))
	}
	return dir, nil
}

func unmountImages(ve model.Spec) error {
	if err := unmount(imagesDir(ve)); err != nil {
		return err
	}
	if err := os.Remove(imagesDir(ve)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// moverOf is the control group that criu runs in, beside the VE's own: freezing the VE must not stop it, and whoever tidies up
// finds it.
func moverOf(ve model.Spec) cgroup { return cgroupOf(ve) + ".move" }

// openMover makes the group and opens it for a new process.
func openMover(ve model.Spec) (*os.File, error) {
	if err := os.MkdirAll(string(moverOf(ve)), 0o755); err != nil {
		return nil, err
	}
	return os.Open(string(moverOf(ve)))
}
