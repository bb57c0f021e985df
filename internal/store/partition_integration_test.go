//go:build integration

package store_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"polder/api"
	"polder/internal/store"
)

// wantNoMajority makes a read and a write that must both be refused in time, and say why.
func wantNoMajority(t *testing.T, s *store.Store, want string) {
	t.Helper()
	table := store.NewTable[int](s, "n", 1)
	done := make(chan error, 2)
	start := time.Now()
	go func() {
		_, err := table.Get(t.Context(), "a")
		done <- err
	}()
	go func() {
		_, err := table.Put(t.Context(), "cut", 1)
		if err != nil && !strings.HasSuffix(err.Error(), ": it may or may not have happened") {
			err = fmt.Errorf("the write does not say that it may have happened: %w", err)
		}
		done <- err
	}()
	for range 2 {
		if err := <-done; kindOf(err, api.Unavailable) != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want %q in it", err, want)
		}
	}
	if took := time.Since(start); took > 12*time.Second {
		t.Errorf("that took %v", took)
	}
}

// silence drops what would open a connection to these members' ports for clients; connections that are there stay.
func silence(t *testing.T, hosts ...string) (end func()) {
	t.Helper()
	rules := "add table ip polder_test; add chain ip polder_test out { type filter hook output priority 0; };"
	for _, host := range hosts {
		rules += " add rule ip polder_test out ip daddr " + strings.Replace(host, "h", "127.0.7.", 1) + " tcp dport 7442 ct state new drop;"
	}
	run(t, "nft", rules)
	end = sync.OnceFunc(func() { run(t, "nft", "delete table ip polder_test") })
	t.Cleanup(end)
	return end
}

