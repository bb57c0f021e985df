package host

import (
	"context"
	"errors"

	"polder/api"
	"polder/internal/store"
)

// clearAway removes from the records what a host had that was taken out of the cluster: operations, VEs, copies of images, its own
// addresses. It comes after the host's own record: one that is cut off here is found removed, and what is left of its VEs can
// be deleted by name. Idempotent.
func (h *Host) clearAway(ctx context.Context, name string) error {
	problems := []error{h.engine.Abandon(ctx, name)} // first: its locks would keep what follows from being done anew
	recs, err := h.ves.List(ctx)
	problems = append(problems, err)
	for _, rec := range recs {
		if rec.Value.Host == name {
			problems = append(problems, h.forget(ctx, rec.Value))
		}
	}
	problems = append(problems, h.images.ForgetHost(ctx, name), h.releasePort(ctx, name))
	return errors.Join(problems...)
}

// releasePort gives up the addresses that a host had itself.
func (h *Host) releasePort(ctx context.Context, name string) error {
	rec, err := h.ports.Get(ctx, name)
	if api.KindOf(err) == api.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	ops := []store.Op{h.ports.OpDelete(rec)}
	for _, addr := range []string{rec.Value.IPv4.Addr().String(), rec.Value.IPv6.Addr().String()} {
		held, err := h.addresses.Get(ctx, addr)
		switch {
		case err == nil && held.Value.VE == portOwner(name):
			ops = append(ops, h.addresses.OpDelete(held))
		case err != nil && api.KindOf(err) != api.NotFound:
			return err
		}
	}
	_, err = h.store.Txn(ctx, ops...)
	return err
}

// portOwner is who holds the addresses of a host's own port.
func portOwner(host string) string { return "host " + host }
