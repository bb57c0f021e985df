//go:build scenario

package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"polder/api"
)

// begun is a command of the user's that is under way.
type begun struct {
	t         *testing.T
	cmd       *exec.Cmd
	out, errs bytes.Buffer
}

func begin(t *testing.T, args ...string) *begun {
	t.Helper()
	b := &begun{t: t, cmd: exec.Command(binary(), args...)}
	b.cmd.Stdout, b.cmd.Stderr = &b.out, &b.errs
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return b
}

// interrupt is the user's Ctrl-C.
func (b *begun) interrupt() {
	b.t.Helper()
	if err := b.cmd.Process.Signal(os.Interrupt); err != nil {
		b.t.Fatal(err)
	}
}

func (b *begun) end() result {
	b.t.Helper()
	err := b.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.t.Fatal(err)
	}
	return result{b.out.String(), b.errs.String(), b.cmd.ProcessState.ExitCode()}
}

// underWay waits until the newest operation is one of that kind at that step, and gives it.
func underWay(t *testing.T, kind, step string) (op api.Operation) {
	t.Helper()
	eventually(t, 20*time.Second, func() string {
		ops := show[[]api.Operation](t, "op", "list")
		if len(ops) == 0 || ops[0].Kind != kind || ops[0].Step != step || ops[0].State != api.OperationRunning {
			return fmt.Sprintf("no %s at step %s is the newest of %d operations", kind, step, len(ops))
		}
		op = ops[0]
		return ""
	})
	return op
}

