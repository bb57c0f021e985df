package store

import (
	"context"
	"strconv"

	clientv3 "go.etcd.io/etcd/client/v3"

	"polder/api"
)

// format is the version of the layout of the keys as a whole. Records have versions of their own: this one changes only
// when an older Polder would do harm by merely writing here. The release after the first one that knows a format may write it.
const format = 1

const formatKey = root + "format"

// checkFormat marks a new store with the format, and refuses one with a newer format. It returns the store's revision.
func (s *Store) checkFormat(ctx context.Context) (revision int64, err error) {
	found, err := s.client().Get(ctx, formatKey)
	if err != nil {
		return 0, err
	}
	if len(found.Kvs) > 0 {
		return found.Header.Revision, knowFormat(string(found.Kvs[0].Value))
	}
	// Two hosts that start on one new cluster write the same.
	made, err := s.client().Put(ctx, formatKey, strconv.Itoa(format))
	if err != nil {
		return 0, err
	}
	return made.Header.Revision, nil
}

func knowFormat(value string) error {
	n, err := strconv.Atoi(value)
	if err != nil {
		return api.Errorf(api.Internal, "open store: its format %q is not a number", value)
	}
	if n > format {
		return api.Errorf(api.Unsupported, "open store: it has format %d and this version of polder knows up to %d: start the newer version that wrote it", n, format)
	}
	return nil
}

// guardFormat fails the store when a newer host changes its format while it is open.
func (s *Store) guardFormat(revision int64) {
	changes := s.feed(s.ctx, formatKey, revision+1)
	for s.ctx.Err() == nil {
		compacted := changes.follow(s.ctx, func(event *clientv3.Event) bool {
			if event.Type == clientv3.EventTypePut {
				if err := knowFormat(string(event.Kv.Value)); err != nil {
					s.fail(err)
				}
			}
			return true
		})
		if compacted == 0 {
			continue
		}
		now, err := request(s.ctx, s, "read store's format", s.checkFormat)
		if api.KindOf(err) == api.Unsupported {
			s.fail(err)
		} else if err == nil {
			changes.next = now + 1
		}
	}
}
