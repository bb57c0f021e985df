package cluster

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"polder/api"
	"polder/internal/store"
)

// world is a cluster as the membership controller sees it: it applies what next decides.
type world struct {
	hosts   []Status
	members []store.Member
	now     time.Time
}

const patience = 5 * time.Minute

func (w *world) add(name, site string, role api.HostRole) {
	w.hosts = append(w.hosts, Status{Host: Host{Name: name, Site: site, Role: role, Address: "192.0.2.1:7440"}, Alive: true})
}

func (w *world) setAlive(name string, alive bool) {
	for i := range w.hosts {
		if w.hosts[i].Name == name {
			w.hosts[i].Alive, w.hosts[i].Since = alive, time.Time{}
			if !alive {
				w.hosts[i].Since = w.now
			}
		}
	}
}

func (w *world) alive(name string) bool {
	return slices.ContainsFunc(w.hosts, func(h Status) bool { return h.Name == name && h.Alive })
}

// leader is a host that is alive, while there is a majority.
func (w *world) leader() string {
	healthy, all, self := 0, 0, ""
	for _, m := range w.members {
		if m.Learner {
			continue
		}
		all++
		if w.alive(m.Name) {
			healthy++
			self = m.Name
		}
	}
	if healthy <= all/2 {
		return ""
	}
	return self
}

func (w *world) situation() situation {
	members := slices.Clone(w.members)
	for i := range members {
		members[i].Healthy = w.alive(members[i].Name)
	}
	return situation{self: w.leader(), hosts: w.hosts, members: members, now: w.now, patience: patience}
}

// step applies one action; false: there was none.
func (w *world) step() (action, bool) {
	do := next(w.situation())
	i := slices.IndexFunc(w.members, func(m store.Member) bool { return m.Name == do.name })
	switch do.verb {
	case "add":
		w.members = append(w.members, store.Member{Name: do.name, Learner: true})
	case "promote":
		w.members[i].Learner = false
	case "remove":
		w.members = slices.Delete(w.members, i, i+1)
	default:
		return do, false
	}
	return do, true
}

// settle applies actions until there are no more.
func (w *world) settle(t interface{ Fatalf(string, ...any) }) (done []action) {
	for range 50 {
		do, more := w.step()
		if !more {
			return done
		}
		done = append(done, do)
	}
	t.Fatalf("the membership never settles: %v", done)
	return nil
}

