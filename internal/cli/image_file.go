package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"polder/api"
	"polder/client"
)

func newImageImportCommand(a *app) *cobra.Command {
	var req api.ImageImportRequest
	var format string
	var w waiting
	cmd := &cobra.Command{
		Use:   "import FILE|DIR ALIAS",
		Short: "Make an image of a root tar, a squashfs, a disk or an OCI image layout",
		Long:  "Make an image of a root tar (plain, gzip, xz or zstd), a squashfs, a bootable disk (qcow2 or raw) or an OCI image layout (a directory, or a tar of one). FILE - is standard input.",
		Args:  args(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Alias, req.Format = args[1], api.ImageFormat(format)
			if err := oneOf("--format", format, "tar", "squashfs", "qcow2", "raw", "oci"); err != nil {
				return err
			}
			return a.importImage(cmd.Context(), req, args[0], w.wanted())
		},
	}
	cmd.Flags().StringVar(&req.Description, "description", "", "`TEXT` for people")
	cmd.Flags().StringVar(&format, "format", "", "`FORMAT`: tar, squashfs, qcow2, raw or oci (default: found out from the content)")
	completeWords(cmd, "format", "tar", "squashfs", "qcow2", "raw", "oci")
	w.flags(cmd)
	return cmd
}

func (a *app) importImage(ctx context.Context, req api.ImageImportRequest, path string, wait bool) error {
	up, err := a.openUpload(path)
	if err != nil {
		return err
	}
	defer up.content.Close()
	req.Filename, req.SizeBytes = up.name, api.Bytes(up.size)
	if up.layout {
		req.Format = api.FormatOCI
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	op, err := a.upload(ctx, c, req, up, wait)
	if err != nil {
		return err
	}
	if !wait {
		return a.showStarted(op)
	}
	return a.showMade(ctx, c, req.Alias)
}

// upload sends the file and follows the operation on the same line of progress.
func (a *app) upload(ctx context.Context, c *client.Client, req api.ImageImportRequest, up *upload, wait bool) (api.Operation, error) {
	p := a.newProgress()
	defer p.close()
	t := p.track("image import " + req.Alias)
	op, err := send(ctx, func() (api.Operation, error) {
		return c.ImportImage(ctx, req, t.reader(up.content, "upload", up.size))
	})
	if err != nil {
		t.done("")
		if ctx.Err() != nil {
			return op, api.Errorf(api.Cancelled, "image import %s: cancelled while the file was sent", req.Alias)
		}
		return op, err
	}
	if !wait {
		t.done("")
		return op, nil
	}
	return a.follow(ctx, c, t, op)
}

// sendGrace is how long a request that was given up may take to say so.
const sendGrace = time.Second

// send does a request whose body may come from something that stalls, such as a pipe: then the request does not end with ctx.
func send(ctx context.Context, request func() (api.Operation, error)) (api.Operation, error) {
	answers := make(chan ending, 1)
	go func() {
		op, err := request()
		answers <- ending{op, err}
	}()
	select {
	case end := <-answers:
		return end.op, end.err
	case <-ctx.Done():
	}
	select {
	case end := <-answers:
		return end.op, end.err
	case <-time.After(sendGrace):
		return api.Operation{}, ctx.Err()
	}
}

// upload is what is sent to make an image of.
type upload struct {
	content io.ReadCloser
	name    string
	size    int64 // 0: not known
	layout  bool  // a directory with an OCI layout
}

func (a *app) openUpload(path string) (*upload, error) {
	if path == "-" {
		return &upload{content: io.NopCloser(a.stdin), name: "standard input"}, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fileError("image import", err)
	}
	if info.IsDir() {
		return openLayout(path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fileError("image import", err)
	}
	up := &upload{content: file, name: filepath.Base(path)}
	if info.Mode().IsRegular() {
		up.size = info.Size()
	}
	if info.Mode().IsRegular() && up.size == 0 {
		file.Close()
		return nil, api.Errorf(api.Invalid, "image import: %s is empty", path)
	}
	return up, nil
}

// openLayout packs a directory as it is sent.
func openLayout(dir string) (*upload, error) {
	if _, err := os.Stat(filepath.Join(dir, "oci-layout")); err != nil {
		return nil, api.Errorf(api.Invalid, "image import: the directory %s is no OCI image layout: it has no file oci-layout; a root file system is imported as a tar", dir)
	}
	size, err := layoutSize(dir)
	if err != nil {
		return nil, fileError("image import", err)
	}
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(writeLayout(dir, pw)) }()
	return &upload{content: pr, name: filepath.Base(filepath.Clean(dir)), size: size, layout: true}, nil
}

func fileError(what string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return api.Errorf(api.NotFound, "%s: %w", what, err)
	}
	return api.Errorf(api.Invalid, "%s: %w", what, err)
}

