package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"polder/api"
	"polder/client"
	"polder/internal/command"
)

// The images that both sides launch: a whole system, and one that does nothing.
const (
	systemImage = "debian/13"
	idleImage   = "idle"
)

// bench is the stage: a lab of one host, and Incus beside it.
type bench struct {
	options
	report *report
	client *client.Client // of the lab's host
	incus  *incus
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}

func (b *bench) lab() string    { return filepath.Join(b.dir, "lab") }
func (b *bench) socket() string { return filepath.Join(b.lab(), "h1/run/polder.sock") }

// up brings both to where a container of either image can be launched.
func (b *bench) up(ctx context.Context) error {
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return err
	}
	b.say("starting a lab and Incus in %s", b.dir)
	if _, err := b.cli(ctx, "lab", "up", "--hosts", "1"); err != nil {
		return err
	}
	var err error
	if b.client, err = client.New("unix://" + b.socket()); err != nil {
		return err
	}
	if b.incus, err = startIncus(ctx, filepath.Join(b.dir, "incus")); err != nil {
		return err
	}
	if err := b.clear(ctx); err != nil {
		return err
	}
	if err := b.systemImage(ctx); err != nil {
		return err
	}
	return b.idleImage(ctx)
}

// clear deletes the VEs that a failed run with -keep has left.
func (b *bench) clear(ctx context.Context) error {
	ves, err := b.client.VEs(ctx)
	if err != nil {
		return err
	}
	for _, ve := range ves {
		if err := b.delete(ctx, ve.Name); err != nil {
			return err
		}
	}
	names, err := b.incus.cli(ctx, "list", "-f", "csv", "-c", "n")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(names) {
		if _, err := b.incus.cli(ctx, "delete", "-f", name); err != nil {
			return err
		}
	}
	return nil
}

// systemImage builds an image, and gives Incus the very same tree.
func (b *bench) systemImage(ctx context.Context) error {
	if _, err := b.client.Image(ctx, systemImage); api.KindOf(err) == api.NotFound {
		b.say("building %s", systemImage)
		if _, err := b.cli(ctx, "image", "build", systemImage); err != nil {
			return err
		}
	}
	if b.incus.hasImage(ctx, systemImage) {
		return nil
	}
	tar := filepath.Join(b.dir, "system.tar")
	defer os.Remove(tar)
	if _, err := b.cli(ctx, "image", "export", systemImage, tar, "--force"); err != nil {
		return err
	}
	return b.incus.importImage(ctx, tar, systemImage)
}

// idleImage makes one of a static busybox that sleeps.
func (b *bench) idleImage(ctx context.Context) error {
	root := filepath.Join(b.dir, "idle")
	tar := root + ".tar"
	defer os.RemoveAll(root)
	defer os.Remove(tar)
	for _, dir := range []string{"bin", "sbin", "etc", "dev", "proc", "sys", "run", "tmp", "root", "var"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("%w: apt-get install busybox-static", err)
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(root, "bin/busybox"), busybox, 0o755),
		os.WriteFile(filepath.Join(root, "sbin/init"), []byte("#!/bin/busybox sh\nexec /bin/busybox sleep 2147483647\n"), 0o755),
		os.WriteFile(filepath.Join(root, "etc/os-release"), []byte("ID=idle\n"), 0o644),
	)
	if err != nil {
		return err
	}
	if _, err := command.Run(ctx, nil, "tar", "-C", root, "-cf", tar, "."); err != nil {
		return err
	}
	if _, err := b.client.Image(ctx, idleImage); api.KindOf(err) == api.NotFound {
		if _, err := b.cli(ctx, "image", "import", tar, idleImage); err != nil {
			return err
		}
	}
	if b.incus.hasImage(ctx, idleImage) {
		return nil
	}
	return b.incus.importImage(ctx, tar, idleImage)
}

// down removes all that up and the measurements made.
func (b *bench) down(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	b.say("removing the lab and Incus")
	_, labErr := b.cli(ctx, "lab", "down")
	incusErr := stopIncus(ctx, filepath.Join(b.dir, "incus"))
	if err := errors.Join(labErr, incusErr); err != nil {
		return err
	}
	return os.RemoveAll(b.dir)
}

// cli runs the command line as its user would, save that the user's own contexts stay as they are.
func (b *bench) cli(ctx context.Context, args ...string) (string, error) {
	out, err := command.Command{Name: b.polder, Args: args, Env: b.env()}.Run(ctx)
	return string(out), err
}

func (b *bench) env() []string {
	return []string{"POLDER_LAB=" + b.lab(), "POLDER_HOST=unix://" + b.socket(), "XDG_CONFIG_HOME=" + filepath.Join(b.dir, "config")}
}

// inHost runs a command in the lab's host.
func (b *bench) inHost(ctx context.Context, argv ...string) (string, error) {
	return b.cli(ctx, append([]string{"lab", "exec", "h1", "--"}, argv...)...)
}

// hostInit is the pid, on this machine, of the host's first process.
func (b *bench) hostInit(ctx context.Context) (int, error) {
	out, err := b.cli(ctx, "lab", "list", "-o", "json")
	if err != nil {
		return 0, err
	}
	var hosts []struct {
		PID int `json:"pid"`
	}
	if err := decode(out, &hosts); err != nil {
		return 0, err
	}
	if len(hosts) != 1 || hosts[0].PID == 0 {
		return 0, fmt.Errorf("the lab's host is not running: %s", out)
	}
	return hosts[0].PID, nil
}

// finish waits for an operation's good end.
func (b *bench) finish(ctx context.Context, op api.Operation, err error) (api.Operation, error) {
	if err == nil && !op.State.Final() {
		op, err = b.client.Wait(ctx, op.ID, nil)
	}
	if err == nil && op.State != api.OperationDone {
		err = fmt.Errorf("%s of %s: %w", op.Kind, op.Target, op.Error.Err())
	}
	return op, err
}

func (b *bench) delete(ctx context.Context, name string) error {
	op, err := b.client.Delete(ctx, name)
	_, err = b.finish(ctx, op, err)
	return err
}

// steps are the times of an operation's steps in milliseconds.
func steps(op api.Operation) map[string]float64 {
	times := map[string]float64{}
	for _, s := range op.Steps {
		if s.StartedAt != nil && s.FinishedAt != nil {
			times[s.Name] = milliseconds(s.FinishedAt.Sub(*s.StartedAt))
		}
	}
	return times
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// says checks that a command printed what it should.
func says(want, out string, err error) error {
	if err == nil && strings.TrimSpace(out) != want {
		err = fmt.Errorf("it printed %q instead of %q", out, want)
	}
	return err
}
