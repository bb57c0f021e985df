package image

import (
	"context"
	"encoding/binary"
	"io"
	"os"

	"polder/api"
	"polder/internal/command"
)

// squashTar gives the content of a squashfs file as a tar archive, so that it passes the same checks as one. Closing the result stops
// the tool that reads it; it runs with little memory and without seeing anything but the file.
func squashTar(ctx context.Context, path string) (io.ReadCloser, error) {
	if _, err := command.Find("sqfs2tar"); err != nil {
		return nil, err
	}
	if err := checkSquash(path); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	out, in := io.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, err := command.Command{
			Name: "prlimit", Args: []string{"--as=" + toolMemory, "--nofile=64", "--nproc=64", "--core=0", "sqfs2tar", "--root-becomes", ".", path}, Stdout: in,
		}.Run(ctx)
		if err != nil && ctx.Err() == nil {
			err = api.Errorf(api.Invalid, "the squashfs is damaged: %w", err)
		}
		in.CloseWithError(err)
	}()
	return &squashReader{PipeReader: out, stop: func() {
		stop()
		out.CloseWithError(context.Canceled)
		<-ended
	}}, nil
}

// toolMemory is the address space of a tool that reads files from outside.
const toolMemory = "2147483648"

type squashReader struct {
	*io.PipeReader
	stop func()
}

func (s *squashReader) Close() error {
	s.stop()
	return nil
}

// checkSquash compares the size in the superblock (bytes 40 to 48) to the file's.
func checkSquash(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, 96)
	if _, err := io.ReadFull(f, head); err != nil {
		return api.Errorf(api.Invalid, "the squashfs is truncated")
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if used := binary.LittleEndian.Uint64(head[40:]); used > uint64(info.Size()) {
		return api.Errorf(api.Invalid, "the squashfs is truncated: it has %d bytes of %d", info.Size(), used)
	}
	return nil
}
