package store

import (
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"polder/api"
)

// WriteFormat writes the store's format.
func WriteFormat(t *testing.T, s *Store, value string) {
	if _, err := s.client.Put(t.Context(), formatKey, value); err != nil {
		t.Fatal(err)
	}
}

// Compact drops all history.
func Compact(t *testing.T, s *Store) {
	revision, err := s.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Compact(t.Context(), revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
}

// Clear deletes all records.
func Clear(t testing.TB, s *Store) {
	if _, err := s.client.Delete(t.Context(), root, clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
}

// SetFree makes the store believe that so much disk is free.
func SetFree(s *Store, free func() (api.Bytes, error)) { s.member.space.free = free }

// Fail makes the store's member fail as a fatal error of etcd does.
func Fail(s *Store, err error) { s.fail(err) }

// ForgetRelief lets the store compact again at once.
func ForgetRelief(s *Store) { s.member.quota.failed = time.Time{} }

// Decode reads a record of version 1.
func Decode[T any](text []byte) (T, error) { return NewTable[T](nil, "text", 1).decode("key", text) }

// Commit makes etcd write what it holds back (for 0.1 s, otherwise) to its database.
func Commit(s *Store) { s.member.etcd.Server.Backend().ForceCommit() }
