package store

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// way is one by which the store is asked: by the member in this process, or by whichever of the client's endpoints answers. It does not
// change; the store takes another one instead.
type way struct {
	client *clientv3.Client
	direct bool            // to the member in this process
	ctx    context.Context // done when the store has taken another way
	leave  context.CancelFunc
}

func newWay(client *clientv3.Client, direct bool) *way {
	w := &way{client: client, direct: direct}
	w.ctx, w.leave = context.WithCancel(context.Background())
	return w
}

// client is by which the store is asked just now. What is asked again asks for it again.
func (s *Store) client() *clientv3.Client { return s.way.Load().client }

// steerEvery is how often the member in this process is asked whether it knows a leader. etcd tells of new ones only.
const steerEvery = 2 * tickMS * time.Millisecond

// steer keeps to the member in this process as long as it knows a leader, and to the others while it does not: one that is cut off from
// the leader alone learns of none until their link is back, but the others do. Where nobody leads no way has an answer.
func (s *Store) steer(tls TLS) {
	ticker := time.NewTicker(steerEvery)
	defer ticker.Stop()
	for {
		select {
		case <-s.ctx.Done():
			s.way.Load().end()
			return
		case <-ticker.C:
		}
		switch leads, direct := s.member.etcd.Server.Leader() != 0, s.way.Load().direct; {
		case leads && !direct:
			s.log.Info("this host's member of the store knows a leader again")
			s.take(newWay(s.member.client, true))
		case !leads && direct:
			others := s.member.others()
			if len(others) == 0 {
				continue
			}
			client, _, err := connect(Options{Endpoints: others, TLS: tls, Log: s.log})
			if err != nil {
				s.log.Warn("the store's other members can not be asked", "error", err)
				continue
			}
			s.log.Info("this host's member of the store knows no leader: the others are asked", "members", others)
			s.take(newWay(client, false))
		}
	}
}

// take goes on by another way. Watches and requests that are under way are made again there.
func (s *Store) take(next *way) { s.way.Swap(next).end() }

func (w *way) end() {
	w.leave()
	if !w.direct {
		_ = w.client.Close() // its only error is that of the context it cancels
	}
}

// others are where clients reach the other members that vote.
func (m *member) others() (addresses []string) {
	for _, peer := range m.etcd.Server.Cluster().Members() {
		if address := addressOf(peer.ClientURLs); peer.ID != m.etcd.Server.MemberID() && !peer.IsLearner && address != "" {
			addresses = append(addresses, address)
		}
	}
	return addresses
}
