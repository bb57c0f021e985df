package cli

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"path"
	"strconv"
	"strings"

	"polder/api"
	"polder/client"
)

// veSide is a running VE, reached by exec of its own sh and tar.
type veSide struct {
	client *client.Client
	ve     string
	warn   func(string)
}

// lookScript prints what is at $1 (with $2 the directory it is or would be in): kind, size, and the path behind links.
const lookScript = `if [ -d "$1" ]; then echo directory
elif [ -e "$1" ]; then echo file
elif [ -d "$2" ]; then echo absent; exit
else echo nowhere; exit
fi
if [ -d "$1" ]; then du -sb "$1" 2>/dev/null | cut -f1; else stat -L -c %s "$1" 2>/dev/null; fi || :
echo "@$(readlink -f "$1")"`

// tailLimit is how much of a command's errors is kept: the end says what went wrong.
const tailLimit = 2048

func (v *veSide) look(ctx context.Context, p string) (found, error) {
	clean := path.Clean(p)
	var out limitedBuffer
	err := v.run(ctx, []string{"sh", "-c", lookScript, "sh", clean, path.Dir(clean)}, nil, &out)
	if err != nil {
		return found{}, err
	}
	f := parseLook(out.String())
	if f.path == "" {
		f.path = clean
	}
	return f, nil
}

// parseLook reads what lookScript printed; size and path may be missing.
func parseLook(text string) found {
	kind, rest, _ := strings.Cut(text, "\n")
	f := found{exists: kind == "directory" || kind == "file", dir: kind == "directory"}
	f.hasParent = f.exists || kind == "absent"
	size, link, ok := strings.Cut(rest, "@")
	if n, err := strconv.ParseInt(strings.TrimSpace(size), 10, 64); err == nil && n > 0 {
		f.size = n
	}
	if link = strings.TrimSuffix(link, "\n"); ok && path.IsAbs(link) {
		f.path = link
	}
	return f
}

func (v *veSide) send(ctx context.Context, p string, dir bool, w io.Writer) error {
	command := []string{"tar", "-c", "-f", "-", "-C", path.Dir(p), "--", "./" + path.Base(p)}
	if dir {
		command = []string{"tar", "-c", "-f", "-", "-C", p, "."}
	}
	err := v.run(ctx, command, nil, w)
	var status *remoteStatus
	if errors.As(err, &status) && status.code == 1 {
		v.warn(status.Error()) // tar's way to say that a file changed while it was read
		return nil
	}
	return err
}

func (v *veSide) receive(ctx context.Context, t target, dir bool, r io.Reader) error {
	pr, pw := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := v.repack(t, dir, r, pw)
		pw.CloseWithError(err)
		packed <- err
	}()
	err := v.run(ctx, []string{"tar", "-x", "-f", "-", "-C", t.dir}, pr, io.Discard)
	pr.CloseWithError(errors.Join(errStopped, err))
	if packErr := <-packed; packErr != nil && !errors.Is(packErr, errStopped) {
		return packErr
	}
	return err
}

// repack gives the entries their names at the destination.
func (v *veSide) repack(t target, dir bool, r io.Reader, w io.Writer) error {
	tw := tar.NewWriter(w)
	err := eachEntry(r, dir, func(name string, h *tar.Header, content io.Reader) error {
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeDir, tar.TypeSymlink:
		case tar.TypeLink:
			old, err := entryName(h.Linkname)
			if err != nil {
				return err
			}
			h.Linkname = "./" + path.Join(t.name, old)
		default:
			v.warn("left out: " + name + " is neither a file, a directory nor a link")
			return nil
		}
		h.Name = "./" + path.Join(t.name, name) // a name may begin with a hyphen
		if h.Typeflag == tar.TypeDir {
			h.Name += "/"
		}
		h.Format, h.PAXRecords, h.AccessTime, h.ChangeTime = tar.FormatGNU, nil, h.ModTime, h.ModTime
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		_, err := io.Copy(tw, content)
		return err
	})
	return errors.Join(err, tw.Close())
}

// remoteStatus is a command in the VE that ended with a code other than 0.
type remoteStatus struct {
	ve, command string
	code        int
	stderr      string
}

func (e *remoteStatus) Error() string {
	text := e.command + " in " + e.ve + ": exit status " + strconv.Itoa(e.code)
	if e.stderr != "" {
		text += ": " + e.stderr
	}
	return text
}

// run runs a command in the VE.
func (v *veSide) run(ctx context.Context, command []string, stdin io.Reader, stdout io.Writer) error {
	var stderr tailBuffer
	code, err := v.client.Exec(ctx, v.ve, api.ExecRequest{Command: command}, client.Streams{Stdin: stdin, Stdout: stdout, Stderr: &stderr})
	switch {
	case err != nil:
		return err
	case code == 126 || code == 127:
		return api.Errorf(api.Unsupported, "cp: %s has no %s that runs, which cp needs: %s", v.ve, command[0], stderr.text())
	case code != 0:
		status := &remoteStatus{v.ve, command[0], code, stderr.text()}
		return api.Errorf(api.Internal, "cp: %w", status)
	}
	return nil
}

// limitedBuffer keeps the beginning of what is written.
type limitedBuffer struct{ bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.Buffer.Write(p[:min(len(p), max(0, 64<<10-b.Len()))])
	return len(p), nil
}

// tailBuffer keeps the end of what is written.
type tailBuffer struct{ data []byte }

func (b *tailBuffer) Write(p []byte) (int, error) {
	b.data = append(b.data, p...)
	if over := len(b.data) - tailLimit; over > 0 {
		b.data = append([]byte(nil), b.data[over:]...)
	}
	return len(p), nil
}

func (b *tailBuffer) text() string { return strings.TrimSpace(string(b.data)) }
