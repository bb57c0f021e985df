package store

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"polder/api"
)

// Member is one of the hosts that keep a copy of the store.
type Member struct {
	Name   string // the host's
	ID     string // etcd's, in hexadecimal; a host that leaves and comes back gets another one
	Peer   string // IP:PORT for other members
	Client string // IP:PORT for clients; empty until the member has started for the first time
	// Learner is a member that copies, but does not vote yet.
	Learner bool
	Leader  bool
	// Healthy says that it answered just now and knows of a leader.
	Healthy bool
}

// memberRecord is what a member is called before it has started for the first time: etcd knows it by its address only.
type memberRecord struct {
	ID string
}

// statusTimeout is how long a member may take to say how it is.
const statusTimeout = time.Second

func (s *Store) memberNames() *Table[memberRecord] {
	return NewTable[memberRecord](s, "storemember", 1)
}

// membersTimeout is how long it is waited for a majority before one member's word must do.
const membersTimeout = 4 * time.Second

// Members lists the members, sorted by name, and asks each how it is, for a second at most. When no majority answers, which takes
// some four seconds to find out, it lists what the member that was asked knew last, with no leader.
func (s *Store) Members(ctx context.Context) ([]Member, error) {
	soon, cancel := context.WithTimeout(ctx, membersTimeout)
	defer cancel()
	members, err := s.members(soon, s.client)
	if api.KindOf(err) == api.Unavailable && ctx.Err() == nil {
		members, err = s.members(ctx, s.nearest, clientv3.WithSerializable())
	}
	if err != nil {
		return nil, err
	}
	s.askAll(ctx, members)
	s.askers.keep(members)
	return members, nil
}

// nearest is the client of the member in this process, if there is one.
func (s *Store) nearest() *clientv3.Client {
	if s.member != nil {
		return s.member.client
	}
	return s.client()
}

func (s *Store) members(ctx context.Context, client func() *clientv3.Client, options ...clientv3.OpOption) ([]Member, error) {
	list, err := request(ctx, s, "list the store's members", func(ctx context.Context) (*clientv3.MemberListResponse, error) {
		return client().MemberList(ctx, options...)
	})
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	if slices.ContainsFunc(list.Members, func(m *etcdserverpb.Member) bool { return m.Name == "" }) {
		recs, err := s.memberNames().List(ctx)
		if err != nil && len(options) == 0 {
			return nil, err
		}
		for _, rec := range recs {
			names[rec.Value.ID] = rec.Key
		}
	}
	members := make([]Member, 0, len(list.Members))
	for _, m := range list.Members {
		id := memberID(m.ID)
		members = append(members, Member{
			Name: cmp.Or(m.Name, names[id]), ID: id, Peer: addressOf(m.PeerURLs), Client: addressOf(m.ClientURLs), Learner: m.IsLearner,
		})
	}
	slices.SortFunc(members, func(a, b Member) int { return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID)) })
	return members, nil
}

func memberID(id uint64) string { return strconv.FormatUint(id, 16) }

func (m Member) number() uint64 {
	id, _ := strconv.ParseUint(m.ID, 16, 64) // made by memberID
	return id
}

// askAll fills in what only the members themselves know.
func (s *Store) askAll(ctx context.Context, members []Member) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var all sync.WaitGroup
	for i := range members {
		all.Go(func() {
			status, err := s.status(ctx, members[i])
			if err != nil {
				return
			}
			members[i].Healthy = status.Leader != 0
			members[i].Leader = status.Leader == members[i].number()
		})
	}
	all.Wait()
}

func (s *Store) status(ctx context.Context, m Member) (*etcdserverpb.StatusResponse, error) {
	switch {
	case s.member != nil && uint64(s.member.etcd.Server.MemberID()) == m.number():
		status, err := s.member.client.Status(ctx, "")
		return (*etcdserverpb.StatusResponse)(status), err
	case m.Client == "":
		return nil, api.Errorf(api.Unavailable, "member %q has not started yet", m.Name)
	}
	return s.askers.status(ctx, m.Client)
}

func findMember(members []Member, name string) (Member, bool) {
	i := slices.IndexFunc(members, func(m Member) bool { return m.Name == name })
	if i < 0 {
		return Member{}, false
	}
	return members[i], true
}