// TestCutOffFromTheLeader cuts a member of three off from the one that leads, and from no other.
func TestCutOffFromTheLeader(t *testing.T) {
	w := newWorld(t)
	stores := w.cluster(3)
	leader := w.leader(stores[0])
	var leads, cut *store.Store
	for i, s := range stores {
		if leader == fmt.Sprint("h", i+1) {
			leads, cut = s, stores[(i+1)%3]
		}
	}
	table := store.NewTable[int](cut, "n", 1)
	lease, err := cut.Lease(t.Context(), 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	ended, err := lease.KeepAlive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	changes := table.Watch(t.Context(), 0)
	theirs := table.Watch(t.Context(), 0)
	writer := startWriter(t, cut, "w")
	unheard := silence(t, leader)
	store.CutFrom(cut, leads)
	w.await(standstill, func() error {
		if store.Direct(cut) {
			return errors.New("the member that was cut off is still asked")
		}
		return nil
	})
	if _, err := store.NewTable[int](leads, "n", 1).Create(t.Context(), "leader's", 1); err != nil {
		t.Error(err)
	}
	for c := range theirs { // what is written on the other side comes by the third
		if c.Key == "leader's" {
			break
		}
	}
	time.Sleep(3 * time.Second) // for which the lease would last by itself
	if store.Direct(cut) {
		t.Error("the member that was cut off is asked again before it was healed")
	}
	store.Heal(cut)
	unheard()
	w.await(patience, func() error {
		if !store.Direct(cut) {
			return errors.New("the member in its own process is not asked again")
		}
		return nil
	})
	writer.stop()
	t.Logf("%d writes, the longest took %v", writer.n, writer.longest)
	if writer.longest > standstill {
		t.Errorf("writes stood still for %v", writer.longest)
	}
	writer.check(cut, changes)
	select {
	case <-ended:
		t.Error("the lease ended")
	default:
	}
}

// TestCutOffMember cuts a member of three off from the others and heals it, with the store of its own host and that of a
// host that is no member.
func TestCutOffMember(t *testing.T) {
	w := newWorld(t)
	stores := w.cluster(3)
	for _, leads := range []bool{true, false} {
		t.Run(fmt.Sprint("leader ", leads), func(t *testing.T) {
			leader := w.leader(stores[0])
			cut, rest := stores[0], stores[1]
			for i, s := range stores {
				if (leader == fmt.Sprint("h", i+1)) == leads {
					cut, rest = s, stores[(i+1)%3]
				}
			}
			client := w.connected(1, 2, 3)
			own, others := store.NewTable[int](cut, "n", 1), store.NewTable[int](rest, "n", 1)
			changes := own.Watch(t.Context(), 0)
			unheard := silence(t, "h1", "h2", "h3") // by the cut one; the client is connected
			store.Cut(cut)
			wantNoMajority(t, cut, "no majority of the members h1, h2, h3 answers")
			for _, s := range []*store.Store{rest, client} {
				start := time.Now()
				if _, err := store.NewTable[int](s, "n", 1).Put(t.Context(), "a", 1); err != nil {
					t.Errorf("write to the others: %v", err)
				}
				if took := time.Since(start); took > standstill {
					t.Errorf("write to the others took %v", took)
				}
			}
			store.Heal(cut)
			unheard()
			w.await(patience, func() error { _, err := own.Put(t.Context(), "b", 2); return err })
			if rec, err := others.Get(t.Context(), "b"); err != nil || rec.Value != 2 {
				t.Errorf("after healing: %v, %v", rec, err)
			}
			var seen []string
			for len(seen) == 0 || seen[len(seen)-1] != "b" {
				if c := <-changes; c.Key != "cut" {
					seen = append(seen, c.Key)
				}
			}
			if got := strings.Join(seen, " "); got != "a a b" {
				t.Errorf("the watch saw %q", got)
			}
		})
	}
}

// TestNoMajority kills two of three members, and starts them again.
func TestNoMajority(t *testing.T) {
	w := newWorld(t)
	first := w.open(w.options(1))
	table := store.NewTable[int](first, "n", 1)
	if _, err := table.Create(t.Context(), "a", 1); err != nil {
		t.Fatal(err)
	}
	children := map[int]*child{}
	for n := 2; n <= 3; n++ {
		o := w.options(n)
		w.await(patience, func() error { return first.AddMember(t.Context(), o.Peering.Name, o.Peering.Peer) })
		children[n] = w.start(w.joining(first, n))
	}
	w.promote(first, 2, 3)
	client := w.client(1, 2, 3)
	changes := store.NewTable[int](client, "n", 1).Watch(t.Context(), 0)
	for _, c := range children {
		c.kill()
	}
	wantNoMajority(t, first, "no majority of the members h1, h2, h3 answers")
	wantNoMajority(t, client, "no majority of the members https://127.0.7.1:7442, https://127.0.7.2:7442, https://127.0.7.3:7442 answers")
	members, err := first.Members(t.Context())
	if err != nil || len(members) != 3 {
		t.Errorf("members without a majority: %+v, %v", members, err)
	}
	for _, m := range members {
		if m.Healthy || m.Leader {
			t.Errorf("member %+v", m)
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = store.Open(ctx, w.options(1))
	if kindOf(err, api.Unavailable) != nil || !strings.Contains(err.Error(), "no majority of the members h1, h2, h3 answers") {
		t.Errorf("opening without a majority: %v", err)
	}
	starting := []starting{w.launch(w.options(2)), w.launch(w.options(3))}
	_ = starting
	first = w.open(w.options(1))
	table = store.NewTable[int](first, "n", 1)
	if _, err := table.Create(t.Context(), "b", 2); err != nil {
		t.Error(err)
	}
	if rec, err := store.NewTable[int](client, "n", 1).Get(t.Context(), "b"); err != nil || rec.Value != 2 {
		t.Errorf("the client reads %v, %v", rec, err)
	}
	for c := range changes {
		if c.Key == "b" {
			break
		}
		if c.Key != "cut" {
			t.Errorf("the client's watch saw %+v", c)
		}
	}
}

// TestReplaceMember takes a dead member out and puts another in; then the dead one comes back.
func TestReplaceMember(t *testing.T) {
	w := newWorld(t)
	stores := w.cluster(3)
	s := stores[0]
	if err := stores[2].Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := store.NewTable[int](s, "n", 1).Create(t.Context(), "a", 1); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to do
		w.await(patience, func() error { return s.RemoveMember(t.Context(), "h3") })
	}
	fourth := w.join(s, 4)[0]
	if err := s.AddMember(t.Context(), "h4", "127.0.7.4:7441"); err != nil {
		t.Errorf("adding a member that is there: %v", err)
	}
	if rec, err := store.NewTable[int](fourth, "n", 1).Get(t.Context(), "a"); err != nil || rec.Value != 1 {
		t.Errorf("the new member reads %v, %v", rec, err)
	}
	_, err := store.Open(t.Context(), w.options(3))
	if kindOf(err, api.Precondition) != nil || !strings.Contains(err.Error(), "was removed from the cluster") {
		t.Errorf("start of the removed member: %v", err)
	}
	if err := os.RemoveAll(w.options(3).Dir); err != nil {
		t.Fatal(err)
	}
	third := w.join(s, 3)[0]
	if members, err := third.Members(t.Context()); err != nil || len(members) != 4 {
		t.Errorf("members %+v, %v", members, err)
	}
	// Removed while it runs, and it leads.
	leader := w.leader(third)
	var removed, other *store.Store
	for name, s := range map[string]*store.Store{"h1": s, "h2": stores[1], "h3": third, "h4": fourth} {
		if name == leader {
			removed = s
		} else {
			other = s
		}
	}
	w.await(patience, func() error { return other.RemoveMember(t.Context(), leader) })
	select {
	case <-removed.Failed():
	case <-time.After(patience):
		t.Fatal("the removed member goes on")
	}
	if err := kindOf(removed.Err(), api.Precondition); err != nil {
		t.Error(err)
	}
	if _, err := store.NewTable[int](other, "n", 1).Get(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}

// TestWitness has a third member that only votes.
func TestWitness(t *testing.T) {
	w := newWorld(t)
	stores := w.cluster(2)
	w.await(patience, func() error { return stores[0].AddMember(t.Context(), "h3", "127.0.7.3:7441") })
	witness, err := store.RunMember(t.Context(), w.joining(stores[0], 3))
	if err != nil {
		t.Fatal(err)
	}
	w.promote(stores[0], 3)
	if err := stores[0].Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := store.NewTable[int](stores[1], "n", 1).Create(t.Context(), "a", 1); err != nil {
		t.Error(err)
	}
	if err := witness.Close(); err != nil || witness.Err() != nil {
		t.Errorf("closing the witness: %v, %v", err, witness.Err())
	}
	witness, err = store.RunMember(t.Context(), w.options(3))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.NewTable[int](stores[1], "n", 1).Create(t.Context(), "b", 1); err != nil {
		t.Error(err)
	}
	if err := witness.Close(); err != nil {
		t.Error(err)
	}
}

// TestNewAddress moves a member to other addresses.
func TestNewAddress(t *testing.T) {
	w := newWorld(t)
	stores := w.cluster(3)
	if err := stores[2].Close(); err != nil {
		t.Fatal(err)
	}
	o := w.options(3)
	o.Peering.Peer, o.Peering.Client = "127.0.7.30:7441", "127.0.7.30:7442"
	o.Peering.TLS = w.ca.issue(t.TempDir(), "127.0.7.30")
	moved := w.open(o)
	if _, err := store.NewTable[int](moved, "n", 1).Create(t.Context(), "a", 1); err != nil {
		t.Error(err)
	}
	w.await(patience, func() error {
		members, err := stores[0].Members(t.Context())
		if err == nil && (len(members) != 3 || members[2].Peer != o.Peering.Peer || members[2].Client != o.Peering.Client || !members[2].Healthy) {
			err = fmt.Errorf("members %+v", members)
		}
		return err
	})
}

// TestStrangers comes to a member's ports without a certificate of the cluster's.
func TestStrangers(t *testing.T) {
	w := newWorld(t)
	s := w.open(w.options(1))
	if _, err := store.NewTable[int](s, "n", 1).Create(t.Context(), "a", 1); err != nil {
		t.Fatal(err)
	}
	other := newAuthority(t, t.TempDir(), "other")
	foreign := other.issue(t.TempDir(), "127.0.7.9")
	foreign.CA = w.ca.file // it trusts them; they do not trust it
	for name, files := range map[string]store.TLS{"none": {CA: w.ca.file}, "foreign": foreign} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		stranger, err := store.Open(ctx, store.Options{Endpoints: []string{"127.0.7.1:7442"}, TLS: files, Log: w.quiet})
		cancel()
		if kindOf(err, api.Unavailable) != nil {
			t.Errorf("stranger with certificate %s: %v, %v", name, stranger, err)
		}
		for _, path := range []string{":7441/members", ":7441/raft", ":7441/version", ":7442/metrics", ":7442/health", ":7442/debug/vars"} {
			if status, err := get(t, "https://127.0.7.1"+path, files); err == nil {
				t.Errorf("stranger with certificate %s gets %s: %s", name, path, status)
			}
		}
	}
	if status, err := get(t, "https://127.0.7.1:7441/members", w.options(9).Peering.TLS); err != nil || status != "200 OK" {
		t.Errorf("a host of the cluster gets %s, %v", status, err)
	}
	// A member of another cluster is not let in either, nor does it take part in this one.
	foreigner := w.options(2)
	foreigner.Peering.TLS = other.issue(t.TempDir(), "127.0.7.2")
	foreigner.Peering.Join = map[string]string{"h1": "127.0.7.1:7441", "h2": "127.0.7.2:7441"}
	if err := s.AddMember(t.Context(), "h2", "127.0.7.2:7441"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := store.Open(ctx, foreigner); err == nil {
		t.Error("a member with a foreign certificate joined")
	}
}

func get(t *testing.T, url string, files store.TLS) (status string, err error) {
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	text, err := os.ReadFile(files.CA)
	if err != nil || !config.RootCAs.AppendCertsFromPEM(text) {
		t.Fatal(err)
	}
	if files.Cert != "" {
		pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	transport := &http.Transport{TLSClientConfig: config}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Get(url)
	if err != nil {
		return "", err
	}
	return response.Status, response.Body.Close()
}

// TestRenewedCertificate replaces a member's certificate under it.
func TestRenewedCertificate(t *testing.T) {
	w := newWorld(t)
	stores := w.cluster(2)
	serial := func() string {
		connection, err := tls.Dial("tcp", "127.0.7.1:7442", &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer connection.Close()
		return connection.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	before := serial()
	dir := strings.TrimSuffix(w.options(1).Dir, "/store")
	w.ca.issue(dir, "127.0.7.1")
	if serial() == before {
		t.Error("the member still shows its old certificate")
	}
	if _, err := store.NewTable[int](stores[1], "n", 1).Create(t.Context(), "a", 1); err != nil {
		t.Error(err)
	}
}

// TestWrongUse joins with what is not free to join.
func TestWrongUse(t *testing.T) {
	w := newWorld(t)
	first := w.open(w.options(1))
	second := w.open(w.options(2)) // a cluster of its own
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if err := first.AddMember(t.Context(), "h2", "127.0.7.2:7441"); err != nil {
		t.Fatal(err)
	}
	if err := kindOf(first.PromoteMember(t.Context(), "h2"), api.Precondition); err != nil {
		t.Error(err)
	}
	_, err := store.Open(t.Context(), w.joining(first, 2))
	if kindOf(err, api.Precondition) != nil || !strings.Contains(err.Error(), "host alone") {
		t.Errorf("joining with the data of another cluster: %v", err)
	}
	if err := kindOf(first.AddMember(t.Context(), "h3", "127.0.7.2:7441"), api.Conflict); err != nil {
		t.Error(err)
	}
	if err := kindOf(first.AddMember(t.Context(), "h3", "somewhere"), api.Invalid); err != nil {
		t.Error(err)
	}
	if err := kindOf(first.PromoteMember(t.Context(), "h3"), api.NotFound); err != nil {
		t.Error(err)
	}
	if err := first.RemoveMember(t.Context(), "h2"); err != nil {
		t.Error(err)
	}
	third := w.join(first, 3)[0]
	if err := errors.Join(first.Close(), third.Close()); err != nil {
		t.Error(err)
	}
	o := w.options(1)
	o.Peering = nil
	_, err = store.Open(t.Context(), o)
	if kindOf(err, api.Precondition) != nil || !strings.Contains(err.Error(), "members h1, h3") {
		t.Errorf("opening a member of two as if it were alone: %v", err)
	}
}

// TestNewerFormat has a newer host change the store's format under an older one.
func TestNewerFormat(t *testing.T) {
	w := newWorld(t)
	s := w.open(w.options(1))
	client := w.client(1)
	store.WriteFormat(t, s, "7")
	for _, s := range []*store.Store{s, client} {
		select {
		case <-s.Failed():
		case <-time.After(patience):
			t.Fatal("the store goes on")
		}
		if err := kindOf(s.Err(), api.Unsupported); err != nil {
			t.Error(err)
		}
	}
}
