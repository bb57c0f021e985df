package container

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/criu"
)

// sendImages sends the image files in a directory, but those to be skipped. Memory is not among them.
func sendImages(dir string, out *frameWriter, skip func(name string) bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	buffer := make([]byte, chunkSize)
	for _, entry := range entries {
		if name := entry.Name(); imageName.MatchString(name) && !skip(name) {
			if err := sendImage(dir, name, out, buffer); err != nil {
				return fmt.Errorf("send image %s: %w", name, err)
			}
		}
	}
	return nil
}

func sendImage(dir, name string, out *frameWriter, buffer []byte) error {
	file, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer file.Close()
	for offset := int64(0); ; {
		n, err := io.ReadFull(file, buffer)
		if n > 0 || offset == 0 {
			if err := out.write(frameImage, name, offset, buffer[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		} else if err != nil {
			return err
		}
		offset += int64(n)
	}
}

// imageWriter writes what the source has sent: images, and memory.
type imageWriter struct {
	dir    string
	memory *criu.Memories
}

func newImageWriter(dir string) (*imageWriter, error) {
	memory, err := criu.NewMemories(dir)
	return &imageWriter{dir: dir, memory: memory}, err
}

func (w *imageWriter) write(f frame) error {
	if f.kind == frameImage {
		return w.image(f)
	}
	name, err := criu.ParseMemory(f.name)
	if err != nil {
		return err
	}
	if f.kind == framePages {
		return w.memory.Write(name, uint64(f.offset), f.data)
	}
	numbers := make([]uint64, len(f.data)/8)
	for i := range numbers {
		numbers[i] = binary.BigEndian.Uint64(f.data[8*i:])
	}
	if f.kind == frameZeros && len(numbers) == 1 {
		return w.memory.Zero(name, criu.Run{Addr: uint64(f.offset), Pages: numbers[0]})
	}
	if f.kind == frameZeros || len(numbers)%2 != 0 {
		return api.Errorf(api.Invalid, "move: frame of kind %d with %d numbers", f.kind, len(numbers))
	}
	runs := make([]criu.Run, len(numbers)/2)
	for i := range runs {
		runs[i] = criu.Run{Addr: numbers[2*i], Pages: numbers[2*i+1]}
	}
	return w.memory.Has(name, runs, f.kind == frameApart)
}

func (w *imageWriter) image(f frame) error {
	file, err := os.OpenFile(filepath.Join(w.dir, f.name), os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.WriteAt(f.data, f.offset); errors.Is(err, unix.ENOSPC) {
		return api.Errorf(api.Exhausted, "no memory for the VE's images: %w", err)
	} else if err != nil {
		return err
	}
	return nil
}
