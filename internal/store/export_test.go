package store

import (
	"context"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"

	"polder/api"
)

// WriteFormat writes the store's format.
func WriteFormat(t *testing.T, s *Store, value string) {
	if _, err := s.client().Put(t.Context(), formatKey, value); err != nil {
		t.Fatal(err)
	}
}

// Compact drops all history.
func Compact(t *testing.T, s *Store) {
	revision, err := s.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client().Compact(t.Context(), revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
}

// Clear deletes all records.
func Clear(t testing.TB, s *Store) {
	if _, err := s.client().Delete(t.Context(), root, clientv3.WithPrefix()); err != nil {
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

// Cut separates the store's member from all others, Heal joins it to them again.
func Cut(s *Store) {
	for _, peer := range others(s) {
		s.member.etcd.Server.CutPeer(peer)
	}
}

// CutFrom separates the members of two stores. Heal of one of them joins them again.
func CutFrom(s, other *Store) { s.member.etcd.Server.CutPeer(other.member.etcd.Server.MemberID()) }

// Direct says whether the store asks the member in its own process.
func Direct(s *Store) bool { return s.way.Load().direct }

// Heal takes Cut back.
func Heal(s *Store) {
	for _, peer := range others(s) {
		s.member.etcd.Server.MendPeer(peer)
	}
}

func others(s *Store) (ids []types.ID) {
	server := s.member.etcd.Server
	for _, peer := range server.Cluster().Members() {
		if peer.ID != server.MemberID() {
			ids = append(ids, peer.ID)
		}
	}
	return ids
}

// LoseAnswers makes the store believe that it is one of several, and loses requests, or the answers to them, or delays them
// until after the next one, as lose says of each transaction. The store must be closed by the function that is returned.
func LoseAnswers(s *Store, lose func() Loss) (closeStore func() error) {
	lossy := &lossyKV{KV: s.client().KV, lose: lose}
	s.client().KV = lossy
	s.peers = true
	return func() error {
		lossy.late.Wait()
		return s.Close()
	}
}

// Loss is what happens to a transaction on its way.
type Loss int

// The losses.
const (
	Arrives Loss = iota
	RequestLost
	AnswerLost
	RequestDelayed // it arrives when nobody waits for it any more
)

type lossyKV struct {
	clientv3.KV
	lose func() Loss
	late sync.WaitGroup
}

func (k *lossyKV) Txn(ctx context.Context) clientv3.Txn {
	return &lossyTxn{k.KV.Txn(context.WithoutCancel(ctx)), k}
}

type lossyTxn struct {
	clientv3.Txn
	kv *lossyKV
}

func (t *lossyTxn) If(c ...clientv3.Cmp) clientv3.Txn  { t.Txn = t.Txn.If(c...); return t }
func (t *lossyTxn) Then(o ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Then(o...); return t }
func (t *lossyTxn) Else(o ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Else(o...); return t }

func (t *lossyTxn) Commit() (*clientv3.TxnResponse, error) {
	switch t.kv.lose() {
	case RequestLost:
		return nil, rpctypes.ErrTimeoutDueToLeaderFail
	case AnswerLost:
		if _, err := t.Txn.Commit(); err != nil {
			return nil, err
		}
		return nil, rpctypes.ErrTimeoutDueToConnectionLost
	case RequestDelayed:
		t.kv.late.Go(func() {
			time.Sleep(3 * tryPause)
			_, _ = t.Txn.Commit()
		})
		return nil, context.DeadlineExceeded
	case Arrives:
	}
	return t.Txn.Commit()
}
