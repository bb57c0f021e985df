//go:build integration

package cluster

import (
	"testing"
	"time"

	"polder/api"
)

// eventually tries until what holds, for a minute at most.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("within a minute it does not come true that %s", what)
}

// count says how many hosts are members, and how many are alive, as h sees it.
func count(t *testing.T, h *testHost) (members, alive int) {
	t.Helper()
	list, err := h.Hosts(t.Context())
	if err != nil {
		return 0, 0
	}
	for _, s := range list {
		if s.Role == api.RoleMember {
			members++
		}
		if s.Alive {
			alive++
		}
	}
	return members, alive
}

// Three hosts keep the store together: any one of them may go and come back, the first one too.
func TestThreeHostsSurviveEachOfThem(t *testing.T) {
	h1 := opened(t)
	hosts := []*testHost{h1}
	for _, name := range []string{"h2", "h3"} {
		hosts = append(hosts, bring(t, joinOptions(t, name, h1.token(t).String())))
	}
	eventually(t, "all three are members", func() bool {
		members, alive := count(t, hosts[2])
		return members == 3 && alive == 3
	})
	for i, h := range hosts {
		h.stop()
		other := hosts[(i+1)%3]
		eventually(t, h.Name()+" is missed, and the others go on", func() bool {
			_, alive := count(t, other)
			return alive == 2
		})
		if _, err := other.JoinToken(t.Context(), api.JoinTokenRequest{}); err != nil {
			t.Errorf("without %s: %v", h.Name(), err)
		}
		if _, err := other.Reachable(t.Context(), h.Name()); api.KindOf(err) != api.Unavailable {
			t.Errorf("%s is down, and said to be reachable: %v", h.Name(), err)
		}
		o := h.identity.options
		hosts[i] = bring(t, o)
		eventually(t, h.Name()+" is back", func() bool {
			_, alive := count(t, other)
			return alive == 3
		})
	}
}

// A host that is made a member, and dies with all others before it knows, still gives its vote when it is back.
func TestAVoteThatItsHostDoesNotKnowOf(t *testing.T) {
	h1 := opened(t)
	hosts := []*testHost{h1}
	for _, name := range []string{"h2", "h3"} {
		hosts = append(hosts, bring(t, joinOptions(t, name, h1.token(t).String())))
	}
	eventually(t, "all three are members", func() bool {
		members, _ := count(t, hosts[2])
		return members == 3
	})
	for _, h := range hosts {
		h.stop()
	}
	if err := hosts[2].identity.change(func(k *kept) { k.Member = false }); err != nil {
		t.Fatal(err)
	}
	back := make(chan *testHost, 2)
	for _, h := range hosts[1:] { // h1 stays down
		go func() { back <- bring(t, h.identity.options) }()
	}
	second := <-back
	<-back
	eventually(t, "two of three go on", func() bool {
		_, alive := count(t, second)
		return alive >= 2
	})
}