// AddMember lets the host `name` become a member, as a learner: one that copies, but does not vote until PromoteMember. peer
// is the address that it will listen at. It is to be started next, with Peering.Join. A member of that name that is there
// already is left as it is. Errors: api.Precondition when that would endanger the cluster now, api.Conflict when another
// member has that address.
func (s *Store) AddMember(ctx context.Context, name, peer string) error {
	what := "add " + strconv.Quote(name) + " to the store's members"
	if err := checkAddress(peer); err != nil {
		return api.Errorf(api.Invalid, "%s: address %q: %w", what, peer, err)
	}
	members, err := s.members(ctx, s.client)
	if err != nil {
		return err
	}
	if _, ok := findMember(members, name); ok {
		return nil
	}
	var id string
	if i := slices.IndexFunc(members, func(m Member) bool { return m.Peer == peer }); i >= 0 {
		if members[i].Name != "" {
			return api.Errorf(api.Conflict, "%s: member %q has the address %s: remove that one first", what, members[i].Name, peer)
		}
		id = members[i].ID // added, but not named, by one who was cut off
	} else {
		added, err := request(ctx, s, what, func(ctx context.Context) (*clientv3.MemberAddResponse, error) {
			return s.client().MemberAddAsLearner(ctx, []string{secureURL(peer)})
		})
		if err != nil {
			return err
		}
		id = memberID(added.Member.ID)
	}
	_, err = s.memberNames().Put(ctx, name, memberRecord{ID: id})
	return err
}

// PromoteMember gives a learner its vote. One that has it already is left as it is. Errors: api.Precondition as long as it
// has not caught up, api.NotFound.
func (s *Store) PromoteMember(ctx context.Context, name string) error {
	what := "give store's member " + strconv.Quote(name) + " its vote"
	members, err := s.members(ctx, s.client)
	if err != nil {
		return err
	}
	m, ok := findMember(members, name)
	switch {
	case !ok:
		return api.Errorf(api.NotFound, "%s: there is no such member", what)
	case !m.Learner:
		return nil
	case m.Client == "":
		return api.Errorf(api.Precondition, "%s: it has not started yet: try again later", what)
	}
	_, err = request(ctx, s, what, func(ctx context.Context) (struct{}, error) {
		_, err := s.client().MemberPromote(ctx, m.number())
		if errors.Is(err, rpctypes.ErrMemberNotLearner) {
			err = nil
		}
		return struct{}{}, err
	})
	return err
}

// RemoveMember takes a host out of the members for good: its member, if it runs, stops with an error of the kind
// api.Precondition, and so does each later start of it with the same directory. One that is not there is no error.
func (s *Store) RemoveMember(ctx context.Context, name string) error {
	what := "remove " + strconv.Quote(name) + " from the store's members"
	members, err := s.members(ctx, s.client)
	if err != nil {
		return err
	}
	if m, ok := findMember(members, name); ok {
		_, err := request(ctx, s, what, func(ctx context.Context) (struct{}, error) {
			_, err := s.client().MemberRemove(ctx, m.number())
			if errors.Is(err, rpctypes.ErrMemberNotFound) {
				err = nil
			}
			return struct{}{}, err
		})
		if err != nil {
			return err
		}
		if s.member != nil && uint64(s.member.etcd.Server.MemberID()) == m.number() {
			return nil // and can not write any more; the name that stays behind is that of an id that nobody gets again
		}
	}
	_, err = s.Txn(ctx, s.memberNames().OpClear(name))
	return err
}

// SetEndpoints makes a store that was opened with endpoints use these clients' addresses (IP:PORT) or URLs from now on; what
// is under way goes on there. It does nothing for a store that is a member itself, and with no endpoints.
func (s *Store) SetEndpoints(clients []string) {
	if s.member != nil || len(clients) == 0 {
		return
	}
	endpoints := completeEndpoints(clients, s.secure)
	slices.Sort(endpoints)
	if now := slices.Sorted(slices.Values(s.client().Endpoints())); !slices.Equal(now, endpoints) {
		s.client().SetEndpoints(endpoints...)
	}
}

// completeEndpoints gives those that are only IP:PORT their scheme.
func completeEndpoints(clients []string, secure bool) []string {
	var endpoints []string
	for _, client := range clients {
		if secure && !strings.Contains(client, "://") {
			client = secureURL(client)
		}
		endpoints = append(endpoints, client)
	}
	return endpoints
}
