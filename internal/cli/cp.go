package cli

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"polder/api"
	"polder/client"
)

func newCpCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "cp SRC DST",
		Short: "Copy files and directories into, out of and between VEs",
		Long: `Copy a file or a directory with all that is in it. SRC or DST or both are in a VE: NAME:/path. If DST is a directory
the copy goes into it, else DST becomes the copy's name. Links stay links; devices are left out. What is copied into a VE
belongs to root there, what is copied out to you. The VE needs sh and tar.`,
		Example: `  polder cp site.conf c1:/etc/nginx/conf.d/
  polder cp c1:/var/log ./c1-log`,
		Args: args(2, 2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			names, _ := a.complete(a.veNames(api.Running))(cmd, args, prefix)
			for i := range names {
				names[i] += ":/"
			}
			return names, cobra.ShellCompDirectiveNoSpace
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			src, err := parsePlace(args[0])
			if err != nil {
				return err
			}
			dst, err := parsePlace(args[1])
			if err != nil {
				return err
			}
			if src.ve == "" && dst.ve == "" {
				return api.Errorf(api.Invalid, "cp: neither %q nor %q is in a VE: write NAME:/path", args[0], args[1])
			}
			return a.cp(cmd.Context(), src, dst)
		},
	}
}

// place is a path on this machine, or in a VE.
type place struct {
	ve   string // "": this machine
	path string
}

// parsePlace reads NAME:/path, or a path of this machine; one with a colon in its first element is written ./a:b.
func parsePlace(text string) (place, error) {
	name, rest, ok := strings.Cut(text, ":")
	switch {
	case text == "":
		return place{}, api.Errorf(api.Invalid, "cp: an empty path")
	case !ok || strings.Contains(name, "/"):
		return place{path: text}, nil
	}
	if err := api.CheckName("ve", name); err != nil {
		return place{}, api.Errorf(api.Invalid, "cp: %q: %w; a file of this machine is written ./%s", text, err, text)
	}
	if !path.IsAbs(rest) {
		return place{}, api.Errorf(api.Invalid, "cp: %q: want an absolute path in the VE, such as %s:/%s", text, name, rest)
	}
	return place{ve: name, path: rest}, nil
}

func (p place) String() string {
	if p.ve == "" {
		return p.path
	}
	return p.ve + ":" + p.path
}

// base is the last element of the path as it was written.
func (p place) base() string {
	if p.ve != "" {
		return path.Base(path.Clean(p.path))
	}
	if whole, err := filepath.Abs(p.path); err == nil {
		return filepath.Base(whole)
	}
	return filepath.Base(p.path)
}

// found is what is at a place.
type found struct {
	exists    bool
	dir       bool
	hasParent bool // there is a directory to make it in
	size      int64
	// path of the thing itself, when the place is a link to it.
	path string
}

// target is where the copy goes: name in the directory dir.
type target struct{ dir, name string }

// aim says where the copy of src goes.
func aim(src, dst place, from, to found) (target, error) {
	dir, name := splitPlace(dst)
	switch {
	case to.dir:
		base := src.base()
		if base == "/" || base == "." {
			return target{}, api.Errorf(api.Invalid, "cp: %s has no name to give to the copy: name it in DST", src)
		}
		return target{dst.path, base}, nil
	case to.exists && from.dir:
		return target{}, api.Errorf(api.Precondition, "cp: %s is a directory and %s is none", src, dst)
	case strings.HasSuffix(dst.path, "/") || !to.exists && !to.hasParent:
		return target{}, api.Errorf(api.NotFound, "cp: there is no directory for %s; make it first", dst)
	}
	return target{dir, name}, nil
}

func splitPlace(p place) (dir, name string) {
	if p.ve != "" {
		clean := path.Clean(p.path)
		return path.Dir(clean), path.Base(clean)
	}
	return filepath.Dir(p.path), filepath.Base(p.path)
}

// side is one end of a copy: this machine or a VE.
type side interface {
	look(ctx context.Context, path string) (found, error)
	// send writes a tar: of a directory's content (names relative to it), or of the one file.
	send(ctx context.Context, path string, dir bool, w io.Writer) error
	// receive makes a copy of such a tar at t.
	receive(ctx context.Context, t target, dir bool, r io.Reader) error
}

func (a *app) cp(ctx context.Context, src, dst place) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	p := a.newProgress()
	defer p.close()
	warn := func(text string) { p.line("cp: %s", text) }
	from, to := newSide(c, src.ve, warn), newSide(c, dst.ve, warn)
	source, err := from.look(ctx, src.path)
	if err == nil && !source.exists {
		err = api.Errorf(api.NotFound, "cp: %s not found", src)
	}
	if err != nil {
		return err
	}
	there, err := to.look(ctx, dst.path)
	if err != nil {
		return err
	}
	goal, err := aim(src, dst, source, there)
	if err != nil {
		return err
	}
	t := p.track("cp " + src.String())
	pr, pw := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := from.send(ctx, source.path, source.dir, pw)
		pw.CloseWithError(err)
		sent <- err
	}()
	receiveErr := to.receive(ctx, goal, source.dir, t.reader(pr, "", source.size))
	pr.CloseWithError(errors.Join(errStopped, receiveErr))
	sendErr := <-sent
	t.done("")
	if sendErr != nil && !errors.Is(sendErr, errStopped) {
		return sendErr
	}
	return receiveErr
}

// errStopped is what the sending side sees when the receiving side has ended first.
var errStopped = errors.New("the other side of the copy ended")

func newSide(c *client.Client, ve string, warn func(string)) side {
	if ve == "" {
		return &localSide{warn: warn}
	}
	return &veSide{client: c, ve: ve, warn: warn}
}

// eachEntry reads a tar from one side and calls do with every entry under its checked name: relative, without "..";
// "." is the directory itself. A file comes as exactly one entry. What is left of r is read to its end.
func eachEntry(r io.Reader, dir bool, do func(name string, h *tar.Header, content io.Reader) error) error {
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			if n == 0 {
				return api.Errorf(api.Internal, "cp: nothing came from the other side")
			}
			_, err = io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return api.Errorf(api.KindOf(err), "cp: read tar: %w", err)
		}
		if !dir {
			if n > 0 || h.Typeflag != tar.TypeReg {
				return api.Errorf(api.Invalid, "cp: want one file, and the other side sent more or something else; nothing more is written")
			}
			if err := do(".", h, tr); err != nil {
				return err
			}
			continue
		}
		name, err := entryName(h.Name)
		if err != nil {
			return err
		}
		if err := do(name, h, tr); err != nil {
			return err
		}
	}
}

// entryName checks a name from a tar that somebody else wrote.
func entryName(name string) (string, error) {
	if strings.ContainsRune(name, 0) || path.IsAbs(name) || !filepath.IsLocal(path.Clean(name)) {
		return "", api.Errorf(api.Invalid, "cp: the tar has an entry %q, which would leave the destination; stopped", name)
	}
	return path.Clean(name), nil
}
