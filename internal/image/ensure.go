package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"polder/api"
	"polder/internal/storage"
)

// Peers reaches the libraries of the cluster's other hosts.
type Peers interface {
	// Reachable names the other hosts that answer now.
	Reachable(ctx context.Context) ([]string, error)
	// Open asks a host for what its Library.Serve writes with these arguments.
	Open(ctx context.Context, host, digest string, kind storage.Kind, form string) (io.ReadCloser, error)
}

// Progress is told how far something is; it may be called at any time. Total 0: not known.
type Progress func(done, total int64, unit string)

// Ensure makes an image's base be in this host's pool: it is there, or comes from a host that has it and answers. It blocks until then; several
// calls for one base share one transfer. A base that no host which answers has is api.Unavailable, naming those that have it. What was cut off leaves
// nothing. The caller keeps the image from being deleted meanwhile (a shared lock on "image/<digest>"). progress may be nil.
func (l *Library) Ensure(ctx context.Context, digest string, kind storage.Kind, progress Progress) error {
	rec, err := l.Images.Get(ctx, digest)
	if err != nil {
		return err
	}
	if has := rec.Value.Tree && kind == storage.Tree || rec.Value.Disk && kind == storage.Disk; !has {
		return api.Errorf(api.Unsupported, "image %s has no %s", shortDigest(digest), kind)
	}
	_, err = l.Pool.Base(ctx, baseID(digest), kind)
	switch {
	case err == nil && slices.Contains(rec.Value.on(kind), l.Host):
		return nil
	case err == nil:
		return l.noteBase(ctx, digest, kind)
	case api.KindOf(err) != api.NotFound:
		return err
	}
	return l.flights.do(ctx, digest+"/"+string(kind), progress, func(ctx context.Context, progress Progress) error {
		return l.fetch(ctx, rec.Value, kind, progress)
	})
}

// fetch asks the hosts that have a base, one after the other.
func (l *Library) fetch(ctx context.Context, rec Record, kind storage.Kind, progress Progress) error {
	digest := rec.Image.Digest
	who := "fetch/" + string(kind)
	if err := l.claim(digest, who, beingFetched); err != nil {
		return err
	}
	defer l.unclaim(digest, who)
	hosts, err := l.sources(ctx, rec, kind)
	if err != nil {
		return err
	}
	var problems []error
	for _, host := range hosts {
		err := l.fetchFrom(ctx, host, rec, kind, progress)
		if err == nil {
			return l.noteBase(ctx, digest, kind)
		}
		problems = append(problems, fmt.Errorf("fetch %s of image %s from host %s: %w", kind, shortDigest(digest), host, err))
		if ctx.Err() != nil || api.KindOf(err) == api.Exhausted { // of this host's pool: no other host helps
			break
		}
	}
	return errors.Join(problems...)
}

// sources are the hosts to ask for a base; none is api.Unavailable.
func (l *Library) sources(ctx context.Context, rec Record, kind storage.Kind) ([]string, error) {
	have := slices.DeleteFunc(slices.Clone(rec.on(kind)), func(host string) bool { return host == l.Host })
	name := firstName(rec.Image)
	if len(have) == 0 {
		return nil, api.Errorf(api.Unavailable, "no host has the %s of image %s: make or import it again", kind, name)
	}
	var reachable []string
	if l.Peers != nil {
		var err error
		if reachable, err = l.Peers.Reachable(ctx); err != nil {
			return nil, err
		}
	}
	hosts := slices.DeleteFunc(slices.Clone(have), func(host string) bool { return !slices.Contains(reachable, host) })
	if len(hosts) == 0 {
		return nil, api.Errorf(api.Unavailable, "the %s of image %s is only on hosts that do not answer: %s: start one of them, or make the image again",
			kind, name, strings.Join(have, ", "))
	}
	return hosts, nil
}

// noteBase writes down that this host has a base.
func (l *Library) noteBase(ctx context.Context, digest string, kind storage.Kind) error {
	_, err := l.Images.Modify(ctx, digest, func(r *Record) error {
		r.setOn(kind, l.Host, true)
		return nil
	})
	return err
}
