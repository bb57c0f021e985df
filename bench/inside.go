package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"polder/internal/command"
)

// What this program does inside the lab's host instead, by its first argument.
const (
	insidePrefix = "inside-"
	insideCrun   = "inside-crun"
	insideQEMU   = "inside-qemu"
	insideLoad   = "inside-load"
	insideProbe  = "inside-probe"
	insideAsk    = "inside-ask"

	insideHandStart = "inside-hand-start"
	insideHandEnd   = "inside-hand-end"
	insideHandGive  = "inside-hand-give"
	insideHandTake  = "inside-hand-take"
)

// sharedProgram is where the lab's host finds this program.
const sharedProgram = "/shared/bench"

// shareProgram puts this program, which is static, where the lab's host sees it.
func (b *bench) shareProgram() error {
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	target := filepath.Join(b.lab(), "shared/bench")
	if err := os.WriteFile(target+".new", program, 0o755); err != nil {
		return err
	}
	return os.Rename(target+".new", target)
}

func inside(what string, args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch {
	case what == insideCrun && len(args) == 1:
		return crunOnce(ctx, args[0])
	case what == insideQEMU && len(args) == 1:
		return qemuOnce(ctx, args[0])
	case what == insideLoad:
		return serveLoad()
	case what == insideProbe && len(args) == 1:
		return probe(ctx, args[0])
	case what == insideAsk && len(args) > 1:
		return ask(ctx, args[0], strings.Join(args[1:], " "))
	case what == insideHandStart:
		return handStart()
	case what == insideHandEnd:
		return handEnd(ctx)
	case what == insideHandGive && len(args) == 1:
		return handGive(ctx, args[0])
	case what == insideHandTake:
		return handTake(ctx)
	}
	return fmt.Errorf("%s: not known", what)
}

// crunOnce runs `echo ok` with crun on a tree and prints the milliseconds it took.
func crunOnce(ctx context.Context, tree string) error {
	bundle, err := os.MkdirTemp("/run", "bench-crun")
	if err != nil {
		return err
	}
	defer os.RemoveAll(bundle)
	if _, err := (command.Command{Name: "crun", Args: []string{"spec"}, Dir: bundle}).Run(ctx); err != nil {
		return err
	}
	path := filepath.Join(bundle, "config.json")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		return err
	}
	config["root"] = map[string]any{"path": tree}
	process := config["process"].(map[string]any)
	process["terminal"], process["args"] = false, []string{"echo", "ok"}
	if text, err = json.Marshal(config); err != nil {
		return err
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return err
	}
	began := time.Now()
	out, err := command.Run(ctx, nil, "crun", "--root="+filepath.Join(bundle, "state"), "--cgroup-manager=cgroupfs", "run", "--bundle="+bundle, "bench-floor")
	took := time.Since(began)
	if err := says("ok", string(out), err); err != nil {
		return err
	}
	fmt.Println(milliseconds(took))
	return nil
}
