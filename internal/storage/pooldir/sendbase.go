package pooldir

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"polder/api"
	"polder/internal/storage"
)

// sentBase is the line of JSON that SendBase begins with.
type sentBase struct {
	Version int          `json:"v"`
	Kind    storage.Kind `json:"kind"`
	Origin  string       `json:"origin"`
}

// streamVersion is that of what this package writes into streams; drivers have their own.
const streamVersion = 1

// BaseOrigin is storage.Sender's.
func (p *Pool) BaseOrigin(ctx context.Context, id string, kind storage.Kind) (string, error) {
	payload, err := p.Base(ctx, id, kind)
	if api.KindOf(err) == api.NotFound {
		return "", nil
	} else if err != nil {
		return "", err
	}
	dir := filepath.Dir(payload)
	meta, err := ReadMeta(dir)
	if err != nil || meta.Origin != "" {
		return meta.Origin, err
	}
	// Made by a release that had no origins.
	release, err := p.locks.acquire(ctx, dir)
	if err != nil {
		return "", err
	}
	defer release()
	if meta, err = ReadMeta(dir); err != nil || meta.Origin != "" {
		return meta.Origin, err
	}
	meta.Origin = rand.Text()
	return meta.Origin, WriteMeta(dir, meta)
}

// SendBase is storage.Sender's.
func (p *Pool) SendBase(ctx context.Context, id string, kind storage.Kind, w io.Writer) error {
	path, err := p.Base(ctx, id, kind)
	if err != nil {
		return err
	}
	origin, err := p.BaseOrigin(ctx, id, kind)
	if err == nil {
		err = writeLine(w, sentBase{Version: streamVersion, Kind: kind, Origin: origin})
	}
	if err == nil && kind == storage.Tree {
		err = p.driver.SendBaseTree(ctx, path, w)
	} else if err == nil {
		err = sendWhole(ctx, path, w)
	}
	if err != nil {
		return fmt.Errorf("send base %s of pool %q: %w", id, p.name, err)
	}
	return nil
}

// ReceiveBase is storage.Sender's.
func (p *Pool) ReceiveBase(ctx context.Context, id string, kind storage.Kind, r io.Reader) error {
	if _, err := p.Base(ctx, id, kind); err == nil {
		_, err := io.Copy(io.Discard, r)
		return err
	}
	in := bufio.NewReaderSize(r, 256<<10)
	var head sentBase
	if err := readLine(in, &head); err != nil {
		return fmt.Errorf("receive base %s in pool %q: %w", id, p.name, err)
	}
	if head.Version != streamVersion || head.Kind != kind || head.Origin == "" || len(head.Origin) > 100 {
		return api.Errorf(api.Invalid, "receive base %s in pool %q: what comes is %+v, not a %s of version %d", id, p.name, head, kind, streamVersion)
	}
	return p.addBase(ctx, id, kind, head.Origin, func(ctx context.Context, path string) error {
		var err error
		if kind == storage.Tree {
			err = p.driver.ReceiveBaseTree(ctx, path, in)
		} else {
			err = receiveWhole(ctx, path, in)
		}
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, in)
		return err
	})
}

// Bases is storage.Pool's.
func (p *Pool) Bases(context.Context) ([]storage.Base, error) {
	names, err := p.names("bases")
	if err != nil {
		return nil, err
	}
	var list []storage.Base
	for _, name := range names {
		kind := storage.Kind(filepath.Ext(name))
		if kind == "" || payloadIn(filepath.Join(p.path, "bases", name)) == "" {
			continue
		}
		list = append(list, storage.Base{ID: idOf(name[:len(name)-len(kind)]), Kind: kind[1:]})
	}
	return list, nil
}

// longestLine of JSON in a stream.
const longestLine = 64 << 10

func writeLine(w io.Writer, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

// readLine reads a line of JSON; r has room for longestLine.
func readLine(r *bufio.Reader, v any) error {
	text, err := r.ReadSlice('\n')
	if err != nil {
		return CutOff(err)
	}
	if len(text) > longestLine {
		return api.Errorf(api.Invalid, "a line of %d bytes in the stream", len(text))
	}
	if err := json.Unmarshal(text, v); err != nil {
		return api.Errorf(api.Invalid, "the stream is not one of ours: %w", err)
	}
	return nil
}

// CutOff is the error of a stream that ends too soon, or could not be read.
func CutOff(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return api.Errorf(api.Unavailable, "the stream was cut off: %w", err)
}

func sendWhole(ctx context.Context, path string, w io.Writer) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	out := newBlockWriter(ctx, w)
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if err := out.head(diskHead{Format: "raw", Size: size}); err != nil {
		return err
	}
	if err := out.data(f, span{0, size}); err != nil {
		return err
	}
	return out.end()
}

func receiveWhole(ctx context.Context, path string, in *bufio.Reader) error {
	f, err := createDisk(path, false)
	if err != nil {
		return err
	}
	defer f.Close()
	var head diskHead
	if err := readLine(in, &head); err != nil {
		return err
	}
	return readBlocks(ctx, in, f, head)
}
