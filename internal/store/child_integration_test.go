//go:build integration

package store_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"polder/internal/store"
)

// memberOptions makes the test binary a member with these options, in JSON, until its standard input ends.
const memberOptions = "POLDER_TEST_MEMBER"

// memberFlags are what a member process is told.
type memberFlags struct {
	Dir     string
	Peering *store.Peering
}

func serveMember(text string) {
	var flags memberFlags
	err := json.Unmarshal([]byte(text), &flags)
	if err == nil {
		var member *store.RunningMember
		member, err = store.RunMember(context.Background(), store.Options{Dir: flags.Dir, Peering: flags.Peering})
		if err == nil {
			fmt.Println("ready")
			_, _ = io.Copy(io.Discard, os.Stdin)
			err = member.Close()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child is a member in a process of its own.
type child struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Closer
}

// start returns when the member has its place in the cluster.
func (w *world) start(o store.Options) *child {
	w.t.Helper()
	c := w.launch(o)
	if !bufio.NewScanner(c.stdout()).Scan() {
		w.t.Fatalf("member %s did not start", o.Peering.Name)
	}
	return c.child
}

type starting struct {
	*child
	out io.Reader
}

func (s starting) stdout() io.Reader { return s.out }

func (w *world) launch(o store.Options) starting {
	w.t.Helper()
	text, err := json.Marshal(memberFlags{o.Dir, o.Peering})
	if err != nil {
		w.t.Fatal(err)
	}
	c := &child{t: w.t, cmd: exec.Command("/proc/self/exe")}
	c.cmd.Env = append(os.Environ(), memberOptions+"="+string(text))
	if os.Getenv("POLDER_TEST_LOG") != "" {
		c.cmd.Stderr = os.Stderr
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		w.t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.kill)
	return starting{c, out}
}

// kill ends it as rudely as possible.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// children are three members, each in a process of its own, and the store of a host that is none.
func (w *world) children() (members map[string]*child, s *store.Store) {
	w.t.Helper()
	members = map[string]*child{"h1": w.start(w.options(1))}
	s = w.client(1)
	for n := 2; n <= 3; n++ {
		o := w.options(n)
		w.await(patience, func() error { return s.AddMember(w.t.Context(), o.Peering.Name, o.Peering.Peer) })
		members[o.Peering.Name] = w.start(w.joining(s, n))
	}
	w.promote(s, 2, 3)
	s.SetEndpoints([]string{"127.0.7.1:7442", "127.0.7.2:7442", "127.0.7.3:7442"})
	return members, s
}

// leader names the member that leads.
func (w *world) leader(s *store.Store) (name string) {
	w.t.Helper()
	w.await(patience, func() error {
		members, err := s.Members(w.t.Context())
		for _, m := range members {
			if m.Leader {
				name = m.Name
			}
		}
		if err == nil && name == "" {
			err = fmt.Errorf("nobody leads: %+v", members)
		}
		return err
	})
	return name
}
