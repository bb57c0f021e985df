// Package image makes and keeps golden images: it builds them from a distribution's packages, imports them from files that are
// not trusted, publishes what a virtual environment has become, exports and deletes them.
//
// An image is a record in the cluster's store and up to two bases in the pools of some hosts, both named by its digest: a tree (the root of a
// container) and a disk (of a vm, bootable under BIOS and UEFI), derived from the tree once. Images are immutable; an
// alias names one image at a time and can move to another when it is built anew.
//
// The package does not run virtual environments and does not clone bases: package host does, holding a shared lock on
// "image/<digest>" meanwhile. Everything that takes long is an operation: image.build, image.import, image.publish, image.delete. Their locks are
// "image/<alias>" while something is made, and "image/<digest>" while it is deleted.
//
// A Library is safe for concurrent use.
package image

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"polder/api"
	"polder/internal/operation"
	"polder/internal/storage"
	"polder/internal/store"
)

// Record is an image in the store; its key is the digest.
type Record struct {
	Image api.Image `json:"image"`
	Tree  bool      `json:"tree"` // it has a base of that kind
	Disk  bool      `json:"disk"`
	// TreeOn and DiskOn name the hosts whose pools have that base, sorted. Each host corrects what they say of it (Reconcile).
	TreeOn []string `json:"tree_on,omitempty"`
	DiskOn []string `json:"disk_on,omitempty"`
}

// NewTable is the table that a Library needs.
func NewTable(s *store.Store) *store.Table[Record] { return store.NewTable[Record](s, "image", 1) }

// Config of a Library. All fields but Log and Peers are needed.
type Config struct {
	Host   string // the name of this one
	Pool   storage.Pool
	Images *store.Table[Record]
	Store  *store.Store
	Engine *operation.Engine
	// Staging is a directory for what is being made, with room for an image or two. Nobody else may use it.
	Staging string
	// Cache is a directory for packages, kept from build to build.
	Cache string
	// InUse names the virtual environments that were made of an image and need it.
	InUse func(ctx context.Context, digest string) ([]string, error)
	// Peers are where bases come from that this host lacks; nil: there are none.
	Peers Peers
	Log   *slog.Logger
}

// Library is the images of a host.
type Library struct {
	Config

	mu     sync.Mutex
	claims map[string]map[string]string // digest → who works with its bases → what it does; guarded by mu

	flights flights
}

// NewLibrary makes the staging directory, and its operations known to the engine (before Engine.Recover). It starts nothing.
func NewLibrary(c Config) (*Library, error) {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	for _, dir := range []*string{&c.Staging, &c.Cache} {
		path, err := filepath.Abs(*dir)
		if err != nil {
			return nil, err
		}
		*dir = path
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, fmt.Errorf("open image library: %w", err)
		}
	}
	l := &Library{Config: c, claims: map[string]map[string]string{}}
	l.registerBuild()
	l.registerImport()
	l.registerPublish()
	l.registerDelete()
	return l, nil
}

// Tidy removes what was left in the staging directory by a daemon that was killed before an operation knew of it. Called once at start,
// before requests are served.
func (l *Library) Tidy(ctx context.Context) error {
	ops, err := l.Engine.List(ctx)
	if err != nil {
		return err
	}
	live := map[string]bool{}
	importing := false
	for _, op := range ops {
		if !op.State.Final() {
			live[op.ID] = true
			importing = importing || op.Kind == kindImport
		}
	}
	entries, err := os.ReadDir(l.Staging)
	if err != nil {
		return fmt.Errorf("tidy image library: %w", err)
	}
	for _, e := range entries {
		spool := strings.HasPrefix(e.Name(), spoolPrefix)
		if live[e.Name()] || spool && importing {
			continue
		}
		if err := removeTree(filepath.Join(l.Staging, e.Name())); err != nil {
			return fmt.Errorf("tidy image library: %w", err)
		}
	}
	return nil
}

