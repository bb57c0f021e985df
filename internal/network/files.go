package network

import (
	"bytes"
	"errors"
	"os"
)

// writeFile replaces a file as a whole. Its content may be read by dnsmasq's user; there is nothing secret in it. It is
// not synced: all of it can be rendered again.
func writeFile(path string, content []byte) error {
	next := path + ".next"
	if err := os.WriteFile(next, content, 0o644); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// hasContent says whether a file is there with just this content.
func hasContent(path string, content []byte) bool {
	text, err := os.ReadFile(path)
	return err == nil && bytes.Equal(text, content)
}

// removeFile removes a file; one that is not there is no error.
func removeFile(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
