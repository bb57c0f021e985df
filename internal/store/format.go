package store

import (
	"context"
	"strconv"

	"polder/api"
)

// format is the version of the layout of the keys as a whole. Records have versions of their own: this one changes only
// when an older Polder would do harm by merely writing here.
const format = 1

const formatKey = root + "format"

// checkFormat marks a new store with the format, and refuses one with a newer format. It returns the format.
func (s *Store) checkFormat(ctx context.Context) (int, error) {
	found, err := s.client.Get(ctx, formatKey)
	if err != nil {
		return 0, err
	}
	if len(found.Kvs) == 0 {
		// Two hosts that start on one new cluster write the same.
		_, err := s.client.Put(ctx, formatKey, strconv.Itoa(format))
		return format, err
	}
	value := string(found.Kvs[0].Value)
	n, err := strconv.Atoi(value)
	if err != nil {
		return 0, api.Errorf(api.Internal, "open store: its format %q is not a number", value)
	}
	if n > format {
		return n, api.Errorf(api.Unsupported, "open store: it has format %d and this version of polder knows up to %d: start the newer version that wrote it", n, format)
	}
	return n, nil
}
