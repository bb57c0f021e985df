package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"polder/api"
	"polder/internal/command"
)

// The VEs, the image, and the hosts that they are on at first.
const (
	server    = "services"
	client    = "client"
	image     = "services"
	home      = "h1"
	away      = "h2"
	elsewhere = "h3"
)

// stage is the lab with its two VEs.
type stage struct {
	options
	work   string // for the scripts, and for the command line's contexts
	broken bool   // the last try has left the VE in an unknown state
}

func (s *stage) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "services: "+format+"\n", args...)
}

// polderAs runs the command line as its user would, save that the user's own contexts stay as they are.
func (s *stage) polderAs(ctx context.Context, args ...string) (string, error) {
	out, err := command.Command{Name: s.polder, Args: args, Env: []string{
		"POLDER_LAB=" + s.dir, "POLDER_HOST=unix://" + filepath.Join(s.dir, home, "run/polder.sock"), "XDG_CONFIG_HOME=" + s.work,
	}}.Run(ctx)
	return strings.TrimSpace(string(out)), err
}

// in runs a command in a VE.
func (s *stage) in(ctx context.Context, ve string, argv ...string) (string, error) {
	return s.polderAs(ctx, append([]string{"exec", "--no-tty", ve, "--"}, argv...)...)
}

// show decodes what the command line shows as JSON.
func (s *stage) show(ctx context.Context, v any, args ...string) error {
	out, err := s.polderAs(ctx, append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(out), v)
}

// up makes the lab, the image, and the VE that puts the load on.
func (s *stage) up(ctx context.Context) error {
	if err := s.unpackScripts(); err != nil {
		return err
	}
	s.say("a lab of three hosts in %s", s.dir)
	if _, err := s.polderAs(ctx, "lab", "up", "--hosts", "3"); err != nil {
		return err
	}
	if _, err := s.polderAs(ctx, "image", "info", image); err != nil {
		if err := s.makeImage(ctx); err != nil {
			return err
		}
	}
	if s.usable(ctx, client, elsewhere, "container") {
		s.broken = !s.usable(ctx, server, home, s.model)
		return nil
	}
	s.broken = true
	_, _ = s.polderAs(ctx, "delete", client)
	if err := s.launch(ctx, client, elsewhere, "container"); err != nil {
		return err
	}
	if _, err := s.in(ctx, client, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/id_ed25519"); err != nil {
		return err
	}
	return s.mark(ctx, client)
}

// usableMark is in a VE that an earlier run has left, with -keep, as it should be.
const usableMark = "/run/usable"

// mark says that a VE is usable; unmark, that it is being used, and may not be afterwards.
func (s *stage) mark(ctx context.Context, name string) error {
	_, err := s.in(ctx, name, "touch", usableMark)
	return err
}

func (s *stage) unmark(ctx context.Context, name string) error {
	_, err := s.in(ctx, name, "rm", "-f", usableMark)
	return err
}

// usable says whether an earlier run has left a VE that can be used. It is given the scripts as they are now.
func (s *stage) usable(ctx context.Context, name, host, model string) bool {
	var ve api.VE
	if err := s.show(ctx, &ve, "info", name); err != nil || ve.Host != host || string(ve.Model) != model || ve.State != api.Running {
		return false
	}
	if _, err := s.in(ctx, name, "test", "-e", usableMark); err != nil {
		return false
	}
	if _, err := s.in(ctx, name, "rm", "-rf", "/srv/in"); err != nil {
		return false
	}
	return s.copyScripts(ctx, name) == nil
}

func (s *stage) copyScripts(ctx context.Context, name string) error {
	_, err := s.polderAs(ctx, "cp", filepath.Join(s.work, "in"), name+":/srv/in")
	return err
}

// fresh gives a try a VE that the one before has not broken.
func (s *stage) fresh(ctx context.Context) error {
	if !s.broken {
		return nil
	}
	_, _ = s.polderAs(ctx, "delete", server)
	if err := s.launch(ctx, server, home, s.model); err != nil {
		return err
	}
	key, err := s.in(ctx, client, "cat", "/root/.ssh/id_ed25519.pub")
	if err != nil {
		return err
	}
	if _, err = s.in(ctx, server, "sh", "-c", "mkdir -p /root/.ssh && echo "+key+" >/root/.ssh/authorized_keys"); err != nil {
		return err
	}
	// Both hosts have its image then: that it goes along in the first move is no matter of the service that happens to be first.
	for _, to := range []string{away, home} {
		if _, err := s.polderAs(ctx, "move", server, "--to", to, "--mode", "live"); err != nil {
			return fmt.Errorf("it does not move to %s even idle: %w", to, err)
		}
	}
	return nil
}

// launch makes a VE with the scripts in it.
func (s *stage) launch(ctx context.Context, name, host, model string) error {
	s.say("launching %s, a %s, on %s", name, model, host)
	if _, err := s.polderAs(ctx, "launch", image, name, "--host", host, "--model", model, "--cpus", "2", "--memory", "1GiB"); err != nil {
		return err
	}
	if err := s.eventually(ctx, bootLimit, func() error {
		_, err := s.in(ctx, name, "sh", "-c", `case $(systemctl is-system-running --wait) in running | degraded) ;; *) exit 1 ;; esac`)
		return err
	}); err != nil {
		return fmt.Errorf("%s does not boot: %w", name, err)
	}
	return s.copyScripts(ctx, name)
}

// bootLimit has room for an emulated machine on a busy one.
const bootLimit = 12 * time.Minute

// eventually calls check until it succeeds or time is up. It waits for things that happen by themselves in a VE.
func (s *stage) eventually(ctx context.Context, limit time.Duration, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// unpackScripts puts the scripts where the command line can copy them from.
func (s *stage) unpackScripts() error {
	tree, err := fs.Sub(scripts, "in")
	if err != nil {
		return err
	}
	return os.CopyFS(filepath.Join(s.work, "in"), tree)
}

// down removes all that up has made.
func (s *stage) down(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	s.say("removing the lab")
	_, err := s.polderAs(ctx, "lab", "down")
	return err
}

// blockers are what a plan says of why the VE can't be moved, "" when it can.
func (s *stage) blockers(ctx context.Context, to string) string {
	var plan api.MovePlan
	if err := s.show(ctx, &plan, "move", server, "--to", to, "--mode", "live", "--plan"); err != nil || plan.Possible {
		return ""
	}
	why := []string{plan.Reason}
	for _, b := range plan.Blockers {
		why = append(why, fmt.Sprintf("%s %s: %s", b.Process, b.Descriptor, b.Reason))
	}
	return strings.Join(why, "; ")
}
