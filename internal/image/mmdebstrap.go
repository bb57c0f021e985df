package image

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"polder/api"
	"polder/internal/command"
)

// builtTree is put over every image that is built, before its packages are configured.
//
//go:embed all:tree
var builtTree embed.FS

//go:embed customize.sh
var customizeScript []byte

// packageName is what Debian policy allows (5.6.1), with an architecture or a version that apt accepts.
var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?(=[A-Za-z0-9.+:~-]+)?$`)

// bootstrap is one run of mmdebstrap.
type bootstrap struct {
	suite     suite
	mirror    string // "": the distribution's
	packages  []string
	cloudInit bool
	work      string // a directory that is ours; the tree is made in work/root
	cache     string // of packages, kept from run to run
	progress  func(done, total int64)
}

func (b bootstrap) root() string { return filepath.Join(b.work, "root") }

// check finds what would fail late.
func (b bootstrap) check() error {
	for _, p := range b.packages {
		if !packageName.MatchString(p) {
			return api.Errorf(api.Invalid, "build image %s: package name %q: not a Debian package name", b.suite.name(), p)
		}
	}
	if b.mirror != "" && !regexp.MustCompile(`^(https?://|file:/)[^\s\[\]]+$`).MatchString(b.mirror) {
		return api.Errorf(api.Invalid, "build image %s: mirror %q: want an http, https or file URL", b.suite.name(), b.mirror)
	}
	if _, err := os.Stat(b.suite.Keyring); err != nil {
		return api.Errorf(api.Precondition, "build image %s: the keys of its archive are not on this host: apt-get install %s",
			b.suite.name(), b.suite.KeyringPackage)
	}
	return nil
}