func newImageExportCommand(a *app) *cobra.Command {
	var format string
	var force bool
	cmd := &cobra.Command{
		Use:   "export IMAGE FILE",
		Short: "Write an image to a file",
		Long:  "Write an image to a file; FILE - is standard output. The format follows the file's name (.tar, .squashfs, .qcow2, .raw or .img) unless it is given.",
		Args:  args(2, 2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return a.complete(a.imageAliases)(cmd, args, prefix)
			}
			return nil, cobra.ShellCompDirectiveDefault
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oneOf("--format", format, "tar", "squashfs", "qcow2", "raw", "oci"); err != nil {
				return err
			}
			if format == "" {
				format = formatOf(args[1])
			}
			return a.exportImage(cmd.Context(), args[0], api.ImageFormat(format), args[1], force)
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "`FORMAT`: tar, squashfs, qcow2, raw or oci (default: by the file's name, else tar)")
	cmd.Flags().BoolVar(&force, "force", false, "replace the file when it is there")
	completeWords(cmd, "format", "tar", "squashfs", "qcow2", "raw", "oci")
	return cmd
}

func formatOf(file string) string {
	switch strings.ToLower(filepath.Ext(file)) {
	case ".squashfs", ".sqfs":
		return "squashfs"
	case ".qcow2":
		return "qcow2"
	case ".raw", ".img":
		return "raw"
	}
	return "tar"
}

// exportImage writes the file whole or not at all.
func (a *app) exportImage(ctx context.Context, ref string, format api.ImageFormat, path string, force bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	if path == "-" {
		return c.ExportImage(ctx, ref, format, a.stdout)
	}
	if _, err := os.Lstat(path); err == nil && !force {
		return api.Errorf(api.Exists, "image export: %s exists; --force replaces it", path)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".polder-export-*")
	if err != nil {
		return fileError("image export", err)
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // after the rename it is not there
	err = a.download(ctx, c, ref, format, tmp)
	if err := errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fileError("image export", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return fileError("image export", err)
	}
	v := struct {
		Image     string          `json:"image"`
		Format    api.ImageFormat `json:"format"`
		File      string          `json:"file"`
		SizeBytes api.Bytes       `json:"size_bytes"`
	}{ref, format, path, api.Bytes(info.Size())}
	return a.show(v, func(w io.Writer) { fmt.Fprintf(w, "%s: %s, %s\n", v.File, v.Format, v.SizeBytes) })
}

func (a *app) download(ctx context.Context, c *client.Client, ref string, format api.ImageFormat, w io.Writer) error {
	p := a.newProgress()
	defer p.close()
	t := p.track("image export " + ref)
	defer t.done("")
	err := c.ExportImage(ctx, ref, format, &countingWriter{w: w, t: t})
	if ctx.Err() != nil {
		return api.Errorf(api.Cancelled, "image export %s: cancelled", ref)
	}
	return err
}

type countingWriter struct {
	w    io.Writer
	t    *tracker
	done int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.done += int64(n)
	c.t.set("", api.Progress{Done: c.done, Unit: "bytes"})
	return n, err
}
