package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"polder/api"
	"polder/client"
)

// The hosts of a lab are one cluster, save for a lab that was made with Alone: the first is a cluster by itself, the
// others join it with a token each. A host that has joined has a note of it; one without, whatever happened to it, is
// given another token, which has no effect if it had joined all the same.

const joinedFile = "joined"

// peerPort is where the daemons of a cluster reach each other.
const peerPort = 7440

// clusterTime bounds how long a host's daemon may take to come up, or to become one of the cluster.
const clusterTime = time.Minute

func (l *Lab) joined(n int) bool {
	_, err := os.Stat(l.path(nameOf(n), joinedFile))
	return err == nil
}

func (l *Lab) noteJoined(n int) error {
	if err := os.WriteFile(l.path(nameOf(n), joinedFile), nil, 0o644); err != nil {
		return api.Errorf(api.Internal, "note that lab host %s has joined: %w", nameOf(n), err)
	}
	return nil
}

// daemonOf is the command line of a host's daemon.
func (r *record) daemonOf(daemon []string, n int, token string) []string {
	if len(daemon) == 0 {
		return nil
	}
	argv := slices.Clone(daemon)
	if r.Cluster {
		v4, _ := r.address(n)
		argv = append(argv, "--address", fmt.Sprintf("%s:%d", v4.Addr(), peerPort))
	}
	if r.Sites > 0 {
		argv = append(argv, "--site", siteOf(n, r.Sites))
	}
	if token != "" {
		argv = append(argv, "--join", token)
	}
	return argv
}

// siteOf spreads the hosts over the sites, one by one.
func siteOf(n, sites int) string { return fmt.Sprintf("site%d", (n-1)%sites+1) }

// bringUpAll starts the hosts of a lab and waits until all their daemons answer, those of a cluster as one. Hosts that
// are of the cluster come first and together: some may wait for others.
func (l *Lab) bringUpAll(ctx context.Context, env hostEnv, all []int, changed bool, report Report) error {
	var members, others []int
	for i, n := range all {
		if !env.record.Cluster || len(env.daemon) == 0 || l.joined(n) || i == 0 {
			members = append(members, n)
		} else {
			others = append(others, n)
		}
	}
	var waits []func() error
	for _, n := range members {
		wait, err := l.bringUp(ctx, env, n, "", changed, report)
		if err != nil {
			return err
		}
		waits = append(waits, wait)
	}
	for _, wait := range waits {
		if err := wait(); err != nil {
			return err
		}
	}
	if !env.record.Cluster || len(env.daemon) == 0 {
		return nil
	}
	if err := l.noteJoined(members[0]); err != nil {
		return err
	}
	for _, n := range others {
		if err := l.joinUp(ctx, env, n, changed, report); err != nil {
			return err
		}
	}
	return l.waitCluster(ctx, all)
}

// joinUp starts a host that is not of the cluster yet, and waits until it is.
func (l *Lab) joinUp(ctx context.Context, env hostEnv, n int, changed bool, report Report) error {
	token, err := l.joinToken(ctx, env.record, n)
	if err != nil {
		return fmt.Errorf("let lab host %s into the cluster: %w", nameOf(n), err)
	}
	if l.initPID(nameOf(n)) != 0 { // without the token
		if err := l.killHost(ctx, n); err != nil {
			return err
		}
	}
	wait, err := l.bringUp(ctx, env, n, token, changed, report)
	if err == nil {
		err = wait()
	}
	if err == nil {
		err = l.waitMember(ctx, n)
	}
	if err != nil {
		return err
	}
	return l.noteJoined(n)
}

// joinToken gets a token from a host of the cluster that runs; it is for host n.
func (l *Lab) joinToken(ctx context.Context, r *record, n int) (string, error) {
	at, err := l.anyMember(n)
	if err != nil {
		return "", err
	}
	c, err := client.New("unix://" + l.socket(at))
	if err != nil {
		return "", err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, clusterTime)
	defer cancel()
	v4, _ := r.address(at)
	token, err := c.JoinToken(ctx, api.JoinTokenRequest{Address: fmt.Sprintf("%s:%d", v4.Addr(), peerPort)})
	return token.Token, err
}

// anyMember finds a host other than n that runs and has joined.
func (l *Lab) anyMember(n int) (int, error) {
	all, err := l.hostNumbers()
	if err != nil {
		return 0, err
	}
	for _, other := range all {
		if other != n && l.joined(other) && l.initPID(nameOf(other)) != 0 {
			return other, nil
		}
	}
	return 0, api.Errorf(api.Precondition, "no host of the cluster runs; start one with: polder lab start HOST")
}

// waitMember waits until a host's daemon says that it is one of several.
func (l *Lab) waitMember(ctx context.Context, n int) error {
	return l.waitHosts(ctx, n, func(hosts []api.Host) string {
		if len(hosts) < 2 {
			return "it is still alone"
		}
		return ""
	})
}

// waitCluster waits until the first host says of all that they are ready.
func (l *Lab) waitCluster(ctx context.Context, all []int) error {
	return l.waitHosts(ctx, all[0], func(hosts []api.Host) string {
		var missing []string
		for _, n := range all {
			ready := func(h api.Host) bool { return h.Name == nameOf(n) && h.State == api.HostReady }
			if !slices.ContainsFunc(hosts, ready) {
				missing = append(missing, nameOf(n))
			}
		}
		if len(missing) > 0 {
			return "not ready: " + strings.Join(missing, ", ")
		}
		return ""
	})
}

// waitHosts waits until the hosts that host n lists are as wanted; what says why they are not.
func (l *Lab) waitHosts(ctx context.Context, n int, what func([]api.Host) string) error {
	c, err := client.New("unix://" + l.socket(n))
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, cancel := context.WithTimeout(ctx, clusterTime)
	defer cancel()
	for {
		hosts, err := c.Hosts(deadline)
		if err == nil {
			why := what(hosts)
			if why == "" {
				return nil
			}
			err = errors.New(why)
		}
		select {
		case <-deadline.Done():
			if ctx.Err() != nil {
				return api.Errorf(api.Cancelled, "wait for the cluster: %w", ctx.Err())
			}
			return api.Errorf(api.Unavailable, "the cluster does not come together, as lab host %s sees it: %w; the end of its log: %s", nameOf(n), err, l.logTail(n))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// mayLackMajority says whether so few hosts of the cluster run that a daemon may have to wait for others.
func (l *Lab) mayLackMajority(r *record) (bool, error) {
	all, err := l.hostNumbers()
	if err != nil || !r.Cluster {
		return false, err
	}
	joined, running := 0, 0
	for _, n := range all {
		if l.joined(n) {
			joined++
			if l.initPID(nameOf(n)) != 0 {
				running++
			}
		}
	}
	return running <= joined/2, nil
}

// leave takes hosts that are about to be removed from the lab out of its cluster.
func (l *Lab) leave(ctx context.Context, n int) error {
	if err := os.Remove(l.path(nameOf(n), joinedFile)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	at, err := l.anyMember(n)
	if err != nil {
		return err
	}
	c, err := client.New("unix://" + l.socket(at))
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.RemoveHost(ctx, nameOf(n), true); err != nil && api.KindOf(err) != api.NotFound {
		return fmt.Errorf("take lab host %s out of the cluster: %w", nameOf(n), err)
	}
	return nil
}
