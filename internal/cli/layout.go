package cli

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const tarBlock = 512

// eachLayoutFile visits the plain files of a directory in a fixed order; an image layout holds nothing else.
func eachLayoutFile(dir string, do func(path, name string, info fs.FileInfo) error) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("%s is no plain file", path)
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return do(path, filepath.ToSlash(name), info)
	})
}

// layoutSize is the size of the tar that writeLayout makes, as far as names are short: for the progress.
func layoutSize(dir string) (int64, error) {
	size := int64(2 * tarBlock)
	err := eachLayoutFile(dir, func(_, _ string, info fs.FileInfo) error {
		size += tarBlock + (info.Size()+tarBlock-1)/tarBlock*tarBlock
		return nil
	})
	return size, err
}

// writeLayout writes the directory as a tar.
func writeLayout(dir string, w io.Writer) error {
	tw := tar.NewWriter(w)
	err := eachLayoutFile(dir, func(path, name string, info fs.FileInfo) error {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: info.Size(), Mode: 0o644}); err != nil {
			return err
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		_, err = io.Copy(tw, file)
		return err
	})
	if err != nil {
		return err
	}
	return tw.Close()
}
