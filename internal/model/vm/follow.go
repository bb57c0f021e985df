package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"polder/api"
	"polder/internal/model"
)

// With post-copy both QEMUs are joined until the last page has come:
//
//	source   pre-switchover --Serve--> postcopy-active --> completed
//	target   inmigrate --Enter, Serve--> running, postcopy-active --Gather--> completed
//	either   postcopy-active --the connection broke--> postcopy-paused --Gather's call, Serve--> postcopy-active

// stopsBeforePostCopy says whether this QEMU heeds pause-before-switchover with post-copy too, as 10.0 and later do: else the VE would
// go on over there before that is decided.
func (m *monitor) stopsBeforePostCopy(ctx context.Context) (bool, error) {
	var got struct {
		QEMU struct {
			Major int `json:"major"`
		} `json:"qemu"`
	}
	err := m.ask(ctx, "query-version", nil, &got)
	return got.QEMU.Major >= 10, err
}

// Serve implements model.Follower.
func (m *Model) Serve(ctx context.Context, ve model.Spec, to string) (api.Bytes, error) {
	n, err := m.serve(ctx, ve, to)
	if err != nil {
		return n, fmt.Errorf("serve vm %q: %w", ve.Name, err)
	}
	return n, nil
}

func (m *Model) serve(ctx context.Context, ve model.Spec, to string) (sent api.Bytes, err error) {
	q, err := m.openMonitor(ctx, ve)
	if err != nil {
		return 0, err
	}
	defer q.Close()
	done := map[string]bool{} // what was asked for, once
	once := func(command string, arguments map[string]any) error {
		if done[command] {
			return nil
		}
		done[command] = true
		return q.do(ctx, command, arguments)
	}
	err = q.await(ctx, 5*time.Millisecond, func() (bool, error) {
		got, err := q.migration(ctx)
		if err == nil {
			err = got.failed()
		}
		if err != nil {
			return false, err
		}
		sent = api.Bytes(got.RAM.Transferred)
		switch got.Status {
		case "completed":
			return true, nil
		case "pre-switchover":
			return false, once("migrate-continue", preSwitchover)
		case "postcopy-active":
			if to == "" || done["migrate"] {
				return true, nil
			}
			// The target knows that the connection broke, this end does not yet.
			return false, once("migrate-pause", nil)
		case "postcopy-paused":
			if to == "" {
				return false, errPaused
			}
			if done["migrate"] {
				return false, errors.New("the connection broke again")
			}
			return false, once("migrate", map[string]any{"uri": "tcp:" + to, "resume": true})
		case "active", "device", "postcopy-device", "postcopy-recover", "postcopy-recover-setup":
			return false, nil
		}
		return false, api.Errorf(api.Precondition, "its migration is %q", got.Status)
	})
	return sent, err
}

// errPaused is what ends a wait when the connection broke.
var errPaused = api.Errorf(api.Unavailable, "the connection between the hosts broke")

// gatherPeriod is how long the source is given to come back before it is called again.
const gatherPeriod = time.Second

// Gather implements model.Follower.
func (m *Model) Gather(ctx context.Context, ve model.Spec, again func(ctx context.Context, to string) error) error {
	if err := m.gather(ctx, ve, again); err != nil {
		return fmt.Errorf("gather vm %q: %w", ve.Name, err)
	}
	return nil
}

func (m *Model) gather(ctx context.Context, ve model.Spec, again func(ctx context.Context, to string) error) error {
	mark, err := readMoving(ve)
	if err != nil || mark == nil { // all is there
		return err
	}
	q, err := m.openMonitor(ctx, ve)
	if err != nil {
		return err
	}
	defer q.Close()
	err = q.await(ctx, gatherPeriod, func() (bool, error) {
		got, err := q.migration(ctx)
		if err == nil {
			err = got.failed()
		}
		if err != nil || got.Status != "postcopy-paused" {
			return got.Status == "completed", err
		}
		to, err := q.listenAgain(ctx, got)
		if err == nil && again(ctx, to) != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return false, err
	})
	if err != nil {
		return err
	}
	calm(ve)
	return errors.Join(q.tidy(ctx), m.forbidFaults(ve.IDBase), arrived(ve))
}

// listenAgain makes the target wait for the source at a new port of the same address, and says where that is.
func (m *monitor) listenAgain(ctx context.Context, before migration) (string, error) {
	host := netip.Addr{}
	if n := len(before.Listens); n > 0 {
		host, _ = netip.ParseAddr(before.Listens[n-1].Host)
	}
	if !host.IsValid() {
		return "", errors.New("qemu does not say where it listened")
	}
	if err := m.do(ctx, "migrate-recover", map[string]any{"uri": "tcp:" + net.JoinHostPort(host.String(), "0")}); err != nil {
		return "", err
	}
	got, err := m.migration(ctx)
	if err != nil || len(got.Listens) == 0 {
		return "", errors.Join(err, errors.New("qemu does not say where it listens"))
	}
	return net.JoinHostPort(host.String(), got.Listens[len(got.Listens)-1].Port), nil
}