// unchanged fails the test when what is on the host differs from before.
func unchanged(t *testing.T, before string) {
	t.Helper()
	if after := remains(t); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

// hold makes the next start of a container on h1 last until release: what starts it waits first. The daemon sees a crun that
// takes long.
func hold(t *testing.T) (release func()) {
	t.Helper()
	inHost := func(script string) { must(t, "lab", "exec", "h1", "--", "sh", "-ec", script) }
	inHost(`cp -p /usr/bin/crun /run/crun.held
		printf '#!/bin/sh\nwhile [ -e /run/hold ]; do sleep 0.05; done\nexec /run/crun.held "$@"\n' >/run/holder
		chmod +x /run/holder; touch /run/hold; mount --bind /run/holder /usr/bin/crun`)
	release = sync.OnceFunc(func() { inHost("rm /run/hold; umount --lazy /usr/bin/crun") })
	t.Cleanup(release)
	return release
}

// cancelAsked waits until the server knows that an operation is to be cancelled.
func cancelAsked(t *testing.T, op api.Operation) {
	t.Helper()
	eventually(t, 5*time.Second, func() string {
		if show[api.Operation](t, "op", "info", op.ID).Cancellable {
			return "nobody has asked operation " + op.ID + " to stop"
		}
		return ""
	})
}

// Ctrl-C during a launch undoes it: exit code 5, and nothing is left. So does op cancel, from elsewhere. What else is asked of
// the VE meanwhile is refused, and says which operation is in the way.
func TestLaunchCancelled(t *testing.T) {
	launch(t, "debian/13", "other") // what a first VE makes on the host, and stays there, is no remains
	before := remains(t)
	for _, how := range []string{"Ctrl-C", "op cancel"} {
		release := hold(t)
		b := begin(t, "launch", "debian/13", "halfway")
		op := underWay(t, "launch", "start")
		refused(t, 4, op.ID, "delete", "halfway")
		refused(t, 4, op.ID, "stop", "halfway")
		refused(t, 4, "exists", "launch", "debian/13", "halfway")
		refused(t, 4, "in use", "image", "delete", "debian/13")
		if how == "Ctrl-C" {
			b.interrupt()
		} else {
			must(t, "op", "cancel", op.ID, "--no-wait")
		}
		cancelAsked(t, op)
		release()
		complains(t, b.end(), 5, "cancelled", how)
		if op = show[api.Operation](t, "op", "info", op.ID); op.State != api.OperationCancelled || !op.Steps[0].Undone {
			t.Errorf("%s: the operation is shown as %+v", how, op)
		}
		refused(t, 3, "halfway", "info", "halfway")
		unchanged(t, before)
	}
}

// The second Ctrl-C leaves at once; the operation is undone without anybody waiting.
func TestSecondInterrupt(t *testing.T) {
	launch(t, "debian/13", "other")
	before := remains(t)
	release := hold(t)
	b := begin(t, "launch", "debian/13", "halfway")
	op := underWay(t, "launch", "start")
	b.interrupt()
	cancelAsked(t, op)
	b.interrupt()
	if r := b.end(); r.code == 0 {
		t.Errorf("left with exit 0: %q", r.err)
	}
	release()
	eventually(t, 5*time.Second, func() string {
		if state := show[api.Operation](t, "op", "info", op.ID).State; state != api.OperationCancelled {
			return "the operation is " + string(state)
		}
		return ""
	})
	unchanged(t, before)
}

// A halt that takes long is broken off: the VE is again what it was, and can still be killed.
func TestStopInterrupted(t *testing.T) {
	launch(t, "debian/13", "slow")
	booted(t, "slow", time.Minute)
	must(t, "exec", "slow", "--", "systemd-run", "--unit=slow", "--property=TimeoutStopSec=600", "--property=ExecStop=sleep 600", "sleep", "infinity")
	b := begin(t, "stop", "slow", "--timeout", "300s")
	op := underWay(t, "stop", "stop")
	refused(t, 4, op.ID, "start", "slow")
	b.interrupt()
	complains(t, b.end(), 5, "cancelled", "stop", "slow")
	if v := show[api.VE](t, "info", "slow"); v.State != api.Running {
		t.Errorf("the VE is %s", v.State)
	}
	must(t, "stop", "slow", "--force")
}

// An image build that is interrupted, or whose daemon is killed, leaves nothing; in the latter case it is begun anew.
func TestImageBuildCutOff(t *testing.T) {
	before := remains(t)
	b := begin(t, "image", "build", "debian/13", "--alias", "cut/off")
	op := underWay(t, "image.build", "packages")
	building(t)
	killDaemon(t, "h1")
	eventually(t, 10*time.Second, func() string { return polder(t.Context(), "list").err })
	building(t)
	if again := show[api.Operation](t, "op", "info", op.ID); again.State != api.OperationRunning || again.Step != "packages" {
		t.Errorf("after the restart the operation is %+v", again)
	}
	b.interrupt()
	complains(t, b.end(), 5, "cancelled", "image", "build")
	refused(t, 3, "cut/off", "image", "info", "cut/off")
	unchanged(t, before)
	eventually(t, 5*time.Second, func() string { // who was killed takes a moment to be gone
		if r := polder(t.Context(), "lab", "exec", "h1", "--", "pgrep", "-f", "mmdebstrap|/staging/"); r.code == 0 {
			return "the build's processes live on: " + r.out
		}
		return ""
	})
}

// building waits until packages are being unpacked.
func building(t *testing.T) {
	t.Helper()
	eventually(t, 30*time.Second, func() string {
		return polder(t.Context(), "lab", "exec", "h1", "--", "sh", "-c", "ls -d /var/lib/polder/staging/*/root/usr >/dev/null").err
	})
}

// The daemon is killed in the middle of a launch: the next one goes on with it, and who waits for it notices nothing.
func TestDaemonKilledInLaunch(t *testing.T) {
	release := hold(t)
	t.Cleanup(func() { polder(context.Background(), "delete", "goeson") })
	b := begin(t, "launch", "debian/13", "goeson")
	op := underWay(t, "launch", "start")
	killDaemon(t, "h1")
	release()
	if r := b.end(); r.code != 0 {
		t.Errorf("launch: exit %d, %s", r.code, r.err)
	}
	if op = show[api.Operation](t, "op", "info", op.ID); op.State != api.OperationDone {
		t.Errorf("the operation is shown as %+v", op)
	}
	must(t, "exec", "goeson", "--", "true")
}

// One data directory and one address have one daemon; the second one is told who is in its way.
func TestSecondDaemon(t *testing.T) {
	for _, c := range []struct {
		text string
		args []string
	}{
		{"another polder serve", nil},
		{"has it open", []string{"--listen", "unix:///run/second.sock"}},
		{"another polder serve", []string{"--data", "/var/lib/second"}},
		{"bridge", []string{"--data", "/var/lib/second", "--listen", "unix:///run/second.sock"}},
	} {
		args := append([]string{"lab", "exec", "h1", "--", "polder", "serve", "--data", "/var/lib/polder"}, c.args...)
		r := polder(t.Context(), args...)
		last := r.err[strings.LastIndex(strings.TrimSpace(r.err), "\n")+1:]
		if r.code != 4 || !strings.HasPrefix(last, "error: ") || !strings.Contains(last, c.text) {
			t.Errorf("%s: exit %d, %q, want exit 4 and %q", strings.Join(args, " "), r.code, r.err, c.text)
		}
	}
	must(t, "lab", "exec", "h1", "--", "rm", "-rf", "/var/lib/second")
	must(t, "list")
}

// After a power cut, VEs that ran run again, with their data and addresses; but not those that are never to be restarted.
func TestHostPowerCut(t *testing.T) {
	back := launch(t, "debian/13", "back")
	launch(t, "debian/13", "down", "--restart", "never")
	launch(t, "debian/13", "off", "--no-start", "--restart", "always")
	must(t, "exec", "back", "--", "sh", "-c", "echo kept >/root/data; sync")
	must(t, "lab", "kill", "h1")
	must(t, "lab", "start", "h1")
	eventually(t, 20*time.Second, func() string {
		v := show[api.VE](t, "info", "back")
		if v.State != api.Running || v.Reason == "" {
			return fmt.Sprintf("back is %s: %s", v.State, v.Reason)
		}
		if v.Restarts != 0 || !strings.Contains(v.Reason, "the host went down") || fmt.Sprint(v.Addresses) != fmt.Sprint(back.Addresses) {
			t.Fatalf("back is %+v, was %+v", v, back)
		}
		return ""
	})
	if got := must(t, "exec", "back", "--", "cat", "/root/data"); got != "kept" {
		t.Errorf("data: %q", got)
	}
	for _, name := range []string{"down", "off"} {
		if v := show[api.VE](t, "info", name); v.State != api.Stopped {
			t.Errorf("%s is %s: %s", name, v.State, v.Reason)
		}
	}
}

// A pool that is full lets no launch and no import leave anything half-made, and is usable again once there is room.
func TestPoolFull(t *testing.T) {
	launch(t, "debian/13", "other")
	fill := "/var/lib/polder/pools/default/fill"
	must(t, "lab", "exec", "h1", "--", "sh", "-c", "for s in 1G 128M 16M 1M 64K 4K; do while fallocate -l $s "+fill+".$s.$n 2>/dev/null; do n=$((n+1)); done; done; sync")
	t.Cleanup(func() { polder(context.Background(), "lab", "exec", "h1", "--", "sh", "-c", "rm -f "+fill+"*") })
	before := remains(t)
	// A clone and a few small files live in btrfs' metadata, which may have room when there is none for data: a launch may work. One that
	// does not says why.
	for _, model := range []string{"container", "vm"} {
		r := polder(t.Context(), "launch", "debian/13", "nospace", "--model", model)
		if r.code == 0 {
			must(t, "delete", "nospace")
		} else if r.code != 1 || !strings.Contains(r.err, "no space left") {
			t.Errorf("launch as %s: exit %d, %s", model, r.code, r.err)
		}
	}
	root := filepath.Join(t.TempDir(), "root.tar")
	if out, err := exec.Command("sh", "-c", "head -c 20000000 /dev/urandom | split -b 10000000 - "+filepath.Dir(root)+"/part && tar -C "+filepath.Dir(root)+" -cf "+root+" --exclude=root.tar .").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	refused(t, 1, "room", "image", "import", root, "no/space")
	unchanged(t, before)
	must(t, "lab", "exec", "h1", "--", "sh", "-c", "rm "+fill+"*")
	must(t, "exec", "other", "--", "true")
	must(t, "launch", "debian/13", "nospace")
	must(t, "delete", "nospace")
}