func (w *world) voters() (names []string) {
	for _, m := range w.members {
		if !m.Learner {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	return names
}

func newWorld(names ...string) *world {
	w := &world{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	for _, name := range names {
		w.add(name, "", api.RoleClient)
	}
	w.members = []store.Member{{Name: names[0]}}
	return w
}

func (w *world) want(t *testing.T, names ...string) {
	t.Helper()
	w.settle(t)
	if got := w.voters(); !slices.Equal(got, names) {
		t.Errorf("members %v, want %v", got, names)
	}
}

func TestMembersFollowTheNumberOfHosts(t *testing.T) {
	w := newWorld("h1")
	w.want(t, "h1")
	w.add("h2", "", api.RoleClient)
	w.want(t, "h1")
	w.add("h3", "", api.RoleClient)
	w.want(t, "h1", "h2", "h3")
	w.add("h4", "", api.RoleClient)
	w.want(t, "h1", "h2", "h3")
	w.add("h5", "", api.RoleClient)
	w.want(t, "h1", "h2", "h3", "h4", "h5")
	w.hosts = w.hosts[:4] // h5 was removed
	if w.settle(t); len(w.voters()) != 3 || slices.Contains(w.voters(), "h5") {
		t.Errorf("members %v", w.voters())
	}
	w.hosts = w.hosts[:2]
	if w.settle(t); len(w.voters()) != 1 {
		t.Errorf("members %v", w.voters())
	}
}

func TestAMemberThatIsGoneIsReplacedOnceItsTimeIsOver(t *testing.T) {
	w := newWorld("h1", "h2", "h3", "h4")
	w.want(t, "h1", "h2", "h3")
	w.setAlive("h2", false)
	w.want(t, "h1", "h2", "h3")
	w.now = w.now.Add(patience + time.Second)
	w.want(t, "h1", "h3", "h4")
	w.setAlive("h2", true)
	w.want(t, "h1", "h3", "h4")
}

func TestAMemberThatNobodyCanReplaceStays(t *testing.T) {
	w := newWorld("h1", "h2", "h3")
	w.want(t, "h1", "h2", "h3")
	w.setAlive("h2", false)
	w.now = w.now.Add(time.Hour)
	w.want(t, "h1", "h2", "h3")
}

func TestTwoVotesAreNeverTheEnd(t *testing.T) {
	w := newWorld("h1", "h2", "h3")
	w.setAlive("h3", false) // it joined, and died before it was a member
	w.now = w.now.Add(time.Hour)
	w.want(t, "h1")
	w.setAlive("h3", true)
	w.want(t, "h1", "h2", "h3")
}

func TestAWitnessIsPreferredAndSitesAreSpread(t *testing.T) {
	w := newWorld("h1", "h2", "h3")
	w.add("w1", "", api.RoleWitness)
	w.settle(t)
	if !slices.Contains(w.voters(), "w1") {
		t.Errorf("members %v, want the witness among them", w.voters())
	}
	w = &world{members: []store.Member{{Name: "a1"}}}
	w.add("a1", "a", api.RoleClient)
	w.add("a2", "a", api.RoleClient)
	w.add("a3", "a", api.RoleClient)
	w.want(t, "a1", "a2", "a3")
	w.add("b1", "b", api.RoleClient)
	if w.settle(t); !slices.Contains(w.voters(), "b1") || len(w.voters()) != 3 {
		t.Errorf("members %v, want one of site b among three", w.voters())
	}
}

func TestTheOnlyMemberIsNotMovedAbout(t *testing.T) {
	w := newWorld("h1")
	w.add("w1", "", api.RoleWitness)
	w.want(t, "h1")
}

// Whatever happens to hosts: an action never leaves less than a majority that answers, and once all is quiet the membership
// is what the number of hosts asks for.
func TestMembershipKeepsItsMajority(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld("h0")
		for i := range rapid.IntRange(1, 40).Draw(t, "events") {
			switch rapid.SampledFrom([]string{"join", "die", "return", "remove", "time", "act", "act", "act"}).Draw(t, "event") {
			case "join":
				role := rapid.SampledFrom([]api.HostRole{api.RoleClient, api.RoleWitness}).Draw(t, "role")
				w.add(fmt.Sprintf("h%d", i+1), rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "site"), role)
			case "die":
				w.setAlive(rapid.SampledFrom(w.hosts).Draw(t, "host").Name, false)
			case "return":
				w.setAlive(rapid.SampledFrom(w.hosts).Draw(t, "host").Name, true)
			case "remove":
				if h := rapid.SampledFrom(w.hosts).Draw(t, "host"); !h.Alive && !w.situation().isMember(h.Name) {
					w.hosts = slices.DeleteFunc(w.hosts, func(x Status) bool { return x.Name == h.Name })
				}
			case "time":
				w.now = w.now.Add(time.Duration(rapid.IntRange(1, 400).Draw(t, "seconds")) * time.Second)
			case "act":
				if w.leader() == "" {
					continue // nobody can change anything
				}
				do, _ := w.step()
				if w.leader() == "" {
					t.Fatalf("%v leaves no majority: members %v", do, w.members)
				}
			}
		}
		for _, h := range w.hosts {
			w.setAlive(h.Name, true)
		}
		if w.leader() == "" {
			t.Skip("the last member is gone for good")
		}
		w.settle(t)
		if got := len(w.voters()); got != wantedMembers(len(w.hosts)) || len(w.members) != got {
			t.Fatalf("%d hosts have the members %v", len(w.hosts), w.members)
		}
	})
}
