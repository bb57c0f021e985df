package cluster

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"polder/api"
	"polder/internal/store"
)

// How many members a store of so many hosts has: an odd number, of which a minority may die.
func wantedMembers(hosts int) int {
	switch {
	case hosts < 3:
		return 1
	case hosts < 5:
		return 3
	}
	return 5
}

// action is one change of the membership; the zero action is none.
type action struct {
	verb string // "add", "promote", "remove"
	name string
}

// situation is what the choice of an action depends on.
type situation struct {
	self     string // this host, which leads
	hosts    []Status
	members  []store.Member
	now      time.Time
	patience time.Duration
}

// next decides what to change, one thing at a time; whoever calls looks anew after each. It never takes or gives a vote such
// that those who answer would be no majority.
func next(s situation) action {
	chosen := s.choose()
	for _, m := range s.members {
		if m.Learner && !slices.Contains(chosen, m.Name) {
			return action{"remove", m.Name} // it has no vote that could be missed
		}
	}
	var missing, learners, surplus []store.Member
	for _, name := range chosen {
		i := slices.IndexFunc(s.members, func(m store.Member) bool { return m.Name == name })
		switch {
		case i < 0:
			missing = append(missing, store.Member{Name: name})
		case s.members[i].Learner:
			learners = append(learners, s.members[i])
		}
	}
	for _, m := range s.voters() {
		if !slices.Contains(chosen, m.Name) {
			surplus = append(surplus, m)
		}
	}
	if len(missing) > 0 {
		return action{"add", missing[0].Name}
	}
	// A dead member gives its place up only when the one who takes it is ready.
	ready := !slices.ContainsFunc(learners, func(m store.Member) bool { return !m.Healthy })
	if len(surplus) > 0 && (ready || len(learners) == 0) {
		m := s.firstToGo(surplus)
		if s.majority(func(v store.Member) bool { return v.Name != m.Name }, 0) && (len(learners) == 0 || !s.alive(m.Name)) {
			return action{"remove", m.Name}
		}
	}
	if len(learners) > 0 && ready && s.majority(func(store.Member) bool { return true }, 1) {
		return action{"promote", learners[0].Name}
	}
	return action{}
}

func (s situation) voters() (voters []store.Member) {
	for _, m := range s.members {
		if !m.Learner {
			voters = append(voters, m)
		}
	}
	return voters
}

func (s situation) host(name string) (Status, bool) {
	i := slices.IndexFunc(s.hosts, func(h Status) bool { return h.Name == name })
	if i < 0 {
		return Status{}, false
	}
	return s.hosts[i], true
}

func (s situation) alive(name string) bool {
	h, ok := s.host(name)
	return ok && h.Alive
}

// present says that a host is alive, or has been until a moment ago.
func (s situation) present(h Status) bool {
	return h.Alive || h.Since.IsZero() || s.now.Sub(h.Since) < s.patience
}

// majority says whether of the voters that stay, and `more` healthy ones besides, those that answer are more than half.
func (s situation) majority(stays func(store.Member) bool, more int) bool {
	all, healthy := more, more
	for _, v := range s.voters() {
		if !stays(v) {
			continue
		}
		all++
		if v.Healthy {
			healthy++
		}
	}
	return healthy > all/2
}

// firstToGo of members that are too many: one that is gone, and this host's own last.
func (s situation) firstToGo(surplus []store.Member) store.Member {
	return slices.MinFunc(surplus, func(a, b store.Member) int {
		return cmp.Or(yes(s.alive(a.Name))-yes(s.alive(b.Name)), yes(a.Name == s.self)-yes(b.Name == s.self), strings.Compare(a.Name, b.Name))
	})
}

// choose names the hosts that should be members: witnesses first, then such that no site has more than it must, then those
// that are members already. A member that is gone is kept where nobody can take its place.
func (s situation) choose() []string {
	want := wantedMembers(len(s.hosts))
	var able, gone []Status
	for _, h := range s.hosts {
		member := s.isMember(h.Name)
		switch {
		case h.Alive && h.Address != "", member && s.present(h):
			able = append(able, h)
		case member:
			gone = append(gone, h)
		}
	}
	var chosen []string
	sites := map[string]int{}
	for len(chosen) < want && len(able) > 0 {
		i := s.best(able, sites, want)
		chosen = append(chosen, able[i].Name)
		sites[able[i].Site]++
		able = slices.Delete(able, i, i+1)
	}
	for _, h := range gone {
		if len(chosen) < want {
			chosen = append(chosen, h.Name)
		}
	}
	// An even number of votes survives no more deaths than one less.
	for i := len(chosen) - 1; len(chosen)%2 == 0 && i >= 0; i-- {
		if !s.isVoter(chosen[i]) {
			chosen = slices.Delete(chosen, i, i+1)
		}
	}
	if len(chosen)%2 == 0 && len(chosen) > 0 {
		chosen = chosen[:len(chosen)-1]
	}
	return chosen
}

// best is the one to take next of those able.
func (s situation) best(able []Status, sites map[string]int, want int) int {
	first := 0
	for i := range able {
		if s.compare(able[i], able[first], sites, want) < 0 {
			first = i
		}
	}
	return first
}

func (s situation) compare(a, b Status, sites map[string]int, want int) int {
	member := cmp.Or(yes(s.isVoter(b.Name))-yes(s.isVoter(a.Name)), yes(s.isMember(b.Name))-yes(s.isMember(a.Name)))
	self := yes(b.Name == s.self) - yes(a.Name == s.self)
	if want == 1 { // there is nothing to be gained by moving the only one
		return cmp.Or(member, yes(b.Alive)-yes(a.Alive), self, strings.Compare(a.Name, b.Name))
	}
	return cmp.Or(
		yes(b.Role == api.RoleWitness)-yes(a.Role == api.RoleWitness),
		cmp.Compare(sites[a.Site], sites[b.Site]),
		member, self, strings.Compare(a.Name, b.Name))
}

func (s situation) isMember(name string) bool {
	return slices.ContainsFunc(s.members, func(m store.Member) bool { return m.Name == name })
}

func (s situation) isVoter(name string) bool {
	return slices.ContainsFunc(s.members, func(m store.Member) bool { return m.Name == name && !m.Learner })
}

func yes(b bool) int {
	if b {
		return 1
	}
	return 0
}
