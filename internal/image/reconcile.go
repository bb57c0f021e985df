package image

import (
	"context"
	"errors"
	"slices"

	"polder/api"
	"polder/internal/storage"
)

// on names the hosts whose pools have a base of this kind.
func (r Record) on(kind storage.Kind) []string {
	if kind == storage.Disk {
		return r.DiskOn
	}
	return r.TreeOn
}

// shown is the image as the API has it.
func (r Record) shown() api.Image {
	if r.Image.Hosts == nil {
		r.Image.Hosts = []string{}
	}
	return r.Image
}

// setOn says whether a host's pool has a base of this kind, and reports whether that was news.
func (r *Record) setOn(kind storage.Kind, host string, has bool) bool {
	list := &r.TreeOn
	if kind == storage.Disk {
		list = &r.DiskOn
	}
	if slices.Contains(*list, host) == has {
		return false
	}
	if has {
		*list = append(slices.Clone(*list), host)
		slices.Sort(*list)
	} else {
		*list = slices.DeleteFunc(slices.Clone(*list), func(h string) bool { return h == host })
	}
	r.Image.Hosts = slices.Concat(r.TreeOn, r.DiskOn)
	slices.Sort(r.Image.Hosts)
	r.Image.Hosts = slices.Compact(r.Image.Hosts)
	return true
}

// Reconcile makes this host's pool and the records agree: bases whose image is gone are removed (unless somebody here works with them, or a volume
// needs them), and the records say which bases this host has. Called at start, after the operations were recovered, and when an image's record has
// changed or gone (Config.Images can be watched). It is cheap when nothing is to be done.
func (l *Library) Reconcile(ctx context.Context) error {
	bases, err := l.Pool.Bases(ctx)
	if err != nil {
		return err
	}
	recs, err := l.Images.List(ctx) // after the bases: one whose record is made meanwhile is claimed
	if err != nil {
		return err
	}
	known := map[string]bool{}
	var problems []error
	for _, rec := range recs {
		known[baseID(rec.Key)] = true
		problems = append(problems, l.correct(ctx, rec.Key, rec.Value))
	}
	making, err := l.making(ctx)
	if err != nil || making {
		return errors.Join(append(problems, err)...) // when that is done, a record changes
	}
	for _, base := range bases {
		if !known[base.ID] {
			problems = append(problems, l.drop(ctx, base))
		}
	}
	return errors.Join(problems...)
}

// making says whether images are being made here, whose bases are in the pool before there is a record.
func (l *Library) making(ctx context.Context) (bool, error) {
	ops, err := l.Engine.List(ctx)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(ops, func(op api.Operation) bool {
		return !op.State.Final() && (op.Kind == kindBuild || op.Kind == kindImport)
	}), nil
}

// correct makes a record say what this host has.
func (l *Library) correct(ctx context.Context, digest string, rec Record) error {
	has := map[storage.Kind]bool{}
	for _, kind := range []storage.Kind{storage.Tree, storage.Disk} {
		_, err := l.Pool.Base(ctx, baseID(digest), kind)
		if err != nil && api.KindOf(err) != api.NotFound {
			return err
		}
		has[kind] = err == nil
	}
	change := func(r *Record) bool {
		tree := r.setOn(storage.Tree, l.Host, has[storage.Tree])
		return r.setOn(storage.Disk, l.Host, has[storage.Disk]) || tree
	}
	if !change(&rec) {
		return nil
	}
	_, err := l.Images.Modify(ctx, digest, func(r *Record) error {
		change(r)
		return nil
	})
	if api.KindOf(err) == api.NotFound {
		return nil
	}
	return err
}

// ForgetHost makes the records say that a host has no bases: it was taken out of the cluster.
func (l *Library) ForgetHost(ctx context.Context, host string) error {
	recs, err := l.Images.List(ctx)
	if err != nil {
		return err
	}
	var problems []error
	for _, rec := range recs {
		forget := func(r *Record) bool {
			tree := r.setOn(storage.Tree, host, false)
			return r.setOn(storage.Disk, host, false) || tree
		}
		if !forget(&rec.Value) {
			continue
		}
		_, err := l.Images.Modify(ctx, rec.Key, func(r *Record) error {
			forget(r)
			return nil
		})
		if api.KindOf(err) != api.NotFound {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// drop removes a base that no record speaks of.
func (l *Library) drop(ctx context.Context, base storage.Base) error {
	const who = "reconcile"
	if err := l.claimBase(base.ID, who); err != nil {
		return nil //nolint:nilerr // it is being made, or fetched: its record comes
	}
	defer l.unclaim(digestOf(base.ID), who)
	// Looked at again, now that nobody here makes it.
	if _, err := l.Images.Get(ctx, digestOf(base.ID)); err == nil || api.KindOf(err) != api.NotFound {
		return err
	}
	err := l.Pool.DeleteBase(ctx, base.ID, base.Kind)
	if api.KindOf(err) == api.Conflict { // a volume needs it: when that has gone
		l.Log.Info("a base without image is kept for a volume", "base", base.ID, "kind", base.Kind)
		return nil
	}
	return err
}

func (l *Library) claimBase(id, who string) error { return l.claim(digestOf(id), who, beingDeleted) }