// release asks the mirror for the date of the suite's release: it makes builds from the same packages alike, and a mirror
// that cannot be reached or lacks the suite is found in a second.
func (b bootstrap) release(ctx context.Context) (time.Time, error) {
	mirror := b.mirror
	if mirror == "" {
		mirror = b.suite.Mirror
	}
	if path, ok := strings.CutPrefix(mirror, "file:"); ok {
		f, err := os.Open(filepath.Join(path, "dists", b.suite.Code, "InRelease"))
		if err != nil {
			return time.Time{}, api.Errorf(api.NotFound, "build image %s: %w", b.suite.name(), err)
		}
		defer f.Close()
		return releaseDate(f)
	}
	url := mirror + "/dists/" + b.suite.Code + "/InRelease"
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return time.Time{}, api.Errorf(api.Invalid, "build image %s: mirror: %w", b.suite.name(), err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return time.Time{}, api.Errorf(api.Unavailable, "build image %s: reach the mirror: %w", b.suite.name(), err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return time.Time{}, api.Errorf(api.NotFound, "build image %s: the mirror %s has no suite %s", b.suite.name(), mirror, b.suite.Code)
	case resp.StatusCode != http.StatusOK:
		return time.Time{}, api.Errorf(api.Unavailable, "build image %s: get %s: %s", b.suite.name(), url, resp.Status)
	}
	return releaseDate(resp.Body)
}

// releaseDate reads the Date field of a Release file. The signature is apt's business.
func releaseDate(r io.Reader) (time.Time, error) {
	head := make([]byte, 4<<10)
	n, _ := io.ReadFull(r, head)
	for line := range strings.Lines(string(head[:n])) {
		if date, ok := strings.CutPrefix(line, "Date: "); ok {
			if t, err := time.Parse(time.RFC1123, strings.TrimSpace(date)); err == nil {
				return t, nil
			}
		}
	}
	return time.Time{}, api.Errorf(api.Unavailable, "read the mirror's Release file: no date in it")
}

// run makes the tree. It blocks for as long as the packages take; ctx stops it.
func (b bootstrap) run(ctx context.Context, epoch time.Time) error {
	if err := b.writeTree(); err != nil {
		return err
	}
	if err := os.MkdirAll(b.cache, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(b.root(), 0o755); err != nil && !os.IsExist(err) {
		return err
	}
	watch := &bootstrapProgress{report: b.progress}
	_, err := command.Command{
		Name:   "mmdebstrap",
		Args:   b.args(),
		Env:    []string{"SOURCE_DATE_EPOCH=" + strconv.FormatInt(epoch.Unix(), 10), "TMPDIR=" + b.work},
		Stdin:  strings.NewReader(strings.Join(b.suite.sources(b.mirror), "\n") + "\n"),
		Stderr: watch,
		Stdout: watch,
		Tree:   true,
	}.Run(ctx)
	if err != nil {
		return fmt.Errorf("build image %s: %w", b.suite.name(), err)
	}
	return b.writeSources()
}

func (b bootstrap) args() []string {
	cache, overlay := shellQuote(b.cache), shellQuote(filepath.Join(b.work, "tree"))
	customize := shellQuote(filepath.Join(b.work, "customize.sh"))
	return []string{
		"--mode=root", "--variant=apt", "--format=directory", "--verbose",
		// Documentation in other languages than the packages' own, and manuals without a reader for them, are left out.
		"--dpkgopt=force-unsafe-io",
		"--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-include=/usr/share/locale/locale.alias",
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
		"--dpkgopt=path-exclude=/usr/share/info/*", "--dpkgopt=path-exclude=/usr/share/lintian/*",
		`--aptopt=APT::Install-Recommends "false"`,
		"--skip=download/empty", "--skip=essential/unlink",
		`--setup-hook=mkdir -p "$1"/usr/share/man/man1 "$1"/var/cache/apt/archives && find ` + cache + ` -name '*.deb' -exec cp --reflink=auto -t "$1"/var/cache/apt/archives {} +`,
		`--essential-hook=cp -r --preserve=mode ` + overlay + `/. "$1"`,
		`--customize-hook=sh ` + customize + ` "$1" ` + cache,
		"--include=" + strings.Join(b.suite.packages(b.cloudInit, b.packages), ","),
		b.suite.Code, b.root(), "-",
	}
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// writeTree puts what the hooks need into the working directory. What is run is executable.
func (b bootstrap) writeTree() error {
	if err := os.WriteFile(filepath.Join(b.work, "customize.sh"), customizeScript, 0o600); err != nil {
		return err
	}
	return fs.WalkDir(builtTree, "tree", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(b.work, path)
		if d.IsDir() {
			if err := os.Mkdir(target, 0o755); err != nil && !os.IsExist(err) {
				return err
			}
			return os.Chmod(target, 0o755)
		}
		content, err := builtTree.ReadFile(path)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if bytes.HasPrefix(content, []byte("#!")) {
			mode = 0o755
		}
		if err := os.WriteFile(target, content, mode); err != nil {
			return err
		}
		return os.Chmod(target, mode)
	})
}

// writeSources gives the image its distribution's own apt sources, whichever mirror it was made from.
func (b bootstrap) writeSources() error {
	path := filepath.Join(b.root(), "etc/apt/sources.list")
	return os.WriteFile(path, []byte(strings.Join(b.suite.sources(""), "\n")+"\n"), 0o644)
}

// bootstrapProgress reads mmdebstrap's and dpkg's output: every package is unpacked, then set up.
type bootstrapProgress struct {
	report      func(done, total int64)
	line        []byte
	done, total int64
}

var newlyInstalled = regexp.MustCompile(`^\d+ upgraded, (\d+) newly installed`)

func (p *bootstrapProgress) Write(b []byte) (int, error) {
	for _, c := range b {
		if c != '\n' && c != '\r' {
			if len(p.line) < 1024 {
				p.line = append(p.line, c)
			}
			continue
		}
		p.see(string(p.line))
		p.line = p.line[:0]
	}
	return len(b), nil
}

func (p *bootstrapProgress) see(line string) {
	if m := newlyInstalled.FindStringSubmatch(line); m != nil {
		n, _ := strconv.ParseInt(m[1], 10, 64)
		p.total += 2 * n
	}
	if !strings.HasPrefix(line, "Unpacking ") && !strings.HasPrefix(line, "Setting up ") {
		return
	}
	p.done = min(p.done+1, p.total)
	if p.report != nil {
		p.report(p.done, p.total)
	}
}