// List gives all images, sorted by their first alias.
func (l *Library) List(ctx context.Context) ([]api.Image, error) {
	recs, err := l.Images.List(ctx)
	if err != nil {
		return nil, err
	}
	images := make([]api.Image, 0, len(recs))
	for _, rec := range recs {
		images = append(images, rec.Value.shown())
	}
	slices.SortFunc(images, func(a, b api.Image) int {
		return strings.Compare(firstName(a), firstName(b))
	})
	return images, nil
}

// firstName sorts images without an alias last.
func firstName(i api.Image) string {
	if len(i.Aliases) > 0 {
		return i.Aliases[0]
	}
	return "~" + i.Digest
}

// Resolve finds an image by alias, digest, or a unique prefix of at least 12 of the digest's hex digits.
func (l *Library) Resolve(ctx context.Context, ref string) (api.Image, error) {
	rec, err := l.resolve(ctx, ref)
	return rec.Value.shown(), err
}

// leastDigits of a digest that name an image.
const leastDigits = 12

func (l *Library) resolve(ctx context.Context, ref string) (store.Record[Record], error) {
	recs, err := l.Images.List(ctx)
	if err != nil {
		return store.Record[Record]{}, err
	}
	var found []store.Record[Record]
	for _, rec := range recs {
		if slices.Contains(rec.Value.Image.Aliases, ref) {
			return rec, nil
		}
		if digits := strings.TrimPrefix(ref, "sha256:"); len(digits) >= leastDigits && strings.HasPrefix(rec.Key, "sha256:"+digits) {
			found = append(found, rec)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return store.Record[Record]{}, unknownImage(ref, recs)
	}
	return store.Record[Record]{}, api.Errorf(api.Invalid, "image %q: %d images have a digest that begins so: give more digits", ref, len(found))
}

func unknownImage(ref string, recs []store.Record[Record]) error {
	var names []string
	for _, rec := range recs {
		names = append(names, rec.Value.Image.Aliases...)
	}
	slices.Sort(names)
	if s, err := parseSuite(ref); err == nil {
		return api.Errorf(api.NotFound, "image %q not found; make it with: polder image build %s", ref, s.name())
	}
	if len(names) == 0 {
		return api.Errorf(api.NotFound, "image %q not found: there are none yet; make one with: polder image build debian/13", ref)
	}
	return api.Errorf(api.NotFound, "image %q not found; there are: %s; another is made with: polder image build debian/13", ref, strings.Join(names, ", "))
}

// TreeBase is the id of an image's tree in the pool.
func TreeBase(i api.Image) string { return baseID(i.Digest) }

// DiskBase is the id of an image's disk in the pool.
func DiskBase(i api.Image) string { return baseID(i.Digest) }

func baseID(digest string) string { return strings.ReplaceAll(digest, ":", "-") }

func digestOf(base string) string { return strings.Replace(base, "-", ":", 1) }

// What is done with an image's bases.
const (
	beingMade     = "made"
	beingExported = "exported"
	beingFetched  = "fetched"
	beingDeleted  = "deleted"
)

// claim says that who (an operation, an export) works with an image's bases: deleting them and anything else exclude each other
// (api.Conflict). Claiming twice is the same as once. Claims are this process' only: an operation that is resumed claims again.
func (l *Library) claim(digest, who, what string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for other, doing := range l.claims[digest] {
		if other != who && (what == beingDeleted || doing == beingDeleted) {
			return api.Errorf(api.Conflict, "image %s is being %s: try again when that is done", shortDigest(digest), doing)
		}
	}
	if l.claims[digest] == nil {
		l.claims[digest] = map[string]string{}
	}
	l.claims[digest][who] = what
	return nil
}

// unclaim ends a claim and says whether others are left.
func (l *Library) unclaim(digest, who string) (others bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.claims[digest], who)
	if len(l.claims[digest]) > 0 {
		return true
	}
	delete(l.claims, digest)
	return false
}

// Counted repetition in a regexp takes long to compile, and every start of the program would pay for it.
const longestAlias = 128

var aliasForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*$`)

func checkAlias(alias string) error {
	if len(alias) > longestAlias || !aliasForm.MatchString(alias) {
		return api.Errorf(api.Invalid, "image alias %q: want lower-case letters, digits and . _ -, in parts separated by /, such as debian/13", alias)
	}
	return nil
}
